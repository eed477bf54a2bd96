"""`fedqueue doctor`: what is wrong with a federation, and what to do about it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

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
        Console().print(_table(found))
    if not healthy:
        raise typer.Exit(1)


def _table(found: Sequence[Finding]) -> Table:
    table = Table("", "check", "what", "remedy", title="fedqueue doctor")
    for each in sorted(found, key=lambda each: each.ok):
        table.add_row("ok" if each.ok else "[bold red]![/]", each.name, each.what, each.remedy)
    return table
