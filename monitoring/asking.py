"""Asks a worker on this computer whether it is ready, as a health check does: over its own address, without a library."""

import http.client
import json
from dataclasses import dataclass
from typing import Annotated, NoReturn

import typer

from monitoring.settings import MonitoringSettings, split_address
from shared.errors import SettingsError

Ready = Annotated[
    bool, typer.Option("--ready", help="Ask the running worker at monitoring.listen whether it is ready, end with 0 or 1.")
]
PATIENCE_SECONDS = 5.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked at, not listened on


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of the question."""

    ready: bool
    reason: str


def ask_ready(settings: MonitoringSettings) -> Answer:
    """Whether the worker with these settings is ready, and why not. Raises SettingsError where it answers nobody."""
    if settings.listen is None:
        raise SettingsError(
            '--ready asks the worker at monitoring.listen, and its settings name none: listen = "127.0.0.1:9464" is one'
        )
    host, port = split_address(settings.listen)
    connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", "/readyz")
        told = json.loads(connection.getresponse().read(2**16))
        return Answer(bool(told["ready"]), str(told["reason"]))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return Answer(ready=False, reason=f"no worker answers at {settings.listen}: {error}")
    finally:
        connection.close()


def end_as_ready(settings: MonitoringSettings) -> NoReturn:
    """Prints the answer and ends the program, with 0 where the worker is ready and 1 where it is not."""
    answer = ask_ready(settings)
    typer.echo(answer.reason, err=not answer.ready)
    raise typer.Exit(0 if answer.ready else 1)
