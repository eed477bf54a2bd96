"""A roll-back: a model that the operator has made takes the newest one's place, as a new and higher version. Pure.

The order carries the model in chunks; the manifest that makes the version tells in its outcome what the model is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, ValidationError

from shared import messages
from shared.chunks import split
from shared.errors import IncompatibleUpdateError, MalformedMessageError
from shared.messages import Count, Hash, Manifest, Operation
from shared.parameters import Parameters, Shapes, require_shapes
from shared.plan import Frozen

KIND: Literal["roll-back"] = "roll-back"
_TOLD = re.compile(r"to version ([0-9]+)(?: without ([0-9a-f]{16}))?")


@dataclass(frozen=True, slots=True)
class RollBack:
    """Which version the model is, and without whose updates (a pseudonym; empty where with everybody's)."""

    to_version: int
    without: str = ""

    def told(self) -> str:
        """As the outcome of the order has it, in the manifest."""
        return f"to version {self.to_version}" + (f" without {self.without}" if self.without else "")


class ModelChunk(Frozen):
    """One chunk of a model, as the arguments of a roll-back; all orders of one roll-back have the same id.

    `replaces` is the hash of the model that was the newest when this one was made: what came since would be lost unseen.
    """

    to_version: Count
    without: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")]
    replaces: Hash
    headers: dict[str, int | str]
    body: bytes


def rolled_back(manifest: Manifest) -> RollBack | None:
    """The roll-back that made a manifest's version; None for every other manifest."""
    for done in manifest.operations:
        told = _TOLD.fullmatch(done.reason) if done.kind == KIND and done.applied else None
        if told is not None:
            return RollBack(int(told[1]), told[2] or "")
    return None


def orders(
    model: Parameters, wanted: RollBack, *, run_id: str, operation_id: str, replaces: str, chunk_bytes: int
) -> Iterator[Operation]:
    """The orders that carry a model, in their order. It travels in float32, whatever the plan's broadcast."""
    blob = messages.encode_model(run_id, model)
    for message in split(blob, kind="model", run_id=run_id, identity=blob.hash, chunk_bytes=chunk_bytes):
        headers = {name: value for name, value in message.headers.items() if isinstance(value, int | str)}
        chunk = ModelChunk(
            to_version=wanted.to_version, without=wanted.without, replaces=replaces, headers=headers, body=message.body
        )
        yield Operation(run_id=run_id, operation_id=operation_id, kind=KIND, arguments=chunk.model_dump())


def chunk_of(order: Operation) -> ModelChunk:
    """The chunk that an order carries. Raises MalformedMessageError where it carries none."""
    try:
        return ModelChunk.model_validate(order.arguments)
    except ValidationError as error:
        raise MalformedMessageError(f"the order does not hold a chunk of a model: {error.errors()[0]['type']}") from error


def checked_model(content: bytes | memoryview, shapes: Shapes) -> Parameters:
    """The parameters of a model blob, as views into it. Raises RejectedMessageError where nobody could go on from them."""
    model = messages.decode_model(content, max_bytes=len(content))
    require_shapes(model, shapes)
    for name, array in model.items():
        if not np.isfinite(array).all():
            raise IncompatibleUpdateError(f"the array {name!r} holds a number that is not finite")
    return model
