"""What every worker does around its loop: its settings file, its name at the broker, and the signals that end it."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from shared.errors import SettingsError
from shared.settings import WorkerSettings, load

Settings = TypeVar("Settings", bound=WorkerSettings)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedqueue {metadata.version('fedqueue')}")
        raise typer.Exit


ShowVersion = Annotated[
    bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which version of fedqueue this is, and end.")
]


def read_settings(settings_type: type[Settings], config: Path) -> Settings:
    """The settings of a file. Raises SettingsError."""
    try:
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{config} cannot be read ({error}); `fedqueue init` writes this file") from error
    return load(settings_type, text, path=config.absolute())


def process_name(*words: str) -> str:
    """What the management UI shows for this process's connection."""
    return "/".join((*words, socket.gethostname(), str(os.getpid())))


def stop_on_signals() -> threading.Event:
    """Set by SIGTERM and by Ctrl-C."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    return stopping


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """While inside, SIGTERM unwinds like Ctrl-C: workers and broker are stopped in order."""

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
