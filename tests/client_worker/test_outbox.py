"""Large sealed updates: their bytes lie in files beside the ledger, and the ledger's row decides."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_worker.ledger import Ledger
from client_worker.ledger_rows import Sealed
from client_worker.outbox import LARGE_BYTES
from shared.codec import Encoded
from shared.errors import CheckpointError, StorageError
from tests.builders import RUN
from tests.disks import fill, small_disk

CHARGE = {"noise_multiplier": 1.5, "sample_rate": 0.25, "steps": 10}


def opened(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)


def content(sequence: int, size: int = LARGE_BYTES + 1) -> Encoded:
    """In two buffers, as an update with a tensor has them."""
    return Encoded([b"%d" % sequence, memoryview(bytes([sequence]) * (size - len(b"%d" % sequence)))])


def seal(ledger: Ledger, size: int = LARGE_BYTES + 1) -> Sealed:
    return ledger.seal(ledger.reserve(CHARGE, epsilon_spent=0.5), lambda sequence: content(sequence, size))[0]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "outbox").glob("*"))


@pytest.fixture
def ledger(tmp_path) -> Iterator[Ledger]:
    ledger = opened(tmp_path)
    yield ledger
    ledger.close()


def test_a_large_update_is_read_again_from_its_file_as_it_was_sealed(ledger, tmp_path):
    sealed = seal(ledger)
    assert files(tmp_path) == ["1.update"]
    assert ledger.content(sealed).joined() == content(1).joined()
    ledger.close()
    again = opened(tmp_path)
    assert again.unsettled() == [sealed]
    assert again.content(sealed).joined() == content(1).joined()
    again.close()


def test_an_update_of_up_to_the_limit_needs_no_file(ledger, tmp_path):
    sealed = seal(ledger, LARGE_BYTES)
    assert files(tmp_path) == []
    assert ledger.content(sealed).joined() == content(1, LARGE_BYTES).joined()


def test_the_bytes_are_on_disk_before_the_row_names_them(ledger, tmp_path):
    seen = []

    def look() -> None:
        with sqlite3.connect(f"file:{tmp_path}/ledger.sqlite?mode=ro", uri=True) as database:
            rows = database.execute("SELECT count(*) FROM outbox").fetchone()[0]
        database.close()
        seen.append((files(tmp_path), (tmp_path / "outbox" / "1.update").read_bytes() == content(1).joined(), rows))

    ledger.seal(ledger.reserve(CHARGE, epsilon_spent=0.5), content, after_file=look)
    assert seen == [(["1.update"], True, 0)]


def test_a_file_without_a_row_is_gone_after_the_next_start(tmp_path):
    ledger = opened(tmp_path)
    seal(ledger)
    ledger.close()
    for name in ("2.update", "3.new"):
        (tmp_path / "outbox" / name).write_bytes(b"left behind")
    opened(tmp_path).close()
    assert files(tmp_path) == ["1.update"]


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        pytest.param(lambda path: path.unlink(), "is missing, the ledger says that update 1 was sealed", id="missing"),
        pytest.param(lambda path: os.truncate(path, 1000), "has 1000 bytes, the ledger says", id="short"),
    ],
)
def test_a_row_without_its_bytes_is_for_a_person_to_look_at(tmp_path, harm, reason):
    ledger = opened(tmp_path)
    seal(ledger)
    ledger.close()
    harm(tmp_path / "outbox" / "1.update")
    with pytest.raises(CheckpointError, match=reason):
        opened(tmp_path)


def test_other_bytes_than_the_sealed_ones_are_never_sent(tmp_path):
    ledger = opened(tmp_path)
    sealed = seal(ledger)
    with (tmp_path / "outbox" / "1.update").open("r+b") as file:
        file.seek(1000)
        file.write(b"?")
    with pytest.raises(CheckpointError, match="not those that were sealed; nothing was sent"):
        ledger.content(sealed)
    ledger.close()


def test_the_last_eight_settled_files_are_kept_and_no_more(ledger, tmp_path):
    for _ in range(11):
        ledger.settle(seal(ledger).sequence, "aggregated")
    ledger.reserve(CHARGE, epsilon_spent=0.5)
    assert files(tmp_path) == sorted(f"{sequence}.update" for sequence in range(4, 12))
    ledger.reopen(9)
    assert [sealed.sequence for sealed in ledger.unsettled()] == [10, 11]
    assert ledger.content(ledger.kept[10]).joined() == content(10).joined()


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 2) as folder:
        yield folder


@pytest.mark.parametrize("size", [200_000, 500_000], ids=["in a row", "in a file"])
def test_a_disk_that_was_full_costs_neither_a_number_nor_noise(disk, size):
    ledger = opened(disk)
    reservation = ledger.reserve(CHARGE, epsilon_spent=0.5)
    filler = disk / "filler"
    fill(filler)
    for _ in range(2):
        with pytest.raises(StorageError, match="nothing was sent"):
            ledger.seal(reservation, lambda sequence: content(sequence, size))
    assert (ledger.head, ledger.kept, ledger.totals.reservations) == ((0, ""), {}, 1)
    assert files(disk) == []
    filler.unlink()
    sealed, _ = ledger.seal(reservation, lambda sequence: content(sequence, size))
    assert (sealed.sequence, ledger.totals.reservations) == (1, 1)
    ledger.close()
    again = opened(disk)
    assert again.content(again.kept[1]).joined() == content(1, size).joined()
    again.close()


def test_a_file_whose_row_finds_no_room_is_given_back(disk):
    ledger = opened(disk)
    reservation = ledger.reserve(CHARGE, epsilon_spent=0.5)
    with pytest.raises(StorageError, match="nothing was sent"):
        ledger.seal(reservation, content, after_file=lambda: fill(disk / "filler"))
    assert files(disk) == []
    (disk / "filler").unlink()
    assert ledger.seal(reservation, content)[0].sequence == 1
    ledger.close()


def test_a_worker_that_starts_on_a_full_disk_may_start_again_later(disk):
    ledger = opened(disk)
    sealed = seal(ledger)
    ledger.close()
    fill(disk / "filler")
    with pytest.raises(StorageError, match="start again"):
        opened(disk)
    (disk / "filler").unlink()
    again = opened(disk)
    assert again.content(sealed).joined() == content(1).joined()
    again.close()
