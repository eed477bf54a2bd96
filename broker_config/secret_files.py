"""Secrets on disk and in the environment: who else could read them."""

import stat
from collections.abc import Mapping
from pathlib import Path

from shared.errors import SettingsError

_OF_THE_PARENT = ("AMQP_URL", "MANAGEMENT_URL")


def is_open_to_others(file: Path) -> bool:
    """Whether another user of this machine could read a file, change it or run it."""
    return bool(file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


def demand_private(file: Path, what: str) -> None:
    """Raises SettingsError where another user of this machine could read what only its owner may know."""
    if is_open_to_others(file):
        raise SettingsError(f"{what} {file} can be read by other users: chmod 600 {file}, and replace it if one of them did")


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment for a child process that logs in with files of its own, or not at all."""
    return {name: value for name, value in environ.items() if name not in _OF_THE_PARENT and not _is_password(name)}


def _is_password(name: str) -> bool:
    return name.upper().startswith("FEDQUEUE_") and name.upper().endswith("__PASSWORD")
