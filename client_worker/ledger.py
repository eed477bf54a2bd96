"""The privacy ledger and the outbox: a noised update and what it cost are on disk by one commit of one SQLite file.

Append-only rows, chained by hash: DATASET before the first training, RESERVED before its first noised step, SEALED with the
bytes in the outbox, PUBLISHED, SETTLED. Epsilon counts everything reserved; nothing lowers it. A retry sends the same bytes and
draws no new noise.
"""

import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from client_worker.ledger_file import lock, prepare, unopened, written
from client_worker.ledger_rows import (
    SELECT_ROWS,
    LedgerRow,
    Sealed,
    State,
    Totals,
    chained,
    packed_private,
    private_hash,
    row_after,
)
from client_worker.outbox import OutboxFolder
from client_worker.sent import Sent, sent
from shared.codec import Encoded
from shared.errors import CheckpointError, SettingsError, StorageError

KEPT_SETTLED = 8
"""Settled updates kept for re-sending, in case the aggregator's watermark ever goes back."""
ROUNDING = 1e-3
"""By so much, relatively, two accountings of one history may differ: each rounds up in its own way."""

Row = tuple[State, Mapping[str, Any]]
Statement = tuple[str, tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A local training that is charged from now on, whether or not it ever ends."""

    number: int
    epsilon_spent: float | None


@dataclass(frozen=True, slots=True)
class Beside:
    """What is kept of an update besides its bytes. `known` is as public as they are; `private` never leaves this file."""

    known: Mapping[str, Any] = field(default_factory=dict)
    private: Mapping[str, Any] = field(default_factory=dict)


NOTHING_BESIDE = Beside()


def _nothing() -> None:
    return


class Ledger:
    """One institution's ledger for one run and incarnation; owned by one thread, which keeps in memory what it needs often.

    Raises CheckpointError when the file is damaged or belongs to another run, StorageError when it cannot be written.
    """

    def __init__(self, path: Path, *, run_id: str, institution: str, incarnation: int) -> None:
        self.folder = path.parent
        self.totals = Totals()
        self._path = path
        self._files = OutboxFolder(path.with_name("outbox"))
        self._last = (0, "")
        self._late: list[Row] = []
        self._late_statements: list[Statement] = []
        self._late_files: list[int] = []
        self._outbox: dict[int, Sealed] = {}
        with ExitStack() as opened:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                opened.enter_context(lock(path))
                path.touch(mode=0o600)
                path.chmod(0o600)  # SQLite gives the files beside it the rights that it has now
                self._database = opened.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=FULL")
                prepare(path, self._database)
                self._read_rows()
                self._read_outbox()
            except (sqlite3.DatabaseError, OSError) as error:
                raise unopened(path, error) from error
            self._open({"run_id": run_id, "institution": institution, "incarnation": incarnation})
            self._opened = opened.pop_all()

    def _read_rows(self) -> None:
        rows = map(LedgerRow._make, self._database.execute(SELECT_ROWS))
        for row in chained(rows, source=str(self._path)):
            self._last = (row.number, row.hash)
            self.totals.add(row.state, row.fields, row.at_seconds)

    def _read_outbox(self) -> None:
        for sequence, digest, size, settled in self._database.execute(
            "SELECT sequence, hash, size, settled FROM outbox ORDER BY sequence"
        ):
            self._outbox[sequence] = Sealed(sequence, digest, size, bool(settled))
        in_files = [sealed for sealed in self._outbox.values() if sealed.in_file]
        for sealed in in_files:
            self._files.require(sealed.sequence, sealed.size)
        self._files.keep_only(sealed.sequence for sealed in in_files)
        if self.head != self.totals.sealed:
            raise CheckpointError(
                f"{self._path}: the last sealed update is {self.totals.sealed[0]}, the outbox ends at {self.head[0]}; bytes were "
                "removed, ask the operator for a new incarnation"
            )

    def _open(self, wanted: Mapping[str, Any]) -> None:
        if self.totals.opened is None:
            self._write(("OPENED", wanted))
        elif self.totals.opened != wanted:
            raise CheckpointError(
                f"{self._path} was opened for {self.totals.opened}, the settings say {wanted}; "
                "a ledger is never used for another run: name another state_folder"
            )

    def require_dataset(self, facts: Mapping[str, Any]) -> None:
        """Writes what is trained on before its first use. Raises SettingsError where the last entry names other rows or units."""
        known = self.totals.dataset
        if known is not None and any(known[key] != facts[key] for key in ("fingerprint", "unit")):
            raise SettingsError(
                f"{self._path} was kept for the training file {known['fingerprint'][:12]} by {known['unit']}, this one is "
                f"{facts['fingerprint'][:12]} by {facts['unit']}. If that is meant, say so with `fedqueue privacy ledger "
                "accept-dataset --config FILE`; what was spent stays spent"
            )
        if known != facts:
            self._write(("DATASET", facts))

    def accept_dataset(self, facts: Mapping[str, Any]) -> None:
        """Another training file from now on, or another unit. What was spent stays spent."""
        self._write(("DATASET", facts))

    def count_once(self, draw: Callable[[float], int], *, epsilon: float) -> int:
        """The released number of examples: `draw` at this epsilon is called at the first time only, and charged."""
        if self.totals.counted is not None:
            return self.totals.counted
        value = draw(epsilon)
        self._write(("COUNTED", {"value": value, "epsilon": epsilon}))
        return value

    @property
    def head(self) -> tuple[int, str]:
        """Sequence and hash of the last sealed update; (0, "") before the first."""
        sealed = self._outbox[max(self._outbox)] if self._outbox else None
        return (sealed.sequence, sealed.hash) if sealed else (0, "")

    @property
    def kept(self) -> Mapping[int, Sealed]:
        """Everything in the outbox by its sequence: what is not settled, and the last few that are."""
        return self._outbox

    def unsettled(self) -> list[Sealed]:
        """What must still be sent, or sent again, in order."""
        return [sealed for sealed in self._outbox.values() if not sealed.settled]

    def reserve(self, fields: Mapping[str, Any], *, epsilon_spent: float | None) -> Reservation:
        """Charges one local training; durable when it returns. Raises CheckpointError where less is spent than before it."""
        self._require_growth(fields.get("target_delta"), epsilon_spent)
        return Reservation(self._write(("RESERVED", {**fields, "epsilon_spent": epsilon_spent})), epsilon_spent)

    def _require_growth(self, target_delta: float | None, epsilon_spent: float | None) -> None:
        """At another target delta an earlier epsilon says nothing."""
        if epsilon_spent is None:
            return
        before = self.totals.epsilon_spent.get(target_delta, 0.0) if target_delta is not None else 0.0
        if not math.isfinite(epsilon_spent) or epsilon_spent < before * (1 - ROUNDING):
            raise CheckpointError(
                f"{self._path}: a training that would bring the epsilon spent to {epsilon_spent:g} cannot follow one at "
                f"{before:g}; nothing was trained. See `fedqueue privacy ledger verify`"
            )

    def seal(
        self,
        reservation: Reservation,
        encode: Callable[[int], Encoded],
        beside: Beside = NOTHING_BESIDE,
        *,
        after_file: Callable[[], None] = _nothing,
    ) -> tuple[Sealed, Encoded]:
        """Gives the next sequence number to an update and puts its bytes and its row on disk, both or neither.

        `after_file` is called where the bytes lie in a file of their own and the row does not yet name it.
        """
        sequence = self.head[0] + 1
        content = encode(sequence)
        sealed = Sealed(sequence, content.hash, content.size)
        if sealed.in_file:
            self._files.write(sequence, content)
            after_file()
        row = (sequence, sealed.hash, sealed.size, None if sealed.in_file else content.joined())
        statements: list[Statement] = [("INSERT INTO outbox (sequence, hash, size, content) VALUES (?, ?, ?, ?)", row)]
        fields = {
            "reservation": reservation.number,
            "sequence": sequence,
            "hash": sealed.hash,
            "bytes": sealed.size,
            **beside.known,
        }
        if beside.private:
            packed = packed_private(beside.private)
            statements.append(("INSERT INTO private VALUES (?, ?)", (sequence, packed)))
            fields["private"] = private_hash(packed)
        try:
            self._write(("SEALED", fields), statements=statements)
        except StorageError:
            self._files.remove(sequence)
            raise
        self._outbox[sequence] = sealed
        return sealed, content

    def published(self, sealed: Sealed) -> None:
        """The broker has confirmed every chunk. Written with the next row: after a crash it is only sent once more."""
        self._late.append(("PUBLISHED", {"sequence": sealed.sequence}))

    def carry(self, epsilon: float) -> None:
        """Charges what an earlier incarnation spent."""
        self._write(("CARRIED", {"epsilon": epsilon}))

    def reported(self, version: int, epsilon: float) -> None:
        """Charges a report on the validation rows; call it before sending."""
        self._write(("REPORTED", {"version": version, "epsilon": epsilon}))

    def settle(self, sequence: int, outcome: str) -> None:
        """A manifest settled an update; the outbox keeps the last few. Written with the next row: the lineage knows it anyway."""
        oldest = self.head[0] - KEPT_SETTLED
        self._outbox[sequence] = replace(self._outbox[sequence], settled=True)
        self._late.append(("SETTLED", {"sequence": sequence, "outcome": outcome}))
        self._late_statements.append(("UPDATE outbox SET settled = 1 WHERE sequence = ?", (sequence,)))
        for dropped in [each for each in self._outbox.values() if each.settled and each.sequence <= oldest]:
            del self._outbox[dropped.sequence]
            self._late_statements.append(("DELETE FROM outbox WHERE sequence = ?", (dropped.sequence,)))
            if dropped.in_file:
                self._late_files.append(dropped.sequence)

    def content(self, sealed: Sealed) -> Encoded:
        """The sealed bytes of an update that is still in the outbox. Raises CheckpointError when they are others."""
        content = self._files.read(sealed.sequence) if sealed.in_file else self._row_content(sealed.sequence)
        if (content.size, content.hash) != (sealed.size, sealed.hash):
            raise CheckpointError(
                f"{self.folder}: the bytes of update {sealed.sequence} are not those that were sealed; nothing was sent, "
                "ask the operator for a new incarnation"
            )
        return content

    def _row_content(self, sequence: int) -> Encoded:
        (content,) = self._database.execute("SELECT content FROM outbox WHERE sequence = ?", (sequence,)).fetchone()
        return Encoded([content or b""])

    def reopen(self, watermark: int) -> None:
        """The aggregator's watermark went back: what the outbox still has above it is to be sent again."""
        self._write(statements=[("UPDATE outbox SET settled = 0 WHERE sequence > ?", (watermark,))])
        for sealed in [each for each in self._outbox.values() if each.sequence > watermark]:
            self._outbox[sealed.sequence] = replace(sealed, settled=False)

    def sent(self) -> Sent:
        """What has left and what it cost, without private figures."""
        return sent(self.entries(), {})

    def entries(self) -> list[LedgerRow]:
        """Every row, those too that wait to be written with the next."""
        rows = [LedgerRow._make(row) for row in self._database.execute(SELECT_ROWS)]
        for state, fields in self._late:
            number, digest = (rows[-1].number, rows[-1].hash) if rows else (0, "")
            rows.append(row_after(number, digest, state, fields, at_seconds=int(time.time())))
        return rows

    def close(self) -> None:
        """Closes the file, with the rows that waited for others where there is room for them."""
        if self._late:
            with suppress(StorageError):
                self._write()
        self._opened.close()

    def _write(self, *rows: Row, statements: Sequence[Statement] = ()) -> int:
        """One transaction, with what waited for one; returns the last row's number."""
        rows = (*self._late, *rows)
        (number, previous), now = self._last, int(time.time())
        with written(self._path, self._database):
            for statement, arguments in (*self._late_statements, *statements):
                self._database.execute(statement, arguments)
            for state, fields in rows:
                row = row_after(number, previous, state, fields, at_seconds=now)
                self._database.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", row)
                number, previous = row.number, row.hash
        self._last = (number, previous)
        for sequence in self._late_files:  # only now: a row whose file is missing is an error
            self._files.remove(sequence)
        for late in (self._late, self._late_statements, self._late_files):
            late.clear()
        for state, fields in rows:
            self.totals.add(state, fields, now)
        return number
