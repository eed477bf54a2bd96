"""The console's own audit: `audit.jsonl`, a line for each login and each order, which only grows."""

import json
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.errors import StorageError
from shared.printable import printable

FILE = "audit.jsonl"
LONGEST = 400
_TAIL_BYTES = 2**18


class Trail:
    """Appends lines, each whole or not at all, and reads the newest ones."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()

    def write(self, who: str, did: str, got: str, *, address: str = "") -> None:
        """One line, on disk when this returns. Raises StorageError: then what it would have told must not be done."""
        at = datetime.now(UTC).isoformat(timespec="milliseconds")
        texts = {"who": who, "did": did, "got": got, "address": address}
        line = json.dumps({"at": at, **{name: printable(text, LONGEST) for name, text in texts.items()}}) + "\n"
        try:
            with self._lock:
                self.file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                with os.fdopen(handle, "ab", buffering=0) as out:
                    out.write(line.encode())
                    os.fsync(handle)
        except OSError as error:
            raise StorageError(f"{self.file} cannot be written ({error.strerror}), so nothing was done: make room") from error

    def newest(self, most: int) -> Sequence[dict[str, Any]]:
        """So many lines at most, newest first."""
        try:
            with self.file.open("rb") as opened:
                size = opened.seek(0, os.SEEK_END)
                opened.seek(max(0, size - _TAIL_BYTES))
                lines = opened.read().splitlines()[1 if size > _TAIL_BYTES else 0 :]
        except FileNotFoundError:
            return []
        return [found for line in reversed(lines[-most:]) if (found := _read(line)) is not None]


def _read(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None  # a disk was full, or somebody wrote into it by hand
    return found if isinstance(found, dict) else None
