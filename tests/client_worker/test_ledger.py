import resource
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgpack
import pytest

from client_worker.ledger import Ledger
from client_worker.mechanism import Charge
from shared import codec
from shared.codec import Encoded
from shared.errors import CheckpointError, SettingsError, StorageError
from tests.builders import RUN

CHARGE = {"noise_multiplier": 1.5, "sample_rate": 0.25, "steps": 10}


def opened(folder: Path, **changes) -> Ledger:
    return Ledger(folder / "ledger.sqlite", **{"run_id": RUN, "institution": "bank-a", "incarnation": 1, **changes})


@pytest.fixture
def ledger(tmp_path):
    ledger = opened(tmp_path)
    yield ledger
    ledger.close()


def sealed(ledger: Ledger, content: bytes = b"noised %d"):
    reservation = ledger.reserve(CHARGE, epsilon_spent=0.5)
    return ledger.seal(reservation, lambda sequence: Encoded([content.replace(b"%d", b"%d" % sequence)]))[0]


def bytes_of(ledger: Ledger, sequence: int) -> bytes:
    return ledger.content(ledger.kept[sequence]).joined()


def states(folder: Path) -> list[str]:
    database = sqlite3.connect(folder / "ledger.sqlite")
    found = [state for (state,) in database.execute("SELECT state FROM ledger ORDER BY number")]
    database.close()
    return found


def test_a_new_ledger_has_spent_nothing(ledger):
    assert (ledger.totals.charges, ledger.totals.reservations, ledger.totals.reports, ledger.head, ledger.unsettled()) == (
        [],
        0,
        0,
        (0, ""),
        [],
    )


def test_a_training_is_charged_before_it_begins_and_stays_charged_when_it_never_ends(tmp_path):
    first = opened(tmp_path)
    reservation = first.reserve(CHARGE, epsilon_spent=0.7)
    assert reservation.epsilon_spent == 0.7
    first.close()
    again = opened(tmp_path)
    assert again.totals.charges == [Charge(1.5, 0.25, 10)]
    assert again.unsettled() == []
    again.close()


def test_a_training_without_noise_is_counted_and_costs_no_epsilon(ledger):
    ledger.reserve({"noise_multiplier": None, "sample_rate": None, "steps": 10}, epsilon_spent=None)
    assert (ledger.totals.reservations, ledger.totals.charges) == (1, [])


def test_a_sealed_update_has_the_next_number_and_the_hash_of_its_bytes(ledger):
    first, second = sealed(ledger), sealed(ledger)
    assert (first.sequence, second.sequence) == (1, 2)
    assert second.hash == codec.content_hash(b"noised 2")
    assert ledger.head == (2, second.hash)
    assert [each.sequence for each in ledger.unsettled()] == [1, 2]


def test_the_same_bytes_are_there_after_a_restart(tmp_path):
    first = opened(tmp_path)
    before = sealed(first, b"\x00noise %d\xff")
    first.published(before)
    first.close()
    again = opened(tmp_path)
    (waiting,) = again.unsettled()
    assert (waiting.sequence, waiting.hash) == (before.sequence, before.hash)
    assert bytes_of(again, 1) == b"\x00noise 1\xff"
    again.close()


def test_an_update_whose_encoding_fails_leaves_neither_number_nor_row(ledger, tmp_path):
    reservation = ledger.reserve(CHARGE, epsilon_spent=0.5)

    def impossible(sequence: int) -> Encoded:
        raise ValueError(sequence)

    with pytest.raises(ValueError, match="1"):
        ledger.seal(reservation, impossible)
    assert ledger.head == (0, "")
    assert states(tmp_path) == ["OPENED", "RESERVED"]
    assert sealed(ledger).sequence == 1


def test_the_rows_tell_the_life_of_an_update_in_order(ledger, tmp_path):
    update = sealed(ledger)
    ledger.published(update)
    ledger.settle(1, "aggregated")
    ledger.reported(4, 0.2)
    assert states(tmp_path) == ["OPENED", "RESERVED", "SEALED", "PUBLISHED", "SETTLED", "REPORTED"]
    assert ledger.totals.reports == 1


def test_what_the_lineage_or_the_broker_knows_waits_for_the_next_row(ledger, tmp_path):
    update = sealed(ledger)
    ledger.published(update)
    ledger.settle(1, "aggregated")
    assert states(tmp_path) == ["OPENED", "RESERVED", "SEALED"]
    assert ledger.unsettled() == []
    ledger.reserve(CHARGE, epsilon_spent=0.5)
    assert states(tmp_path) == ["OPENED", "RESERVED", "SEALED", "PUBLISHED", "SETTLED", "RESERVED"]


