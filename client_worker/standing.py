"""What the federation's table says of this institution, held against what its own ledger knows."""

import time
from collections.abc import Callable, Mapping

from client_worker.ledger_rows import Sealed
from client_worker.local_work import Member
from shared.errors import CheckpointError, TopologyError
from shared.lineage import Lineage
from shared.messages import Entry

SAME_MODEL_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0


def require_membership(lineage: Lineage, member: Member) -> Entry:
    """The institution's entry of the table. Raises TopologyError when it is no member of this run, or not with this kit."""
    run_id = lineage.head.manifest.run_id if lineage.head else ""
    if run_id != member.run_id:
        raise TopologyError(f"the broker holds run {run_id}, {member.institution} was admitted to run {member.run_id}")
    entry = (lineage.table or {}).get(member.pseudonym)
    if entry is None or entry.removed:
        raise TopologyError(f"{member.institution} is not a member of this federation; ask the operator to add it")
    if entry.incarnation > member.incarnation:
        raise TopologyError(f"incarnation {entry.incarnation} was issued after this one; use the newer kit, or stop this service")
    return entry


def next_nonce(former: str) -> str:
    """A nonce above the one that was answered last, also where a clock was set back: an older hello is taken for a replay."""
    return f"{max(time.time_ns(), int(former or '0', 16) + 1):016x}"


def require_same_history(entry: Entry, head_sequence: int, kept: Mapping[int, Sealed]) -> None:
    """Whether every update above the watermark can be sent again; `kept` is the outbox by sequence.

    Raises CheckpointError where the ledger is behind the table, further ahead than it has kept, or of another hash.
    """
    watermark, own = entry.watermark, kept.get(entry.watermark)
    if watermark > head_sequence or (own is not None and _differs(entry, own)):
        raise CheckpointError(
            f"the aggregator has settled update {watermark}, this ledger ends at {head_sequence} or disagrees about it: "
            "it is a restored backup, or the service runs twice; ask the operator for a new incarnation"
        )
    missing = [sequence for sequence in range(watermark + 1, head_sequence + 1) if sequence not in kept]
    if missing:
        raise CheckpointError(
            f"the aggregator has settled updates up to {watermark}, and update {missing[0]} is no longer kept here: the "
            "federation's table is of an older day; ask the operator for a new incarnation"
        )


def require_own(entry: Entry, head_sequence: int, kept: Mapping[int, Sealed]) -> None:
    """Raises CheckpointError where something was settled under this institution's name that it has not sealed."""
    if entry.watermark > head_sequence:
        raise CheckpointError(
            f"update {entry.watermark} was settled under our name and is not ours; the service runs twice, stop one of the two"
        )
    own = kept.get(entry.watermark)
    if own is not None and _differs(entry, own):
        raise CheckpointError(
            "an update that is not ours was settled under our name; the service runs twice, stop one of the two"
        )


def _differs(entry: Entry, own: Sealed) -> bool:
    return entry.last_hash not in ("", own.hash)  # empty: it was settled as lost, nobody saw its bytes


class SameModelPause:
    """Training again on the model of the last training spends epsilon for little: it waits, longer each time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._model = ""
        self._seconds = 0.0
        self._over_at = 0.0

    def holds(self, model: str) -> bool:
        """Whether it is too early for a training on this model."""
        return model == self._model and self._clock() < self._over_at

    def begun(self, model: str) -> None:
        """A training on this model has begun."""
        again = min(2 * self._seconds, LONGEST_PAUSE_SECONDS)
        self._seconds = again if model == self._model else SAME_MODEL_PAUSE_SECONDS
        self._model, self._over_at = model, self._clock() + self._seconds
