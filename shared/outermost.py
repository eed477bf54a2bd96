"""The outermost line of every program: a foreseen error becomes one sentence and the exit code of its kind."""

import sys
from collections.abc import Callable

import structlog

from shared.errors import FederationError

log = structlog.get_logger()


def run_program(command: Callable[[], object]) -> None:
    """Runs a typer application, which ends the process itself unless a FederationError gets this far."""
    try:
        command()
    except FederationError as error:
        if structlog.is_configured():
            log.error("cannot go on", error=type(error).__name__, reason=str(error))  # noqa: TRY400 - for people: no traceback
        else:
            sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
