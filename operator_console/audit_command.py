"""`fedqueue audit`: the broker's, the aggregator's and the console's logs merged, as who tried what and what it got."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from operator_console.audit import Event, Run, Source, aggregator_events, console_events, in_order, runs
from operator_console.broker_log import broker_events
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.completions import institutions
from operator_console.federation_folder import FederationFolder
from operator_console.log_files import lines_of, moment
from operator_console.web.trail import FILE as TRAIL_FILE
from shared.errors import SettingsError

SCHEMA = 1
"""Of the JSON object."""
READERS: Mapping[Source, Callable[[Iterable[str]], Iterator[Event]]] = {
    "broker": broker_events,
    "aggregator": aggregator_events,
    "console": console_events,
}


def audit(  # noqa: PLR0913 - typer takes one parameter for each option
    *,
    folder: Folder = DEFAULT_FOLDER,
    broker_log: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A log of RabbitMQ, also .gz; repeatable."),
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="An aggregator's log, also .gz; repeatable."),
    ] = None,
    institution: Annotated[
        str | None, typer.Option(autocompletion=institutions, help="Only what it did, or somebody under its name.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what came after: 2026-11-21T08:00, or 30min, 2h, 7d ago.")
    ] = None,
    connections: Annotated[bool, typer.Option("--connections", help="Also connections that came and went.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for scripts, each event by itself.")] = False,
) -> None:
    """Show who tried what, and what it got: refusals, failed logins, TLS alerts, forged messages, orders.

    Without --broker-log and --log: the logs of a private broker and of the demo's aggregator, below --dir. The web console's is
    always read: it tells which person gave an order.
    """
    begin = moment(since) if since else None
    sources = log_files(folder, broker_log or (), log or ())
    found = [
        each
        for each in in_order(*(READERS[source](lines_of(file)) for source, file in sources))
        if (connections or each.kind != "connection")
        and (institution is None or each.concerns(institution))
        and (begin is None or each.at >= begin)
    ]
    if as_json:
        events = [{**asdict(each), "at": each.at.isoformat()} for each in found]
        typer.echo(json.dumps({"schema": SCHEMA, "logs": [str(file) for _, file in sources], "events": events}))
        return
    for run in runs(found):
        typer.echo(_line(run))
    read = ", ".join(f"{file} ({source})" for source, file in sources)
    typer.echo(f"{len(found)} events in {read}; a name with ? was claimed, not proven")


def log_files(folder: Path, broker_logs: Sequence[Path], logs: Sequence[Path]) -> list[tuple[Source, Path]]:
    """The logs to read, and whose each is; those of a private broker, the demo and the web console are found in the folder.

    Raises SettingsError where there is none.
    """
    federation = FederationFolder(folder)
    beside = sorted(each for each in folder.glob("broker/n*/log/*.log*") if "upgrade" not in each.name)
    places: dict[Source, Sequence[Path]] = {
        "broker": broker_logs or beside,
        "aggregator": logs or [each for each in (federation.log_file("aggregator"),) if each.exists()],
        "console": [each for each in (federation.console / TRAIL_FILE,) if each.exists()],
    }
    found = [(source, file) for source, files in places.items() for file in files]
    if not found:
        raise SettingsError(
            f"{folder} holds no log: name RabbitMQ's with --broker-log (often /var/log/rabbitmq/rabbit@HOST.log) and the "
            "aggregator's with --log (journalctl -u fedqueue-aggregator -o cat > FILE)"
        )
    return found


def _line(run: Run) -> str:
    first = run.first
    who = f"{first.who}?" if first.who and not first.proven else first.who or "-"
    address = first.address if run.times == 1 else first.address.rpartition(":")[0]
    again = f"  ({run.times} times, last {_clock(run.last)})" if run.times > 1 else ""
    return f"{_clock(first.at)}  {first.source:<10}  {who}  {address or '-'}  {first.tried} -> {first.got}{again}"


def _clock(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"
