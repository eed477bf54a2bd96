import hashlib
from pathlib import Path

import pytest

from client_worker.data import load_dataset
from client_worker.files import fingerprint
from shared.errors import DataError
from shared.tasks.spec import parse_task

SPEC = parse_task(
    """
name = "t"
kind = "binary"
[label]
column = "y"
positive = [1]
[[numeric]]
columns = "a"
minimum = 0
maximum = 10
[model]
type = "logistic"
""",
    source="task.toml",
)


def test_a_file_becomes_a_dataset(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,y\n10,1\n0,0\n5,1\n")

    data = load_dataset(SPEC, file)

    assert data.features[:, 0].tolist() == [1.0, -1.0, 0.0]
    assert data.labels.tolist() == [1.0, 0.0, 1.0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: cannot be read: No such file"):
        load_dataset(SPEC, tmp_path / "nowhere.csv")


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        load_dataset(SPEC, tmp_path)


def test_a_training_file_with_one_label_value_is_refused_and_a_test_file_is_not(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("a,y\n10,1\n0,1\n")

    assert len(load_dataset(SPEC, file, for_training=False)) == 2
    with pytest.raises(DataError, match=r"rows\.csv: the label column 'y' has the same value"):
        load_dataset(SPEC, file)


def test_the_fingerprint_is_the_hash_of_the_bytes(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes(b"a,y\n1,0\n")

    assert fingerprint(file) == hashlib.sha256(b"a,y\n1,0\n").hexdigest()


def test_a_missing_file_has_no_fingerprint(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        fingerprint(tmp_path / "nowhere.csv")


def test_a_file_says_whose_its_rows_are_where_the_task_asks_for_it(tmp_path: Path) -> None:
    spec = SPEC.model_copy(update={"person": "id"})
    file = tmp_path / "rows.csv"
    file.write_text("a,id,y\n10,x,1\n0,y,0\n5,x,1\n")

    persons = load_dataset(spec, file).persons

    assert persons is not None
    assert persons.tolist() == [0, 1, 0]
    file.write_text("a,y\n10,1\n0,0\n")
    assert load_dataset(spec, file, for_training=False, with_persons=False).persons is None
    with pytest.raises(DataError, match="the column 'id' is missing"):
        load_dataset(spec, file, for_training=False)
