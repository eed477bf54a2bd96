"""The privacy ledger and the outbox: one SQLite file, so that a noised update and what it cost are on disk together.

Append-only rows, chained by hash: RESERVED before the first noised step, SEALED with the bytes in the outbox, PUBLISHED,
SETTLED. Epsilon counts everything reserved; nothing lowers it. A retry sends the same bytes and draws no new noise.
"""

import fcntl
import hashlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import msgpack

from shared import codec
from shared.errors import CheckpointError, SettingsError, StorageError

KEPT_SETTLED = 8
"""Settled updates kept for re-sending, in case the aggregator's watermark ever goes back."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, at_seconds INTEGER NOT NULL,
    fields BLOB NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS outbox (
    sequence INTEGER PRIMARY KEY, hash TEXT NOT NULL, content BLOB NOT NULL, settled INTEGER NOT NULL DEFAULT 0
) STRICT;
"""

State = Literal["OPENED", "CARRIED", "RESERVED", "SEALED", "PUBLISHED", "SETTLED", "REPORTED"]


@dataclass(frozen=True, slots=True)
class Reservation:
    """A local training that is charged from now on, whether or not it ever ends."""

    number: int
    epsilon_spent: float | None


@dataclass(frozen=True, slots=True)
class Charge:
    """One mechanism's run, as the accountant takes it."""

    noise_multiplier: float
    sample_rate: float
    steps: int


@dataclass(frozen=True, slots=True, eq=False)
class Sealed:
    """An update that is in the outbox, to be sent as it is now and at every retry."""

    sequence: int
    hash: str


