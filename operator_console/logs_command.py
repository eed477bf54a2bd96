"""`fedqueue logs`: what the workers said about one institution or one version, merged by time and told in words."""

import heapq
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.completions import institutions, versions
from operator_console.federation_folder import FederationFolder
from operator_console.log_files import STANDARD_INPUT, Tail, lines_of, moment
from operator_console.worker_log import Level, Log, Said, Wanted
from shared.errors import SettingsError

SCHEMA = 1
"""Of the object on each line of `--json`."""
POLL_SECONDS = 0.5
STYLES = {"warning": "yellow", "error": "bold red", "critical": "bold red", "debug": "dim"}
ELSEWHERE = (
    "systemd has them: journalctl -o cat -u fedqueue-aggregator | fedqueue logs -   "
    "compose too: docker compose logs --no-log-prefix aggregator | fedqueue logs -   "
    "or name files with --file"
)
Files = list[Path]


def logs(  # noqa: PLR0913 - typer takes one parameter for each option
    inputs: Annotated[
        Files | None, typer.Argument(metavar="-", help="A file, or - for standard input, instead of the folder's logs.")
    ] = None,
    *,
    folder: Folder = DEFAULT_FOLDER,
    institution: Annotated[
        str | None, typer.Option(autocompletion=institutions, help="Only what was said about this one, or by it.")
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=0, autocompletion=versions, help="Only a version: what became part of it, and its commit.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what came after: 2026-11-21T08:00, or 30min, 2h, 7d ago.")
    ] = None,
    level: Annotated[Level, typer.Option(help="Only this, and what is more serious.")] = "info",
    follow: Annotated[bool, typer.Option("--follow", help="Stay, and tell what comes until Ctrl-C.")] = False,
    file: Annotated[
        Files | None, typer.Option("--file", metavar="FILE", help="A worker's log, also .gz, or -; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on each line, for scripts.")] = False,
) -> None:
    """Tell what the workers said about one institution or one version, merged by time.

    Read are the logs below --dir, where a demonstration or a project writes them: logs/aggregator.log, logs/ID.log. Elsewhere the
    service manager has them, and they come in on standard input, as in the examples below.
    """
    federation = FederationFolder(folder)
    if institution is not None and (folder / "federation.json").exists():
        federation.demand_known(institution)
    wanted = Wanted(institution, version, moment(since) if since else None, level)
    named = [*(inputs or ()), *(file or ())]
    show = _as_json if as_json else _in_words(Console())
    if follow and STANDARD_INPUT not in named:
        said = _followed(federation, named, by_version=version is not None)
    else:
        said = _read(_sources(federation, named))
    told = 0
    with suppress(KeyboardInterrupt):
        for each in said:
            if wanted.takes(each):
                told += 1
                show(each)
                sys.stdout.flush()
    if not told:
        typer.echo("nothing of that was said there", err=True)


def _sources(federation: FederationFolder, named: Sequence[Path]) -> list[Path]:
    """The logs to read. Raises SettingsError where there are none."""
    found = list(named) or sorted(federation.log_file("aggregator").parent.glob("*.log"))
    if not found:
        raise SettingsError(f"{federation.log_file('aggregator').parent} holds no log. {ELSEWHERE}")
    return found


def _name_of(file: Path) -> str:
    """Whose log a file is: aggregator.log, north.log, north.log.2.gz; unknown of standard input."""
    return "" if file == STANDARD_INPUT else file.name.partition(".")[0]


def _begin(file: Path) -> datetime:
    with suppress(OSError):
        return datetime.fromtimestamp(file.stat().st_mtime, UTC)
    return datetime.now(UTC)


def _read(files: Sequence[Path]) -> Iterator[Said]:
    return heapq.merge(*map(_whole, files), key=lambda said: said.at)


def _whole(file: Path) -> Iterator[Said]:
    log = Log(_name_of(file), _begin(file))
    yield from log.take(lines_of(file))
    yield from log.rest()


def _followed(federation: FederationFolder, named: Sequence[Path], *, by_version: bool) -> Iterator[Said]:
    """What is there, then what comes, in new files too. `by_version` waits for the commit of what is settled."""
    tails: dict[Path, tuple[Tail, Log]] = {}
    try:
        while True:
            found = list(named) or sorted(federation.log_file("aggregator").parent.glob("*.log"))
            tails |= {file: (Tail(file), Log(_name_of(file), _begin(file))) for file in found if file not in tails}
            news = [_news(tail, log, by_version=by_version) for tail, log in tails.values()]
            yield from heapq.merge(*news, key=lambda said: said.at)
            time.sleep(POLL_SECONDS)
    finally:
        for tail, _ in tails.values():
            tail.close()


def _news(tail: Tail, log: Log, *, by_version: bool) -> Iterator[Said]:
    yield from log.take(tail.lines())
    if not by_version:
        yield from log.rest()


def _as_json(said: Said) -> None:
    head = {"schema": SCHEMA, "at": said.at.isoformat(), "source": said.source, "level": said.level}
    about = {"institution": said.institution or None, "version": said.version, "text": said.text}
    typer.echo(json.dumps({**head, **about, "said": dict(said.fields)}))


def _in_words(console: Console) -> Callable[[Said], None]:
    def show(said: Said) -> None:
        about = f"{said.institution}: " if said.institution not in ("", said.source) else ""
        level = "" if said.level in ("info", "debug") else f"{said.level}: "
        line = f"{said.at.astimezone():%Y-%m-%d %H:%M:%S}  {said.source:<12}  {level}{about}{said.text}"
        console.print(Text(line, style=STYLES.get(said.level, "")), soft_wrap=True)

    return show
