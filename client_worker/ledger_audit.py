"""Whether a ledger is what a worker wrote, whole and in order, and whether it ever stated less than what it had spent."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from client_worker.ledger_reading import Kept, LedgerContent
from client_worker.ledger_rows import LedgerRow, Totals, chained, charge_in, private_hash
from client_worker.mechanism import Charge
from shared.errors import CheckpointError, FederationError

Accountant = Callable[[Sequence[Charge], float], float]
"""Epsilon of charges together at a target delta."""
ARITHMETIC = 1e-6
"""By so much, relatively, one accountant's answers may differ between machines."""


class WrongLedgerError(FederationError):
    """Keep the file as it is, look at the row that the text names, and ask the operator for a new incarnation."""


@dataclass(slots=True)
class LedgerAudit:
    """Takes the rows in order; `finish` looks at the outbox. Raises WrongLedgerError at the first row that is wrong."""

    epsilon: Accountant
    totals: Totals = field(default_factory=Totals)
    sealed: dict[int, str] = field(default_factory=dict)
    _open_reservations: set[int] = field(default_factory=set)
    _settled: set[int] = field(default_factory=set)
    _private: dict[int, str | None] = field(default_factory=dict)

    def take(self, row: LedgerRow) -> None:
        """One more row, whose place in the chain holds."""
        try:
            fields = row.fields
            wrong = self._first_row(row) or self._wrong(row, fields)
            self.totals.add(row.state, fields, row.at_seconds)
        except CheckpointError as error:
            raise WrongLedgerError(str(error)) from error
        except (KeyError, TypeError) as error:
            raise WrongLedgerError(f"row {row.number} ({row.state}) does not say {error}") from error
        if wrong:
            raise WrongLedgerError(f"row {row.number} ({row.state}): {wrong}")

    def _first_row(self, row: LedgerRow) -> str:
        return "" if (row.number == 1) == (row.state == "OPENED") else "a ledger is opened by its first row, and only by that"

    def _wrong(self, row: LedgerRow, fields: Mapping[str, Any]) -> str:
        match row.state:
            case "OPENED" | "DATASET" | "CARRIED" | "REPORTED":
                return ""
            case "COUNTED":
                return "the number of examples was released before" if self.totals.counted is not None else ""
            case "RESERVED":
                self._open_reservations.add(row.number)
                return self._wrong_reservation(fields)
            case "SEALED":
                return self._wrong_seal(fields)
            case "PUBLISHED" | "SETTLED":
                if row.state == "SETTLED":
                    self._settled.add(fields["sequence"])
                return "" if fields["sequence"] in self.sealed else f"update {fields['sequence']} was not sealed before it"
            case _:
                return "no such state is known"

    def _wrong_reservation(self, fields: Mapping[str, Any]) -> str:
        charge, stated = charge_in(fields), fields["epsilon_spent"]
        if charge is None:
            return "" if stated is None else "it states an epsilon and no noise"
        if stated is None:
            return "it has noise and states no epsilon"
        spent = self.totals.set_aside + self.epsilon([*self.totals.charges, charge], fields["target_delta"])
        if stated < spent * (1 - ARITHMETIC):
            return f"it states epsilon {stated:g}, and all up to it comes to {spent:g}"
        return ""

    def _wrong_seal(self, fields: Mapping[str, Any]) -> str:
        reservation, sequence = fields["reservation"], fields["sequence"]
        if reservation not in self._open_reservations:
            return f"row {reservation} reserved nothing, or was used for an update before: an update that was not charged"
        if sequence != len(self.sealed) + 1:
            return f"it seals update {sequence} after update {len(self.sealed)}"
        self._open_reservations.remove(reservation)
        self.sealed[sequence] = fields["hash"]
        self._private[sequence] = fields.get("private")
        return ""

    def finish(self, outbox: Sequence[Kept], private: Mapping[int, bytes]) -> None:
        """Every update that is kept has the bytes that were sealed, and every one that may still be sent is kept.

        Private figures may be missing, from an auditor's copy say; those that are there are as they were.
        """
        for sequence, packed in sorted(private.items()):
            if self._private.get(sequence) != private_hash(packed):
                raise WrongLedgerError(f"the private figures of update {sequence} are not those that were kept with it")
        for kept in outbox:
            sequence, digest = kept.sealed.sequence, kept.sealed.hash
            if self.sealed.get(sequence) != digest:
                raise WrongLedgerError(f"the outbox holds an update {sequence} that no row sealed; rows were removed")
            if kept.found != digest:
                how = "are missing" if kept.found is None else "are not those that were sealed"
                raise WrongLedgerError(f"the bytes of update {sequence} in the outbox {how}")
        held = {kept.sealed.sequence for kept in outbox}
        wanted = {*(set(self.sealed) - self._settled), *([max(self.sealed)] if self.sealed else [])}
        if missing := sorted(wanted - held):
            raise WrongLedgerError(
                f"update {missing[0]} is sealed and may still have to be sent, and the outbox does not hold it"
            )


def audited(content: LedgerContent, epsilon: Accountant, *, source: str) -> LedgerAudit:
    """The whole ledger, checked. Raises WrongLedgerError."""
    audit = LedgerAudit(epsilon)
    try:
        for row in chained(content.rows, source=source):
            audit.take(row)
    except CheckpointError as error:
        raise WrongLedgerError(str(error)) from error
    audit.finish(content.outbox, content.private)
    return audit
