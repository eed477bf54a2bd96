"""The SQLite file of a ledger: its tables, its lock, and one transaction at a time."""

import errno
import fcntl
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from shared.errors import CheckpointError, FederationError, SettingsError, StorageError

LAYOUT = 1
"""The number of these tables; it changes when one of them does. A ledger is never converted back."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY, state TEXT NOT NULL, at_seconds INTEGER NOT NULL,
    fields BLOB NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS outbox (
    sequence INTEGER PRIMARY KEY, hash TEXT NOT NULL, size INTEGER NOT NULL,
    content BLOB, settled INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS private (
    sequence INTEGER PRIMARY KEY, packed BLOB NOT NULL
) STRICT;
"""  # content is null where it lies in a file of its own; a ledger from before `private` was kept gets the table, empty

_DISK_TROUBLE = ("SQLITE_FULL", "SQLITE_IOERR")


def unopened(path: Path, error: sqlite3.DatabaseError | OSError) -> FederationError:
    """A disk that is full or fails may be well later; anything else is for a person to look at."""
    if getattr(error, "sqlite_errorname", "").startswith(_DISK_TROUBLE) or getattr(error, "errno", None) == errno.ENOSPC:
        return StorageError(f"{path}: {error}; free space or mend the disk, then start again")
    return CheckpointError(f"{path} cannot be opened as a ledger: {error}")


def lock(path: Path) -> TextIO:
    """Held while the process lives; the kernel drops it at a kill -9."""
    held = path.with_name(f"{path.name}.lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        held.close()
        raise SettingsError(f"{path} is in use by another process; this institution's worker runs already") from None
    return held


def prepare(path: Path, database: sqlite3.Connection) -> None:
    """Makes the tables of a new ledger. Raises CheckpointError where another version of fedqueue has written others."""
    (layout,) = database.execute("PRAGMA user_version").fetchone()
    if layout not in (0, LAYOUT):
        raise CheckpointError(
            f"{path} has the layout {layout}, and this version of fedqueue knows {LAYOUT}: run the version that wrote it. "
            "Nothing was changed"
        )
    if layout == 0:
        database.executescript(f"{SCHEMA}PRAGMA user_version = {LAYOUT};")


@contextmanager
def written(path: Path, database: sqlite3.Connection) -> Iterator[None]:
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