def test_settled_updates_are_sent_no_more(ledger):
    sealed(ledger)
    sealed(ledger)
    ledger.settle(1, "aggregated")
    assert [each.sequence for each in ledger.unsettled()] == [2]


def test_the_last_eight_settled_updates_are_kept(ledger, tmp_path):
    for _ in range(12):
        ledger.settle(sealed(ledger).sequence, "aggregated")
    ledger.reopen(0)
    assert [each.sequence for each in ledger.unsettled()] == list(range(5, 13))
    assert bytes_of(ledger, 5) == b"noised 5"
    assert ledger.head[0] == 12


def test_what_is_above_a_watermark_that_went_back_is_sent_again(ledger):
    for _ in range(5):
        ledger.settle(sealed(ledger).sequence, "aggregated")
    ledger.reopen(3)
    assert [each.sequence for each in ledger.unsettled()] == [4, 5]


def test_nothing_that_is_not_settled_is_ever_dropped(ledger):
    waiting = sealed(ledger)
    for _ in range(12):
        ledger.settle(sealed(ledger).sequence, "aggregated")
    assert [each.sequence for each in ledger.unsettled()] == [waiting.sequence]
    assert bytes_of(ledger, 1) == b"noised 1"


@pytest.mark.parametrize(
    "change",
    [
        pytest.param("UPDATE ledger SET state = 'PUBLISHED' WHERE number = 2", id="a state"),
        pytest.param("DELETE FROM ledger WHERE number = 2", id="a row less"),
        pytest.param("UPDATE ledger SET previous = '' WHERE number = 3", id="a link"),
        pytest.param("UPDATE ledger SET number = 9 WHERE number = 3", id="a number"),
    ],
)
def test_an_altered_ledger_is_refused(tmp_path, change):
    ledger = opened(tmp_path)
    sealed(ledger)
    ledger.close()
    database = sqlite3.connect(tmp_path / "ledger.sqlite")
    database.execute(change)
    database.commit()
    database.close()
    with pytest.raises(CheckpointError, match="the ledger was altered"):
        opened(tmp_path)


def test_a_charge_that_was_made_smaller_is_refused(tmp_path):
    ledger = opened(tmp_path)
    ledger.reserve(CHARGE, epsilon_spent=2.0)
    ledger.close()
    database = sqlite3.connect(tmp_path / "ledger.sqlite")
    cheaper = msgpack.packb({**CHARGE, "noise_multiplier": 100.0, "epsilon_spent": 0.01})
    database.execute("UPDATE ledger SET fields = ? WHERE state = 'RESERVED'", (cheaper,))
    database.commit()
    database.close()
    with pytest.raises(CheckpointError, match="row 2 does not follow"):
        opened(tmp_path)


@pytest.mark.parametrize("content", [b"not a database, but longer than its header " * 100, b"\x00" * 5000])
def test_a_file_that_is_no_ledger_is_refused(tmp_path, content):
    (tmp_path / "ledger.sqlite").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be opened as a ledger"):
        opened(tmp_path)


@pytest.mark.parametrize("change", [{"run_id": "cd" * 8}, {"institution": "bank-b"}, {"incarnation": 2}], ids=str)
def test_a_ledger_is_never_used_for_another_run(tmp_path, change):
    opened(tmp_path).close()
    with pytest.raises(CheckpointError, match="never used for another run"):
        opened(tmp_path, **change)
    opened(tmp_path).close()


DATASET = {"fingerprint": "a" * 64, "unit": "record", "num_examples": 100}


def test_what_is_trained_on_is_written_at_its_first_use_only(tmp_path):
    for _ in range(3):
        ledger = opened(tmp_path)
        ledger.require_dataset(DATASET)
        ledger.close()
    assert states(tmp_path) == ["OPENED", "DATASET"]


@pytest.mark.parametrize("change", [{"fingerprint": "b" * 64}, {"unit": "person"}], ids=str)
def test_other_rows_or_another_unit_need_an_entry_of_their_own_and_spend_the_same_budget(ledger, tmp_path, change):
    ledger.require_dataset(DATASET)
    ledger.reserve(CHARGE, epsilon_spent=0.5)
    with pytest.raises(SettingsError, match="accept-dataset --config FILE`; what was spent stays spent"):
        ledger.require_dataset(DATASET | change)
    ledger.accept_dataset(DATASET | change)
    ledger.require_dataset(DATASET | change)
    with pytest.raises(SettingsError):
        ledger.require_dataset(DATASET)
    assert states(tmp_path) == ["OPENED", "DATASET", "RESERVED", "DATASET"]
    assert ledger.totals.charges == [Charge(1.5, 0.25, 10)]


