"""The model of a roll-back, put together from its orders on disk: whatever its size, one chunk is in memory at a time."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from aggregator_worker.roll_back import ModelChunk, RollBack, chunk_of
from shared.broker import Message
from shared.chunks import Assembly, head
from shared.errors import MalformedMessageError, StorageError
from shared.messages import Operation


@dataclass(frozen=True, slots=True, eq=False)
class ModelUpload:
    """A whole model, still encoded, and what the operator says of it."""

    content: bytes
    wanted: RollBack
    replaces: str


@dataclass(slots=True, eq=False)
class _Partial:
    operation_id: str
    wanted: RollBack
    replaces: str
    assembly: Assembly
    spool: BinaryIO


@dataclass(slots=True, eq=False)
class ModelUploads:
    """One upload is under way at a time; a chunk of another order gives up on the former. Files have no name."""

    folder: Path
    _partial: _Partial | None = field(default=None, init=False)

    def take(self, order: Operation, *, max_bytes: int) -> ModelUpload | None:
        """One order in; the model out once it is whole, None before. Nothing is kept of one that is refused.

        Raises RejectedMessageError where a chunk is wrong or its beginning was lost, StorageError where the disk is full.
        """
        try:
            chunk = chunk_of(order)
            complete = self._add(order.operation_id, chunk, max_bytes=max_bytes)
            return self._whole() if complete else None
        except MalformedMessageError:
            self.close()
            raise
        except OSError as error:
            self.close()
            raise StorageError(f"{self.folder}: {error.strerror}; free space, the order is kept in its queue") from error

    def _add(self, operation_id: str, chunk: ModelChunk, *, max_bytes: int) -> bool:
        said = head(Message(chunk.body, "model", operation_id, chunk.headers), max_bytes=max_bytes)
        wanted = RollBack(chunk.to_version, chunk.without)
        partial = self._partial
        if partial is None or partial.operation_id != operation_id:
            self.close()
            spool = self._new_spool()
            partial = self._partial = _Partial(operation_id, wanted, chunk.replaces, Assembly(said, spool), spool)
        if (partial.wanted, partial.replaces) != (wanted, chunk.replaces):
            raise MalformedMessageError("the orders of one roll-back disagree about it")
        return partial.assembly.add(said, chunk.body)

    def _new_spool(self) -> BinaryIO:
        return tempfile.TemporaryFile(dir=self.folder)

    def _whole(self) -> ModelUpload:
        partial = self._partial
        if partial is None:
            raise ValueError("no model is under way")
        partial.assembly.check()
        partial.spool.seek(0)
        upload = ModelUpload(partial.spool.read(), partial.wanted, partial.replaces)
        self.close()
        return upload

    def close(self) -> None:
        """Lets go of what is under way."""
        if self._partial is not None:
            self._partial.spool.close()
            self._partial = None
