"""A ledger read beside its worker, and what `verify` finds when somebody has changed it."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgpack
import pytest

from client_worker.ledger import Ledger
from client_worker.ledger_audit import LedgerAudit, WrongLedgerError, audited
from client_worker.ledger_reading import read_ledger
from client_worker.ledger_rows import LedgerRow, row_after
from client_worker.mechanism import Charge
from client_worker.privacy import epsilon_after
from shared.codec import Encoded
from shared.errors import CheckpointError, SettingsError
from tests.builders import RUN

SPENT = {"mechanism": "dp-sgd", "noise_multiplier": 1.0, "sample_rate": 1.0, "steps": 1, "target_delta": 1e-5}


def opened(folder: Path) -> Ledger:
    return Ledger(folder / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)


def grown(folder: Path, *, size: int = 10, settled: int = 2) -> Path:
    """Three updates, the first ones settled: rows 1 opened, 2 dataset, 3 counted, 4 reserved, 5 sealed, 6 reserved, ..."""
    ledger = opened(folder)
    ledger.require_dataset({"fingerprint": "f" * 64, "unit": "record"})
    ledger.count_once(lambda epsilon: 104, epsilon=0.1)
    for number in range(3):
        spent = 0.1 + epsilon_after([Charge(1.0, 1.0, number + 1)], 1e-5)
        reservation = ledger.reserve(SPENT, epsilon_spent=spent)
        ledger.seal(reservation, lambda sequence: Encoded([b"%d" % sequence * size]))
    for sequence in range(1, settled + 1):
        ledger.settle(sequence, "aggregated")
    ledger.close()
    return folder / "ledger.sqlite"


def change(file: Path, statement: tuple[str, ...] | tuple[str, LedgerRow]) -> None:
    database = sqlite3.connect(file)
    database.execute(*statement)
    database.commit()
    database.close()


def rewritten(file: Path, edit: Callable[[int, dict[str, Any]], Mapping[str, Any] | None]) -> None:
    """Somebody who knows how rows are chained changes fields, or drops a row, and chains all anew."""
    rows = read_ledger(file).rows
    number, digest = 0, ""
    database = sqlite3.connect(file)
    database.execute("DELETE FROM ledger")
    for row in rows:
        fields = edit(row.number, dict(row.fields))
        if fields is not None:
            made = row_after(number, digest, row.state, fields, at_seconds=row.at_seconds)
            database.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", made)
            number, digest = made.number, made.hash
    database.commit()
    database.close()


def audit(file: Path) -> LedgerAudit:
    return audited(read_ledger(file), epsilon_after, source=str(file))


@pytest.mark.parametrize("size", [10, 300_000], ids=["in rows", "in files"])
def test_what_a_worker_wrote_is_right(tmp_path, size):
    found = audit(grown(tmp_path, size=size))
    assert (found.totals.reservations, sorted(found.sealed), found.totals.counted) == (3, [1, 2, 3], 104)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        pytest.param("UPDATE ledger SET state = 'PUBLISHED' WHERE number = 5", "row 5 does not follow", id="a row altered"),
        pytest.param("UPDATE ledger SET at_seconds = 0 WHERE number = 5", "row 5 does not follow", id="a time altered"),
        pytest.param("DELETE FROM ledger WHERE number = 5", "row 6 does not follow", id="a row removed"),
        pytest.param("DELETE FROM ledger WHERE number = 1", "row 2 does not follow", id="the first row removed"),
        pytest.param(
            "UPDATE ledger SET number = CASE number WHEN 5 THEN -5 WHEN 6 THEN 5 END WHERE number IN (5, 6)",
            "row -5 does not follow",
            id="rows reordered",
        ),
        pytest.param("DELETE FROM ledger WHERE number >= 8", "holds an update 3 that no row sealed", id="the end removed"),
        pytest.param("UPDATE outbox SET content = x'00' WHERE sequence = 2", "of update 2 .* are not those", id="bytes altered"),
        pytest.param("DELETE FROM outbox WHERE sequence = 3", "update 3 is sealed and may still have", id="unsent bytes removed"),
    ],
)
def test_the_first_row_that_cannot_be_true_is_named(tmp_path, statement, reason):
    file = grown(tmp_path)
    change(file, (statement,))
    with pytest.raises(WrongLedgerError, match=reason):
        audit(file)


def test_a_removed_file_of_the_outbox_is_noticed(tmp_path):
    file = grown(tmp_path, size=300_000)
    (tmp_path / "outbox" / "3.update").unlink()
    with pytest.raises(WrongLedgerError, match="bytes of update 3 in the outbox are missing"):
        audit(file)


@pytest.mark.parametrize(
    ("number", "fields", "reason"),
    [
        pytest.param(6, {"epsilon_spent": 6.0}, r"row 6 \(RESERVED\): it states epsilon 6, and all up to it", id="too low"),
        pytest.param(6, {"epsilon_spent": None}, "it has noise and states no epsilon", id="no epsilon"),
        pytest.param(6, {"noise_multiplier": None}, "it states an epsilon and no noise", id="no noise"),
        pytest.param(4, {"noise_multiplier": 0.5}, r"row 4 .* comes to", id="less noise than stated"),
        pytest.param(5, {"reservation": 3}, r"row 5 \(SEALED\): row 3 reserved nothing", id="sealed without a reservation"),
        pytest.param(
            7, {"reservation": 4}, r"row 7 \(SEALED\): row 4 reserved nothing, or was", id="reserved once, sealed twice"
        ),
        pytest.param(7, {"sequence": 3}, "seals update 3 after update 1", id="a number left out"),
        pytest.param(10, {"sequence": 9}, r"row 10 \(SETTLED\): update 9 was not sealed", id="settled and never sealed"),
    ],
)
def test_a_ledger_that_was_chained_anew_is_caught_by_what_it_says(tmp_path, number, fields, reason):
    file = grown(tmp_path)
    rewritten(file, lambda at, old: old | fields if at == number else old)
    with pytest.raises(WrongLedgerError, match=reason):
        audit(file)


def test_a_reservation_that_was_taken_out_leaves_an_update_that_was_not_charged(tmp_path):
    file = grown(tmp_path)
    rewritten(file, lambda at, old: None if at == 6 else old)
    with pytest.raises(WrongLedgerError, match="row 6 reserved nothing"):
        audit(file)


def test_a_ledger_without_its_first_row_is_none(tmp_path):
    file = grown(tmp_path)
    rewritten(file, lambda at, old: None if at == 1 else old)
    with pytest.raises(WrongLedgerError, match=r"row 1 \(DATASET\): a ledger is opened by its first row"):
        audit(file)


def test_what_a_count_has_cost_is_part_of_what_a_training_states(tmp_path):
    file = grown(tmp_path)
    rewritten(file, lambda at, old: old | {"epsilon_spent": 4.4} if at == 4 else old)  # 4.377 is the training's alone
    with pytest.raises(WrongLedgerError, match=r"it states epsilon 4.4, and all up to it comes to 4.47718"):
        audit(file)


@pytest.mark.parametrize(
    ("state", "fields", "reason"),
    [
        ("COUNTED", {"value": 90, "epsilon": 0.1}, "the number of examples was released before"),
        ("OPENED", {"run_id": RUN}, "a ledger is opened by its first row, and only by that"),
        ("FORGIVEN", {}, "no such state is known"),
    ],
)
def test_a_row_that_no_worker_would_have_added_is_named(tmp_path, state, fields, reason):
    file = grown(tmp_path)
    last = read_ledger(file).rows[-1]
    added = row_after(last.number, last.hash, state, fields, at_seconds=last.at_seconds)
    change(file, ("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)", added))
    with pytest.raises(WrongLedgerError, match=rf"row 12 \({state}\): {reason}"):
        audit(file)


def test_a_row_that_lacks_a_field_is_told_and_not_a_fault_of_the_program(tmp_path):
    file = grown(tmp_path)
    rewritten(file, lambda at, old: {"sequence": 1} if at == 5 else old)
    with pytest.raises(WrongLedgerError, match=r"row 5 \(SEALED\) does not say 'reservation'"):
        audit(file)


def test_fields_that_are_not_even_fields_are_told(tmp_path):
    file = grown(tmp_path)
    (first, *_) = read_ledger(file).rows
    packed = msgpack.packb([1, 2])
    with pytest.raises(CheckpointError, match="holds no fields"):
        _ = first._replace(packed=packed).fields


def test_an_update_without_noise_is_right_and_has_no_epsilon(tmp_path):
    ledger = opened(tmp_path)
    ledger.reserve({"mechanism": "none", "noise_multiplier": None, "sample_rate": None, "steps": 3}, epsilon_spent=None)
    ledger.close()
    assert audit(tmp_path / "ledger.sqlite").totals.unprotected == 1


WRITER = """
import sys
from pathlib import Path
from tests.client_worker.test_ledger_audit import SPENT, grown, opened
folder = Path(sys.argv[1])
grown(folder, size=300_000)
ledger = opened(folder)
ledger.reserve(SPENT, epsilon_spent=9.0)
print("open", flush=True)
sys.stdin.read()
"""


def names(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*")}


@pytest.mark.parametrize("end", ["none", "kill"], ids=["while it runs", "after a kill -9"])
def test_a_ledger_is_read_beside_its_worker_and_no_file_is_made_or_changed(tmp_path, end, monkeypatch):
    monkeypatch.setattr(shutil, "copyfile", None)  # a checkpoint could tear a copy
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"open\n"
        if end == "kill":
            worker.kill()
            worker.wait()
        before = names(tmp_path)
        content = read_ledger(tmp_path / "ledger.sqlite")
        assert (content.rows[-1].state, content.rows[-1].fields["epsilon_spent"]) == ("RESERVED", 9.0)
        assert [kept.found == kept.sealed.hash for kept in content.outbox] == [True, True, True]
        after = names(tmp_path)
        worker.kill()
    assert before.keys() == after.keys()
    assert before["ledger.sqlite"] == after["ledger.sqlite"]


def test_a_closed_ledger_and_a_copy_with_its_log_are_read_without_making_a_file(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "own")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None
        worker.stdout.readline()
        (tmp_path / "copy").mkdir()
        for name in ("ledger.sqlite", "ledger.sqlite-wal"):
            (tmp_path / "copy" / name).write_bytes((tmp_path / "own" / name).read_bytes())
        worker.kill()
    assert read_ledger(tmp_path / "copy" / "ledger.sqlite").rows[-1].fields["epsilon_spent"] == 9.0
    assert names(tmp_path / "copy").keys() == {"ledger.sqlite", "ledger.sqlite-wal"}
    closed = grown(tmp_path / "closed").parent
    before = names(closed)
    assert len(read_ledger(closed / "ledger.sqlite").rows) == 11
    assert names(closed) == before


def test_an_absent_ledger_is_a_sentence(tmp_path):
    with pytest.raises(SettingsError, match="does not exist; the worker writes it at its first start"):
        read_ledger(tmp_path / "ledger.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_a_sentence(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database, but longer than its header " * 100)
    with pytest.raises(CheckpointError, match="cannot be read as a ledger"):
        read_ledger(tmp_path / "ledger.sqlite")
