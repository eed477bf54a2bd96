"""The files of the outbox: sealed updates that are too large for a row of the ledger, one file each.

A file is on disk before the row that names it, so a file without a row was never sealed, and a row never lacks its file.
"""

import mmap
import os
from collections.abc import Iterable
from pathlib import Path

from shared.codec import Encoded
from shared.errors import CheckpointError, StorageError

LARGE_BYTES = 256 * 1024
"""Content above this goes into a file of its own: SQLite would write it twice, and hold it in memory whole."""
_ENDING = ".update"
_ASIDE = ".new"


class OutboxFolder:
    """One folder beside the ledger. Raises StorageError when it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_durable = False

    def write(self, sequence: int, content: Encoded) -> None:
        """Durable when it returns: written aside buffer by buffer, fsynced, renamed, the folder fsynced."""
        path = self._file(sequence)
        aside = path.with_suffix(_ASIDE)
        try:
            self._make()
            with aside.open("wb") as file:
                for buffer in content.buffers:
                    file.write(buffer)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
            _sync_folder(self._path)
        except OSError as error:
            aside.unlink(missing_ok=True)  # what is half written must not keep the disk full
            raise StorageError(f"{path}: {error.strerror}; free space or mend the rights, nothing was sent") from error

    def _make(self) -> None:
        """The folder itself is on disk once in a process's life: one that died right after making it may not have come so far."""
        if not self._is_durable:
            self._path.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(self._path.parent)
            self._is_durable = True

    def read(self, sequence: int) -> Encoded:
        """The content where it lies on disk; its hash is taken when it is asked for."""
        try:
            with self._file(sequence).open("rb") as file:
                return Encoded([memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))])
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self._file(sequence)}: a sealed update cannot be read: {error}") from error

    def require(self, sequence: int, size: int) -> None:
        """Raises CheckpointError where the file that a row names is missing or has another size."""
        path = self._file(sequence)
        found = path.stat().st_size if path.exists() else None
        if found != size:
            there = "is missing" if found is None else f"has {found} bytes"
            raise CheckpointError(
                f"{path} {there}, the ledger says that update {sequence} was sealed with {size} bytes; put the file back, or ask "
                "the operator for a new incarnation"
            )

    def keep_only(self, sequences: Iterable[int]) -> None:
        """Removes every other file: what was never sealed, and what is no longer kept."""
        kept = {self._file(sequence) for sequence in sequences}
        for path in (*self._path.glob(f"*{_ENDING}"), *self._path.glob(f"*{_ASIDE}")):
            if path not in kept:
                path.unlink(missing_ok=True)

    def remove(self, sequence: int) -> None:
        """Lets go of one file."""
        self._file(sequence).unlink(missing_ok=True)

    def _file(self, sequence: int) -> Path:
        return self._path / f"{sequence}{_ENDING}"


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