class Ledger:
    """One institution's ledger for one run and incarnation; owned by one thread.

    Raises CheckpointError when the file is damaged or belongs to another run, StorageError when it cannot be written.
    """

    def __init__(self, path: Path, *, run_id: str, institution: str, incarnation: int) -> None:
        self._path = path
        with ExitStack() as opened:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                opened.enter_context(_lock(path))
                self._database = opened.enter_context(closing(sqlite3.connect(path, isolation_level=None)))
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=FULL")
                self._database.executescript(_SCHEMA)
                path.chmod(0o600)
            except (sqlite3.DatabaseError, OSError) as error:
                raise CheckpointError(f"{path} cannot be opened as a ledger: {error}") from error
            self._open(run_id, institution, incarnation)
            self._files = opened.pop_all()

    def _open(self, run_id: str, institution: str, incarnation: int) -> None:
        self._verify()
        wanted = {"run_id": run_id, "institution": institution, "incarnation": incarnation}
        opened = self._rows("OPENED")
        if not opened:
            self._append("OPENED", wanted)
        elif opened[-1] != wanted:
            raise CheckpointError(
                f"{self._path} was opened for {opened[-1]}, the settings say {wanted}; "
                "a ledger is never used for another run: name another state_folder"
            )

    def _verify(self) -> None:
        previous = ""
        for number, state, fields, before, digest in self._database.execute(
            "SELECT number, state, fields, previous, hash FROM ledger ORDER BY number"
        ):
            if before != previous or digest != _row_hash(number, state, fields, before):
                raise CheckpointError(f"{self._path}: row {number} does not follow from the one before; the ledger was altered")
            previous = digest

    @property
    def charges(self) -> list[Charge]:
        """Every reservation so far, in order: what epsilon is computed from."""
        return [
            Charge(row["noise_multiplier"], row["sample_rate"], row["steps"])
            for row in self._rows("RESERVED")
            if row["noise_multiplier"] is not None
        ]

    @property
    def carried(self) -> float:
        """Epsilon that an earlier incarnation had spent, as far as the federation knows; its ledger may be lost."""
        return float(sum(row["epsilon"] for row in self._rows("CARRIED")))

    @property
    def reservations(self) -> int:
        """How many local trainings were charged."""
        return len(self._rows("RESERVED"))

    @property
    def reports(self) -> int:
        """How many validation reports were released."""
        return len(self._rows("REPORTED"))

    @property
    def head(self) -> tuple[int, str]:
        """Sequence and hash of the last sealed update; (0, "") before the first."""
        row = self._database.execute("SELECT sequence, hash FROM outbox ORDER BY sequence DESC LIMIT 1").fetchone()
        return (row[0], row[1]) if row else (0, "")

    def reserve(self, fields: Mapping[str, Any], *, epsilon_spent: float | None) -> Reservation:
        """Charges one local training; durable when it returns."""
        return Reservation(self._append("RESERVED", {**fields, "epsilon_spent": epsilon_spent}), epsilon_spent)

    def seal(self, reservation: Reservation, encode: Callable[[int], bytes]) -> Sealed:
        """Gives the next sequence number to an update and puts its bytes and its row on disk in one transaction."""
        sequence = self.head[0] + 1
        content = encode(sequence)
        sealed = Sealed(sequence, codec.content_hash(content))
        with _written(self._path, self._database):
            self._database.execute(
                "INSERT INTO outbox (sequence, hash, content) VALUES (?, ?, ?)", (sequence, sealed.hash, content)
            )
            self._insert("SEALED", {"reservation": reservation.number, "sequence": sequence, "hash": sealed.hash})
        return sealed

    def published(self, sealed: Sealed) -> None:
        """The broker has confirmed every chunk."""
        self._append("PUBLISHED", {"sequence": sealed.sequence})

    def carry(self, epsilon: float) -> None:
        """Charges what an earlier incarnation spent."""
        self._append("CARRIED", {"epsilon": epsilon})

    def reported(self, version: int, epsilon: float) -> None:
        """Charges a report on the validation rows; call it before sending."""
        self._append("REPORTED", {"version": version, "epsilon": epsilon})

    def settle(self, sequence: int, outcome: str) -> None:
        """A manifest settled an update; the outbox keeps the last few."""
        with _written(self._path, self._database):
            self._database.execute("UPDATE outbox SET settled = 1 WHERE sequence = ?", (sequence,))
            self._database.execute("DELETE FROM outbox WHERE settled = 1 AND sequence <= ?", (self.head[0] - KEPT_SETTLED,))
            self._insert("SETTLED", {"sequence": sequence, "outcome": outcome})

    def unsettled(self) -> list[Sealed]:
        """What must still be sent, or sent again, in order."""
        rows = self._database.execute("SELECT sequence, hash FROM outbox WHERE settled = 0 ORDER BY sequence")
        return [Sealed(*row) for row in rows]

    def content(self, sequence: int) -> bytes:
        """The sealed bytes of an update that is still in the outbox."""
        content: bytes
        (content,) = self._database.execute("SELECT content FROM outbox WHERE sequence = ?", (sequence,)).fetchone()
        return content

    def reopen(self, watermark: int) -> None:
        """The aggregator's watermark went back: what the outbox still has above it is to be sent again."""
        with _written(self._path, self._database):
            self._database.execute("UPDATE outbox SET settled = 0 WHERE sequence > ?", (watermark,))

    def close(self) -> None:
        """Closes the file; everything in it is already durable."""
        self._files.close()

    def _rows(self, state: State) -> list[dict[str, Any]]:
        rows = self._database.execute("SELECT fields FROM ledger WHERE state = ? ORDER BY number", (state,))
        return [msgpack.unpackb(fields) for (fields,) in rows]

    def _append(self, state: State, fields: Mapping[str, Any]) -> int:
        with _written(self._path, self._database):
            return self._insert(state, fields)

    def _insert(self, state: State, fields: Mapping[str, Any]) -> int:
        last = self._database.execute("SELECT number, hash FROM ledger ORDER BY number DESC LIMIT 1").fetchone()
        number, previous = (last[0] + 1, last[1]) if last else (1, "")
        packed = msgpack.packb(dict(fields))
        digest = _row_hash(number, state, packed, previous)
        self._database.execute(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", (number, state, int(time.time()), packed, previous, digest)
        )
        return number


def _lock(path: Path) -> TextIO:
    """Held while the process lives; the kernel drops it at a kill -9."""
    lock = path.with_name(f"{path.name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SettingsError(f"{path} is in use by another process; this institution's worker runs already") from None
    return lock


def _row_hash(number: int, state: str, fields: bytes, previous: str) -> str:
    return hashlib.sha256(msgpack.packb([number, state, fields, previous])).hexdigest()


@contextmanager
def _written(path: Path, database: sqlite3.Connection) -> Iterator[None]:
    """One transaction: durable at its end, without a trace when it fails."""
    try:
        database.execute("BEGIN IMMEDIATE")
        try:
            yield
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:  # SQLite rolls back by itself after some errors of the disk
                database.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        raise StorageError(f"{path}: {error}; free space or mend the rights, nothing was sent") from error
