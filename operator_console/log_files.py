"""Log files and standard input, as lines: read to their end, or followed while they are written."""

import gzip
import os
import re
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO

import typer

from shared.errors import SettingsError

LONGEST_LINE = 8192
"""Bytes of a log's line that are read; the rest of it is passed over."""
STANDARD_INPUT = Path("-")
_AGO = re.compile(r"(\d+)\s*(s|min|h|d)")
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def lines_of(file: Path) -> Iterator[str]:
    """A log's lines, each cut at LONGEST_LINE; bytes that are no UTF-8 become backslashes. `-` is standard input.

    Only a newline ends a line: whatever else a stranger wrote stands inside one. Raises SettingsError.
    """
    if file == STANDARD_INPUT:
        yield from map(_decoded, _cut(sys.stdin.buffer))
        return
    try:
        with file.open("rb") as plain, gzip.open(plain) if file.suffix == ".gz" else nullcontext(plain) as opened:
            yield from map(_decoded, _cut(opened))
    except (OSError, EOFError) as error:
        raise SettingsError(f"the log {file} cannot be read: {error}") from error


def _decoded(line: bytes) -> str:
    return line.decode("utf-8", errors="backslashreplace")


def _cut(opened: "IO[bytes] | gzip.GzipFile") -> Iterator[bytes]:
    whole = True
    while part := opened.readline(LONGEST_LINE):
        if whole:
            yield part
        whole = part.endswith(b"\n")


class Tail:
    """A file that is being written, read from its beginning; one that was rotated away is read to its end, then its successor."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._opened: IO[bytes] | None = None

    def lines(self) -> Iterator[str]:
        """The whole lines that have come since the last call. A file that is not there yet has none."""
        if self._opened is None:
            try:
                self._opened = self.file.open("rb")
            except FileNotFoundError:
                return
            except OSError as error:
                raise SettingsError(f"the log {self.file} cannot be read: {error}") from error
        yield from self._whole(self._opened)
        if self._is_another():
            yield from self._whole(self._opened)  # what was written between the two looks
            self.close()
            yield from self.lines()

    def _whole(self, opened: IO[bytes]) -> Iterator[str]:
        while True:
            at = opened.tell()
            line = opened.readline()
            if not line.endswith(b"\n"):
                opened.seek(at)
                return
            yield _decoded(line[:LONGEST_LINE])

    def _is_another(self) -> bool:
        """Whether the name is now that of another file, or the file was emptied."""
        if self._opened is None:
            return False
        try:
            now, ours = self.file.stat(), os.fstat(self._opened.fileno())
        except FileNotFoundError:
            return False
        return (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino) or now.st_size < self._opened.tell()

    def close(self) -> None:
        """Lets go of the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None


def moment(text: str, option: str = "--since") -> datetime:
    """The time that an option names: a moment, or so long ago. Raises BadParameter."""
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return datetime.now(UTC) - timedelta(seconds=int(ago[1]) * _UNITS[ago[2]])
    try:
        return datetime.fromisoformat(text.strip()).astimezone()
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is neither a time such as 2026-11-21T08:00 nor 30min, 2h or 7d", param_hint=option
        ) from error
