"""Files that a reader finds whole or not at all."""

import os
from pathlib import Path


def write_private(file: Path, content: bytes) -> None:
    """Writes what only the owner may read."""
    _write(file, content, 0o600)


def write_public(file: Path, content: bytes) -> None:
    """Writes what everybody may read."""
    _write(file, content, 0o644)


def _write(file: Path, content: bytes, mode: int) -> None:
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(handle, "wb") as out:
        os.fchmod(handle, mode)
        out.write(content)
        out.flush()
        os.fsync(handle)
    aside.replace(file)
