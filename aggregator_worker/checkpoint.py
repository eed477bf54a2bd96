"""The aggregator's own disk: one file that holds the newest manifest's content and the parameters it names."""

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import safetensors
import safetensors.numpy

from shared import codec, messages
from shared.errors import CheckpointError, RejectedMessageError, StorageError
from shared.lineage import Lineage
from shared.messages import Manifest
from shared.parameters import Array, Parameters

FILE_NAME = "checkpoint.safetensors"
_MAX_CONTENT_BYTES = 64 * 2**20

Use = Literal["use", "publish", "fetch"]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A manifest's content and the model it names, on disk before anybody hears of it."""

    content: bytes
    manifest: Manifest
    parameters: Mapping[str, Array]

    @property
    def hash(self) -> str:
        """The manifest's identity."""
        return codec.content_hash(self.content)


def save(folder: Path, content: bytes, epoch: int, parameters: Parameters) -> None:
    """Durable when it returns: written aside, fsynced, renamed, the folder fsynced. Raises StorageError."""
    metadata = {"epoch": str(epoch), "manifest": base64.b64encode(content).decode()}
    aside = folder / f"{FILE_NAME}.new"
    try:
        with aside.open("wb") as file:
            file.write(safetensors.numpy.save(dict(parameters), metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        aside.replace(folder / FILE_NAME)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"{aside}: {error.strerror}; free space or mend the rights, nothing was acknowledged") from error


def load(folder: Path) -> Checkpoint | None:
    """The checkpoint of a state folder, or None where there is none. Raises CheckpointError when it is damaged."""
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            parameters = {name: file.get_tensor(name) for name in sorted(file.keys())}
        content = base64.b64decode(metadata["manifest"], validate=True)
        manifest = messages.decode_manifest(content, max_bytes=_MAX_CONTENT_BYTES)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError, RejectedMessageError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}); move it away to start from the broker's lineage instead"
        ) from error
    return Checkpoint(content, manifest, parameters)


def decide(lineage: Lineage, checkpoint: Checkpoint | None) -> Use:
    """What a checkpoint is worth against the lineage: the head itself, the head's unpublished successor, or nothing.

    Raises CheckpointError when it belongs to another run, or to a chain of which the lineage kept nothing.
    """
    if lineage.head is None:
        raise CheckpointError("a checkpoint is judged against a lineage that has a head")
    if checkpoint is None:
        return "fetch"
    if checkpoint.manifest.run_id != lineage.head.manifest.run_id:
        raise CheckpointError(
            f"the state folder belongs to run {checkpoint.manifest.run_id}, the broker holds run {lineage.head.manifest.run_id}; "
            "give this aggregator a folder of its own"
        )
    if checkpoint.hash == lineage.head.hash:
        return "use"
    if checkpoint.manifest.previous == lineage.head.hash:
        return "publish"
    if checkpoint.hash in lineage.hashes or checkpoint.manifest.previous in lineage.hashes:
        return "fetch"
    raise CheckpointError(
        f"the checkpoint of version {checkpoint.manifest.version} and the lineage (version {lineage.head.manifest.version}) "
        "have no manifest in common; the stream may have lost its tail"
    )
