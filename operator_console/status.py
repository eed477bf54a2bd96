"""`fedqueue status`: the same view as the demo's, of any federation, with what needs attention first."""

import json
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import FederationFolder
from operator_console.live_view import render, span_text, watch
from operator_console.status_screen import view_from
from operator_console.status_session import StatusSession, last_known
from shared.errors import BrokerUnavailableError

Watching = Annotated[bool, typer.Option("--watch", help="Stay, and follow the run until Ctrl-C.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts; its `schema` number changes when a key does.")]


def status(folder: Folder = DEFAULT_FOLDER, watching: Watching = False, as_json: AsJson = False) -> None:
    """Show how a federation is doing, with what needs attention first: versions, updates, staleness, privacy spent.

    Where the broker does not answer it shows what was seen last, and ends with exit code 1.
    """
    federation, console = FederationFolder(folder), Console()
    try:
        session = StatusSession(federation)
    except BrokerUnavailableError as error:
        _tell_last(federation, console, error, as_json=as_json)
        raise typer.Exit(error.exit_code) from error
    with closing(session), suppress(KeyboardInterrupt):
        found = session.object()
        if as_json:
            typer.echo(json.dumps(found, allow_nan=False))
        elif watching:
            watch(session.tick, console=console)
        else:
            console.print(render(session.view()))


def _tell_last(federation: FederationFolder, console: Console, error: BrokerUnavailableError, *, as_json: bool) -> None:
    """What was seen when the broker answered. Raises the error where nothing ever was."""
    found = last_known(federation)
    if found is None:
        raise error
    if as_json:
        typer.echo(json.dumps({**found, "connected": False, "away": str(error)}, allow_nan=False))
        return
    at = datetime.fromtimestamp(found["at_ms"] / 1000, UTC).astimezone()
    ago = span_text((datetime.now(UTC) - at).total_seconds())
    seen = f"What follows was seen {ago} ago, at {at:%Y-%m-%d %H:%M:%S}; `fedqueue doctor` says what is wrong."
    console.print(render(replace(view_from(found), urgent=(f"The broker does not answer: {error}", seen))))
