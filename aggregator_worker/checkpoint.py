"""The aggregator's own disk: one file with the newest state, the manifest that names it and the manifests before that."""

import base64
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgpack
import safetensors
import safetensors.numpy

from shared import messages
from shared.errors import CheckpointError, RejectedMessageError, StorageError
from shared.lineage import Lineage
from shared.messages import ManifestRecord
from shared.parameters import Array, Parameters

FILE_NAME = "checkpoint.safetensors"
_ASIDE = f"{FILE_NAME}.new"
KEPT_RECORDS = 16
"""How many manifests a checkpoint holds: enough to publish again what a broker loses of its streams in a power cut."""
_MAX_RECORD_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """The last manifests' records, oldest first, and the state that the newest one stands for (`ServerState.everything`).

    It is on disk before anybody hears of the newest: that one may never have been published.
    """

    records: Sequence[ManifestRecord]
    state: Mapping[str, Array]

    @property
    def newest(self) -> ManifestRecord:
        """The record that the state belongs to."""
        return self.records[-1]


@dataclass(frozen=True, slots=True)
class Restoration:
    """Where the state comes from: the `checkpoint`, or the `broker`'s blobs; and which records must be published first."""

    state: Literal["checkpoint", "broker"]
    missing: Sequence[ManifestRecord] = ()


def save(folder: Path, records: Sequence[bytes], state: Parameters) -> None:
    """Durable when it returns: written aside, fsynced, renamed, the folder fsynced. Raises StorageError.

    `records` are encoded by `messages.encode_record`, oldest first.
    """
    metadata = {"records": base64.b64encode(msgpack.packb(list(records))).decode()}
    aside = folder / _ASIDE
    try:
        safetensors.numpy.save_file(dict(state), aside, metadata=metadata)
        _sync(aside)
        aside.replace(folder / FILE_NAME)
        _sync(folder)
    except (OSError, safetensors.SafetensorError) as error:
        _let_go(aside)
        raise StorageError(f"{aside}: {error}; free space or mend the rights, nothing was acknowledged") from error


def size_of(folder: Path) -> int:
    """The bytes of the checkpoint that a folder holds, 0 where it holds none."""
    path = folder / FILE_NAME
    return path.stat().st_size if path.exists() else 0


def require_room(folder: Path, size: int) -> None:
    """Raises StorageError where so many bytes cannot be written beside a checkpoint; nothing of them stays."""
    aside = folder / _ASIDE
    try:
        with aside.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, size))
    except OSError as error:
        raise StorageError(f"{folder} has no room for {size} bytes: {error.strerror}; free space or mend the rights") from error
    finally:
        _let_go(aside)


def _let_go(aside: Path) -> None:
    with suppress(OSError):
        aside.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(folder: Path) -> Checkpoint | None:
    """The checkpoint of a state folder, or None where there is none. Raises CheckpointError when it is damaged."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            packed = msgpack.unpackb(base64.b64decode(file.metadata()["records"], validate=True))
            records = [messages.decode_record(record, max_bytes=_MAX_RECORD_BYTES) for record in packed]
            state = {name: file.get_tensor(name) for name in sorted(file.keys())}
        return Checkpoint(records[-KEPT_RECORDS:], state) if records else None
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError, RejectedMessageError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); move it away to start from the broker's lineage instead"
        ) from error


def decide(lineage: Lineage, checkpoint: Checkpoint | None, once_told: Callable[[Collection[str]], bool]) -> Restoration:
    """What a checkpoint is worth against the lineage: the head itself, what comes after the head, or nothing.

    `once_told` searches the whole stream for manifests by their hashes: a standby may have been away for thousands.
    Raises CheckpointError when it belongs to another run, or to a chain of which the lineage kept nothing.
    """
    if lineage.head is None:
        raise CheckpointError("a checkpoint is judged against a lineage that has a head")
    if checkpoint is None:
        return Restoration("broker")
    newest, head = checkpoint.newest.manifest, lineage.head.manifest
    if newest.run_id != head.run_id:
        raise CheckpointError(
            f"the state folder belongs to run {newest.run_id}, the broker holds run {head.run_id}; "
            "give this aggregator a folder of its own"
        )
    known = [checkpoint.records[0].manifest.previous, *(record.hash for record in checkpoint.records)]
    if lineage.head.hash in known:
        return Restoration("checkpoint", checkpoint.records[known.index(lineage.head.hash) :])
    if not set(known).isdisjoint(lineage.hashes) or (head.version >= newest.version and once_told(known)):
        return Restoration("broker")  # the chain went on without this host
    raise CheckpointError(
        f"the checkpoint of version {newest.version} and the lineage (version {head.version}) have no manifest in common: the "
        "stream lost more than a checkpoint keeps, or this folder is older than what the stream still tells; if the lineage is "
        "right, move the checkpoint away"
    )
