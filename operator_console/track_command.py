"""`fedqueue track`: the figures of every version for TensorBoard, MLflow or Weights & Biases, while a run goes on or after it."""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.reconnect import persist
from broker_config.service import ending_on_sigterm
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import FederationFolder
from operator_console.history import History, fold_next, follow
from operator_console.tracking import steps
from operator_console.tracking_sinks import SHOWN_BY, SINKS, Sink, Tool, Tracked
from shared.errors import SettingsError

TICK_SECONDS = 1.0


def track(
    to: Annotated[Tool, typer.Option("--to", help="Each is an optional extra: pip install 'fedqueue[tensorboard]'.")],
    folder: Folder = DEFAULT_FOLDER,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="For what is written; a later call goes on there.")] = Path(
        "tracked"
    ),
    once: Annotated[bool, typer.Option("--once", help="Write what is there, and do not wait for more.")] = False,
) -> None:
    """Write every version's figures for a tool that draws them: held-out figures, updates, staleness, weight, epsilon.

    Of a running federation it follows the lineage until the run ends or Ctrl-C; of a folder with a lineage.jsonl it writes what
    is there. A version is written once the next one is begun, because until then updates may be settled with it. Nothing is sent.
    """
    federation = FederationFolder(folder)
    facts = federation.facts()
    with ending_on_sigterm(), SINKS[to](Tracked(facts.run_id, facts.title, out)) as sink:
        writer = _Writer(sink)
        with suppress(KeyboardInterrupt):
            if (folder / "lineage.jsonl").exists():
                writer.write(_recorded(folder / "lineage.jsonl"))
            else:
                _follow(federation, writer, once=once)
    there = f" {sink.last_step + 1} were there before." if sink.last_step >= 0 else ""
    count = "1 version is" if writer.written == 1 else f"{writer.written} versions are"
    typer.echo(f"{count} written to {out}.{there}  {SHOWN_BY[to].format(out=out)}")


class _Writer:
    """Gives a sink the steps that it does not have yet."""

    def __init__(self, sink: Sink) -> None:
        self.written = 0
        self._sink = sink
        self._last_step = sink.last_step

    def write(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Lines from version 0 on, as many as there are."""
        for step, metrics in steps(lines):
            if step > self._last_step:
                self._sink.log(step, metrics)
                self.written += 1
                self._last_step = step


def _recorded(file: Path) -> Iterator[Mapping[str, Any]]:
    """The lines of a finished run. Raises SettingsError."""
    try:
        with file.open(encoding="utf-8") as opened:
            for line in opened:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file} cannot be read: {error}") from error


def _follow(federation: FederationFolder, writer: _Writer, *, once: bool) -> None:
    """Raises BrokerUnavailableError where the broker does not answer at the beginning; one that is lost later is waited for."""
    settings, history, over = federation.logins().settings(OPERATOR), History(federation.names()), threading.Event()
    connect(settings, name="fedqueue-track").close()

    def session() -> None:
        with closing(connect(settings, name="fedqueue-track")) as broker:
            reader = follow(broker, history)
            seen = 0
            while not over.is_set():
                if len(history.links) > seen:
                    seen = len(history.links)
                    writer.write(_whole(history))
                if once or _is_over(history):
                    over.set()
                else:
                    fold_next(broker, reader, timeout_seconds=TICK_SECONDS)

    persist(session, over)


def _is_over(history: History) -> bool:
    return history.links[-1].manifest.phase == "finished"


def _whole(history: History) -> Iterator[Mapping[str, Any]]:
    """The lines of all versions but the newest, with which more may be settled unless the run is over."""
    newest = history.links[-1].manifest.version
    return (line for line in history.lines() if line["version"] < newest or _is_over(history))
