"""What has left an institution, by its own ledger: updates, reports, what they cost, and what was charged and never left."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack

from client_worker.course import Norms
from client_worker.ledger_rows import LedgerRow, Totals
from shared.errors import CheckpointError

SENT, WAITING = "sent", "to be sent"
"""Of an update that is not settled yet."""


@dataclass(frozen=True, slots=True)
class Charged:
    """A local training's row. `epsilon` is what it added to `epsilon_in_all`; both are None without noise.

    `budget` is the plan's epsilon, None where the row is of before it was noted.
    """

    row: int
    at_seconds: int
    base_version: int | None
    mechanism: str
    clipping_norm: float | None
    noise_multiplier: float | None
    steps: int
    epsilon: float | None
    epsilon_in_all: float | None
    target_delta: float | None
    budget: float | None


@dataclass(frozen=True, slots=True)
class SentUpdate:
    """An update that was sealed. Figures are None where its row is of before they were kept.

    `norm` is of the noised values, as they leave. `norms` are before the noise, and private.
    """

    charged: Charged
    sequence: int
    sealed_at_seconds: int
    hash: str
    size: int | None
    norm: float | None
    noise_norm: float | None
    norms: Norms | None
    sent_at_seconds: int | None = None
    outcome: str = WAITING


@dataclass(frozen=True, slots=True)
class SentReport:
    """Noised figures of a version's model on validation rows; charged before they left."""

    row: int
    at_seconds: int
    version: int
    epsilon: float


@dataclass(slots=True)
class Sent:
    """Everything, in the order of the ledger. `unsent` was charged and never sealed; the last of it may be under way."""

    updates: list[SentUpdate] = field(default_factory=list)
    reports: list[SentReport] = field(default_factory=list)
    unsent: list[Charged] = field(default_factory=list)
    totals: Totals = field(default_factory=Totals)
    counted_at_seconds: int | None = None
    rows: int = 0
    last_hash: str = ""

    def update(self, sequence: int) -> SentUpdate | None:
        """The update of this number."""
        return self.updates[sequence - 1] if 0 < sequence <= len(self.updates) else None

    @property
    def epsilon_of_reports(self) -> float:
        """Spent by validation rows; sums, by basic composition."""
        return sum(report.epsilon for report in self.reports)

    @property
    def size(self) -> int:
        """Bytes of all updates, as far as they were noted."""
        return sum(update.size or 0 for update in self.updates)


def sent(rows: Iterable[LedgerRow], private: Mapping[int, bytes]) -> Sent:
    """`private` are packed figures by sequence. Raises CheckpointError at a row that cannot be read."""
    found, open_charges = Sent(), dict[int, Charged]()
    updates = dict[int, dict[str, Any]]()
    for row in rows:
        try:
            _take(row, found, open_charges, updates)
        except (KeyError, TypeError) as error:
            raise CheckpointError(
                f"row {row.number} ({row.state}) does not say {error}; see `fedqueue privacy ledger verify`"
            ) from error
        found.totals.add(row.state, row.fields, row.at_seconds)
        found.rows, found.last_hash = row.number, row.hash
    found.updates = [SentUpdate(**fields, norms=_norms(private.get(sequence))) for sequence, fields in sorted(updates.items())]
    found.unsent = list(open_charges.values())
    return found


def _take(row: LedgerRow, found: Sent, open_charges: dict[int, Charged], updates: dict[int, dict[str, Any]]) -> None:
    fields = row.fields
    match row.state:
        case "RESERVED":
            open_charges[row.number] = _charged(row, fields, found.totals)
        case "SEALED":
            updates[fields["sequence"]] = _sealed(row, fields, open_charges.pop(fields["reservation"]))
        case "PUBLISHED":
            updates[fields["sequence"]].setdefault("sent_at_seconds", row.at_seconds)
            updates[fields["sequence"]].setdefault("outcome", SENT)
        case "SETTLED":
            updates[fields["sequence"]]["outcome"] = fields["outcome"]
        case "REPORTED":
            found.reports.append(SentReport(row.number, row.at_seconds, fields["version"], fields["epsilon"]))
        case "COUNTED":
            found.counted_at_seconds = row.at_seconds


def _charged(row: LedgerRow, fields: Mapping[str, Any], totals: Totals) -> Charged:
    in_all, target_delta = fields["epsilon_spent"], fields.get("target_delta")
    before = max(totals.set_aside, totals.epsilon_spent.get(target_delta, 0.0)) if target_delta is not None else 0.0
    return Charged(
        row=row.number,
        at_seconds=row.at_seconds,
        base_version=fields.get("base_version"),
        mechanism=fields.get("mechanism", ""),
        clipping_norm=fields.get("clipping_norm"),
        noise_multiplier=fields["noise_multiplier"],
        steps=fields["steps"],
        epsilon=None if in_all is None else max(0.0, in_all - before),
        epsilon_in_all=in_all,
        target_delta=target_delta,
        budget=fields.get("epsilon_budget"),
    )


def _sealed(row: LedgerRow, fields: Mapping[str, Any], charged: Charged) -> dict[str, Any]:
    std, coordinates = fields.get("noise_std"), fields.get("coordinates")
    return {
        "charged": charged,
        "sequence": fields["sequence"],
        "sealed_at_seconds": row.at_seconds,
        "hash": fields["hash"],
        "size": fields.get("bytes"),
        "norm": fields.get("norm"),
        "noise_norm": None if std is None or coordinates is None else std * coordinates**0.5,
    }


def _norms(packed: bytes | None) -> Norms | None:
    if packed is None:
        return None
    fields = msgpack.unpackb(packed)
    return Norms(**{name: fields[name] for name in Norms.__dataclass_fields__})
