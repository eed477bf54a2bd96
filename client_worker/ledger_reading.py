"""A ledger as it lies on disk, read beside a worker that may be writing it: no file is made or changed, and no lock is taken."""

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from client_worker.ledger_rows import SELECT_ROWS, LedgerRow, Sealed, Totals, chained
from client_worker.outbox import OutboxFolder
from shared.codec import content_hash
from shared.errors import CheckpointError, SettingsError

ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Kept:
    """An update of the outbox; `found` is the hash of the bytes as they lie on disk, None where they are missing."""

    sealed: Sealed
    found: str | None


@dataclass(frozen=True, slots=True)
class LedgerContent:
    """Rows and outbox of one moment, unchecked. `private` are figures by sequence, packed, as far as they are kept."""

    rows: tuple[LedgerRow, ...]
    outbox: tuple[Kept, ...]
    private: Mapping[int, bytes] = field(default_factory=dict)


def read_ledger(path: Path) -> LedgerContent:
    """What the ledger holds. Raises SettingsError where there is none, CheckpointError where the file is none."""
    if not path.is_file():
        raise SettingsError(f"{path} does not exist; the worker writes it at its first start")
    try:
        content = _read(path)
        for _ in range(ATTEMPTS):
            if all(kept.found for kept in content.outbox):
                break
            content = _read(path)  # a file may have been settled and removed just then
    except (sqlite3.Error, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as a ledger: {error}") from error
    return content


def totals_of(path: Path) -> Totals:
    """What its rows add up to; nothing where there is no ledger yet. Raises CheckpointError where one was altered."""
    totals = Totals()
    if path.exists():
        for row in chained(read_ledger(path).rows, source=str(path)):
            totals.add(row.state, row.fields, row.at_seconds)
    return totals


def _read(path: Path) -> LedgerContent:
    with _opened(path) as database:
        database.execute("BEGIN")  # rows and outbox of the same moment
        rows = tuple(map(LedgerRow._make, database.execute(SELECT_ROWS)))
        outbox = database.execute("SELECT sequence, hash, size, settled, content FROM outbox ORDER BY sequence").fetchall()
        has_private = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'private'").fetchone()
        private = dict(database.execute("SELECT sequence, packed FROM private")) if has_private else {}
    files = OutboxFolder(path.with_name("outbox"))
    kept = []
    for sequence, digest, size, settled, content in outbox:
        found = content_hash(content) if content is not None else _hash_of_file(files, sequence)
        kept.append(Kept(Sealed(sequence, digest, size, bool(settled)), found))
    return LedgerContent(rows, tuple(kept), private)


def _hash_of_file(files: OutboxFolder, sequence: int) -> str | None:
    try:
        return files.read(sequence).hash
    except CheckpointError:
        return None


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """In place while a worker has it open, else from a copy: SQLite would make the files that only a worker's ledger has."""
    log, index = (path.with_name(path.name + ending) for ending in ("-wal", "-shm"))
    if log.exists() and index.exists():
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None)) as database:
            yield database
        return
    with TemporaryDirectory(prefix="fedqueue-ledger-") as folder:
        for file in (path, log):
            if file.exists():
                shutil.copyfile(file, Path(folder) / file.name)
        with closing(sqlite3.connect(Path(folder) / path.name, isolation_level=None)) as database:
            yield database
