"""What the rows of a privacy ledger are, how each follows from the one before, and what they add up to. No disk, no clock."""

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import msgpack

from client_worker.mechanism import Charge
from client_worker.outbox import LARGE_BYTES
from shared.errors import CheckpointError

State = Literal["OPENED", "DATASET", "COUNTED", "CARRIED", "RESERVED", "SEALED", "PUBLISHED", "SETTLED", "REPORTED"]
SELECT_ROWS = "SELECT number, state, at_seconds, fields, previous, hash FROM ledger ORDER BY number"
FIRST_PREVIOUS = ""
_SALT_BYTES = 16


class LedgerRow(NamedTuple):
    """One row as it lies in the file: `packed` are its fields in MessagePack, `hash` covers all before it by `previous`."""

    number: int
    state: str
    at_seconds: int
    packed: bytes
    previous: str
    hash: str

    @property
    def fields(self) -> Mapping[str, Any]:
        """What the row says. Raises CheckpointError where nobody can have written that."""
        try:
            fields = msgpack.unpackb(self.packed)
        except ValueError as error:
            raise CheckpointError(f"row {self.number} cannot be read: {error}") from error
        if not isinstance(fields, dict):
            raise CheckpointError(f"row {self.number} cannot be read: it holds no fields")
        return fields

    def follows(self, number: int, digest: str) -> bool:
        """Whether it is what was written after the row of this number and hash."""
        return (self.number, self.previous) == (number + 1, digest) and self.hash == row_hash(*self[:5])


def row_after(number: int, digest: str, state: State, fields: Mapping[str, Any], *, at_seconds: int) -> LedgerRow:
    """The row that follows the one of this number and hash."""
    packed = msgpack.packb(dict(fields))
    hashed = (number + 1, state, at_seconds, packed, digest)
    return LedgerRow(*hashed, row_hash(*hashed))


def row_hash(number: int, state: str, at_seconds: int, packed: bytes, previous: str) -> str:
    """SHA-256 of the row and, by the hash of the one before, of everything before it."""
    return hashlib.sha256(msgpack.packb([number, state, at_seconds, packed, previous])).hexdigest()


def packed_private(figures: Mapping[str, Any]) -> bytes:
    """What is kept beside a row and not in it, under a salt: nobody can find it out from the hash that the row holds."""
    return bytes(msgpack.packb({**figures, "salt": secrets.token_bytes(_SALT_BYTES)}))


def private_hash(packed: bytes) -> str:
    """What a row holds of private figures."""
    return hashlib.sha256(packed).hexdigest()


def chained(rows: Iterable[LedgerRow], *, source: str) -> Iterator[LedgerRow]:
    """The rows while each follows from the one before. Raises CheckpointError at the first that does not."""
    number, digest = 0, FIRST_PREVIOUS
    for row in rows:
        if not row.follows(number, digest):
            raise CheckpointError(f"{source}: row {row.number} does not follow from the one before; the ledger was altered")
        yield row
        number, digest = row.number, row.hash


@dataclass(frozen=True, slots=True)
class Sealed:
    """An update that is in the outbox, to be sent as it is now and at every retry."""

    sequence: int
    hash: str
    size: int
    settled: bool = False

    @property
    def in_file(self) -> bool:
        """Whether the bytes lie in a file beside the ledger."""
        return self.size > LARGE_BYTES


@dataclass(slots=True)
class Totals:
    """What the rows add up to.

    `carried` is epsilon that an earlier incarnation had spent, as far as the federation knows; `counted` is the released number
    of examples and its epsilon. `epsilon_spent` is the most that any training stated, by target delta.
    """

    opened: Mapping[str, Any] | None = None
    dataset: Mapping[str, Any] | None = None
    counted: int | None = None
    count_epsilon: float = 0.0
    charges: list[Charge] = field(default_factory=list)
    carried: float = 0.0
    reservations: int = 0
    reports: int = 0
    unprotected: int = 0
    opened_at_seconds: int = 0
    reserved_at_seconds: int = 0
    sealed: tuple[int, str] = (0, "")
    epsilon_spent: dict[float, float] = field(default_factory=dict)

    @property
    def set_aside(self) -> float:
        """Epsilon that is spent beside the trainings: sums, by basic composition."""
        return self.carried + self.count_epsilon

    def add(self, state: str, fields: Mapping[str, Any], at_seconds: int) -> None:
        """Counts one more row, written at this time of the wall clock."""
        match state:
            case "OPENED":
                self.opened, self.opened_at_seconds = fields, at_seconds
            case "DATASET":
                self.dataset = fields
            case "COUNTED":
                self.counted = fields["value"]
                self.count_epsilon += fields["epsilon"]
            case "CARRIED":
                self.carried += fields["epsilon"]
            case "REPORTED":
                self.reports += 1
            case "RESERVED":
                self._reserve(fields, at_seconds)
            case "SEALED":
                self.sealed = (fields["sequence"], fields["hash"])

    def _reserve(self, fields: Mapping[str, Any], at_seconds: int) -> None:
        self.reservations += 1
        self.reserved_at_seconds = at_seconds
        charge = charge_in(fields)
        if charge is None:
            self.unprotected += 1
        else:
            self.charges.append(charge)
        spent, target_delta = fields["epsilon_spent"], fields.get("target_delta")
        if spent is not None and target_delta is not None:
            self.epsilon_spent[target_delta] = max(spent, self.epsilon_spent.get(target_delta, 0.0))


def charge_in(fields: Mapping[str, Any]) -> Charge | None:
    """What a RESERVED row charges; None for a training without noise. Noise on the whole update is one Gaussian."""
    if fields["noise_multiplier"] is None:
        return None
    if fields.get("mechanism") == "update-gaussian":
        return Charge(fields["noise_multiplier"], 1.0, 1)
    return Charge(fields["noise_multiplier"], fields["sample_rate"], fields["steps"])
