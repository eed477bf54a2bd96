"""`fedqueue doctor`: what is wrong with a federation, and what to do about it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.doctor_checks import findings
from operator_console.federation_folder import FederationFolder
from operator_console.finding import Finding

SCHEMA = 1
"""Of the JSON object."""

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts; its `schema` number changes when a key does.")]


def doctor(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Check broker, rights, certificates, disk, clock, versions, leader, queues and secrets, with a remedy for each finding.

    Exit code 0 where all is well, 1 where anything needs attention.
    """
    found = list(findings(FederationFolder(folder)))
    healthy = all(each.ok for each in found)
    if as_json:
        typer.echo(json.dumps({"schema": SCHEMA, "ok": healthy, "findings": [asdict(each) for each in found]}))
    else:
        console = Console()
        for line in _lines(found):
            console.print(line, soft_wrap=True)
    if not healthy:
        raise typer.Exit(1)


def _lines(found: Sequence[Finding]) -> Iterator[Text]:
    """What is wrong first, each with its remedy on a line of its own, never cut: it is there to be copied."""
    for each in sorted(found, key=lambda each: each.ok):
        yield Text.assemble(("ok " if each.ok else " ! ", "green" if each.ok else "bold red"), f"{each.name}: {each.what}")
        if each.remedy:
            yield Text(f"     {each.remedy}", style="yellow")
