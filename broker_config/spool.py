"""A download's file: what has come of one blob, and where to go on, so that neither a lost connection nor a kill -9 costs it.

The blob's bytes stand first and a fixed tail behind them says how far they go. It is not fsynced: after a power cut the
hash over all of it does not fit, and the download begins again.
"""

import hashlib
import mmap
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import msgpack

from shared.errors import StorageError

_TAIL_BYTES = 512


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download has come. `offset` is where the stream is read on, `begun_at` where the first chunk was looked for."""

    version: int
    hash: str
    size: int
    chunks: int
    begun_at: int
    offset: int
    chunk: int = 0
    written_bytes: int = 0

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return self.chunk == self.chunks


class Spool:
    """One file, for one download at a time; its space is taken at once and used again.

    Raises StorageError when it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.progress: Progress | None = None
        self._path = path
        self._file = -1
        self._view: mmap.mmap | None = None
        self._digest = hashlib.sha256()
        if path.exists():
            self._load()

    def begin(self, progress: Progress) -> None:
        """Makes room for another blob; what was there is gone, also for who still holds `content`."""
        try:
            self._make_room(progress.size)
        except OSError as error:
            self.discard()
            raise StorageError(
                f"{self._path}: no room for a model of {progress.size} bytes: {error.strerror}; free space"
            ) from error
        self._digest = hashlib.sha256()
        self._note(progress)

    def add(self, body: bytes, next_offset: int) -> None:
        """Appends the next chunk; the stream is read on from `next_offset`."""
        progress = self._demand_progress()
        try:
            os.pwrite(self._file, body, progress.written_bytes)
        except OSError as error:
            raise StorageError(f"{self._path}: {error.strerror}; free space or mend the rights") from error
        self._digest.update(body)
        written = progress.written_bytes + len(body)
        self._note(replace(progress, chunk=progress.chunk + 1, written_bytes=written, offset=next_offset))

    def look_from(self, offset: int) -> None:
        """The same blob was published again elsewhere: what is missing is looked for from there."""
        self._note(replace(self._demand_progress(), begun_at=offset, offset=offset))

    @property
    def intact(self) -> bool:
        """Whether the bytes are all there and have the blob's hash."""
        progress = self.progress
        return progress is not None and progress.written_bytes == progress.size and self._digest.hexdigest() == progress.hash

    def content(self) -> memoryview:
        """The whole blob where it lies on disk; it changes when the next one begins."""
        progress = self._demand_progress()
        if self._view is None:
            self._view = mmap.mmap(self._file, progress.size, access=mmap.ACCESS_READ)
        return memoryview(self._view)

    def discard(self) -> None:
        """Forgets the download and gives its space back."""
        self.close()
        self.progress = None
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the file, which can be gone on with later."""
        if self._file >= 0:
            os.close(self._file)
        self._file, self._view = -1, None

    def _demand_progress(self) -> Progress:
        if self.progress is None:
            raise ValueError("a spool was used before a download began")
        return self.progress

    def _make_room(self, size: int) -> None:
        if self._file >= 0 and os.fstat(self._file).st_size == size + _TAIL_BYTES:
            return
        self.discard()
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(self._file, 0, size + _TAIL_BYTES)

    def _note(self, progress: Progress) -> None:
        os.pwrite(self._file, msgpack.packb(asdict(progress)).ljust(_TAIL_BYTES, b"\0"), progress.size)
        self.progress = progress

    def _load(self) -> None:
        """Takes up what an earlier process left, if it can be made out."""
        self._file = os.open(self._path, os.O_RDWR)
        size = os.fstat(self._file).st_size - _TAIL_BYTES
        try:
            unpacker = msgpack.Unpacker()
            unpacker.feed(os.pread(self._file, _TAIL_BYTES, max(0, size)))
            self.progress = Progress(**unpacker.unpack())
            if self.progress.size != size or not 0 <= self.progress.written_bytes <= size:
                raise ValueError("the tail is not of this file")  # noqa: TRY301 - one way out for all that cannot be read
        except (ValueError, TypeError, msgpack.exceptions.UnpackException):
            self.discard()
            return
        with memoryview(self.content()) as there:
            self._digest.update(there[: self.progress.written_bytes])
        if self.progress.complete and not self.intact:
            self.discard()