def test_another_public_number_or_accountant_is_noted_and_needs_no_permission(ledger, tmp_path):
    ledger.require_dataset(DATASET)
    ledger.require_dataset(DATASET | {"num_examples": 120})
    assert states(tmp_path) == ["OPENED", "DATASET", "DATASET"]


def test_a_count_is_drawn_once_and_charged_for_ever(tmp_path):
    draws = iter([104, 97])
    for _ in range(2):
        ledger = opened(tmp_path)
        assert ledger.count_once(lambda epsilon: next(draws), epsilon=0.1) == 104
        assert ledger.totals.set_aside == 0.1
        ledger.close()
    assert states(tmp_path) == ["OPENED", "COUNTED"]


@pytest.mark.parametrize("spent", [-0.1, float("nan"), float("inf"), 1.99])
def test_a_reservation_that_would_lower_what_is_spent_or_is_no_number_is_refused(ledger, tmp_path, spent):
    ledger.reserve(CHARGE | {"target_delta": 1e-5}, epsilon_spent=2.0)
    with pytest.raises(CheckpointError, match="cannot follow one at 2; nothing was trained"):
        ledger.reserve(CHARGE | {"target_delta": 1e-5}, epsilon_spent=spent)
    assert states(tmp_path) == ["OPENED", "RESERVED"]
    ledger.reserve(CHARGE | {"target_delta": 1e-5}, epsilon_spent=2.1)
    ledger.reserve(CHARGE | {"target_delta": 1e-3}, epsilon_spent=1.5)  # what an epsilon means depends on its delta


def test_noise_on_the_whole_update_is_charged_as_one_gaussian_without_sampling(tmp_path):
    ledger = opened(tmp_path)
    ledger.reserve(CHARGE | {"mechanism": "update-gaussian"}, epsilon_spent=0.7)
    ledger.close()
    again = opened(tmp_path)
    assert again.totals.charges == [Charge(1.5, 1.0, 1)]
    again.close()


def test_an_outbox_whose_last_update_was_removed_is_refused(tmp_path):
    ledger = opened(tmp_path)
    sealed(ledger)
    sealed(ledger)
    ledger.close()
    database = sqlite3.connect(tmp_path / "ledger.sqlite")
    database.execute("DELETE FROM outbox WHERE sequence = 2")
    database.commit()
    database.close()
    with pytest.raises(CheckpointError, match="the last sealed update is 2, the outbox ends at 1"):
        opened(tmp_path)


def test_a_second_process_is_refused_while_the_first_lives(tmp_path):
    program = (
        "import sys\nfrom pathlib import Path\nfrom client_worker.ledger import Ledger\n"
        f"ledger = Ledger(Path(sys.argv[1]), run_id={RUN!r}, institution='bank-a', incarnation=1)\n"
        "print('open', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "ledger.sqlite")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        with pytest.raises(SettingsError, match="runs already"):
            opened(tmp_path)
        first.kill()
    opened(tmp_path).close()


def test_only_its_owner_can_read_a_ledger_and_what_sqlite_writes_beside_it(ledger, tmp_path):
    rights = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob("ledger.sqlite*") if file.suffix != ".lock"}
    assert rights == dict.fromkeys(["ledger.sqlite", "ledger.sqlite-shm", "ledger.sqlite-wal"], 0o600)


@pytest.fixture
def disk():
    """A disk that can be filled and emptied again: beyond RLIMIT_FSIZE a write fails as on a full one."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def room(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if size is None else size, before[1]))

    yield room
    room(None)


@pytest.mark.parametrize("size", [250_000, 2**20], ids=["in a row", "in a file"])
def test_on_a_full_disk_nothing_is_sealed_and_the_number_is_free_again(ledger, tmp_path, disk, size):
    reservation = ledger.reserve(CHARGE, epsilon_spent=0.5)
    disk(200_000)
    for _ in range(3):
        with pytest.raises(StorageError, match="nothing was sent"):
            ledger.seal(reservation, lambda sequence: Encoded([bytes(size)]))
    assert (ledger.head, ledger.unsettled(), ledger.totals.reservations) == ((0, ""), [], 1)
    disk(None)
    assert ledger.seal(reservation, lambda sequence: Encoded([bytes(size)]))[0].sequence == 1
    assert states(tmp_path) == ["OPENED", "RESERVED", "SEALED"]


def test_on_a_full_disk_nothing_is_charged_that_could_be_trained(ledger, disk):
    disk(1)
    with pytest.raises(StorageError):
        ledger.reserve(CHARGE, epsilon_spent=0.5)
    disk(None)
    assert ledger.totals.charges == []
    ledger.reserve(CHARGE, epsilon_spent=0.5)
    assert len(ledger.totals.charges) == 1
