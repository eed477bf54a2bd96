"""The institution's files, read without what takes them apart: programs that only name them start at once."""

import hashlib
from pathlib import Path

from shared.errors import DataError, SettingsError
from shared.tasks.spec import TaskSpec, parse_task


def read_task(path: Path) -> TaskSpec:
    """The task file's content. Raises SettingsError."""
    try:
        return parse_task(path.read_text(encoding="utf-8"), source=str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"task_file {path} cannot be read ({error}); the operator gives you this file") from error


def fingerprint(path: Path) -> str:
    """SHA-256 of the file in hexadecimal. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> DataError:
    """What to say of a data file that the operating system does not give."""
    return DataError(f"{path}: cannot be read: {error.strerror or error}; check the path and this user's right to read it")
