import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from shared.errors import DataError
from shared.tasks.features import Dataset, encode, example_rows, one_row_each, require_trainable
from shared.tasks.spec import TaskSpec, parse_task
from shared.tasks.tables import read_columns

BINARY = """
name = "loans"
kind = "binary"
[label]
column = "late"
positive = ["yes"]
[[numeric]]
columns = "age"
minimum = 20
maximum = 60
[[numeric]]
columns = "income"
minimum = 0
maximum = 99
log = true
missing = "indicator"
missing_values = [-1]
[[categorical]]
columns = "sector"
categories = [11, 23]
[[categorical]]
columns = "owner"
categories = [true]
other = false
[model]
type = "logistic"
"""
HEADER = "age,income,sector,owner,late\n"
GOOD = HEADER + "20,0,11,true,yes\n50,9,99,FALSE,no\n"


def task(text: str = BINARY) -> TaskSpec:
    return parse_task(text, source="task.toml")


def encoded(text: str, spec: TaskSpec | None = None) -> Dataset:
    return encode(spec or task(), read_columns(io.BytesIO(text.encode()), source="rows.csv"), "rows.csv")


def refusal(text: str, spec: TaskSpec | None = None) -> str:
    with pytest.raises(DataError) as caught:
        encoded(text, spec)
    assert str(caught.value).startswith("rows.csv: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_are_scaled_by_the_declared_ranges_alone() -> None:
    data = encoded(GOOD)

    # age, income (log10 of 1 and of 10 on the way to 100), income missing?, sector 11, 23, other, owner
    np.testing.assert_allclose(data.features, [[-1, -1, 0, 1, 0, 0, 1], [0.5, 0, 0, 0, 0, 1, 0]], atol=1e-7)
    assert data.features.dtype == np.float32
    assert data.labels.tolist() == [1.0, 0.0]


def test_a_row_is_encoded_the_same_whatever_other_rows_are_there() -> None:
    one = encoded(HEADER + "50,9,99,FALSE,no\n")

    assert one.features[0].tolist() == encoded(GOOD).features[1].tolist()


def test_a_number_beyond_its_range_counts_as_the_nearest_end() -> None:
    assert encoded(HEADER + "10,500,11,true,no\n").features[0, :2].tolist() == [-1.0, 1.0]


@pytest.mark.parametrize("cell", ["", "NA", "NaN", "null", " "])
def test_a_missing_number_is_the_midpoint(cell: str) -> None:
    assert encoded(HEADER + f"{cell},{cell},11,true,no\n").features[0, :3].tolist() == [0.0, 0.0, 1.0]


def test_a_number_declared_to_mean_missing_is_missing() -> None:
    assert encoded(HEADER + "50,-1,11,true,no\n").features[0, 1:3].tolist() == [0.0, 1.0]


def test_a_missing_category_is_another_one() -> None:
    assert encoded(HEADER + "50,9,,,no\n").features[0, 3:].tolist() == [0.0, 0.0, 1.0, 0.0]


def test_parquet_gives_the_same_as_csv() -> None:
    table = pa.table(
        {
            "late": ["yes", "no"],
            "age": [20, 50],
            "income": [0.0, 9.0],
            "sector": [11, 99],
            "owner": [True, False],
            "spare": [1, 2],
        }
    )
    file = io.BytesIO()
    pa.parquet.write_table(table, file)
    file.seek(0)

    data = encode(task(), read_columns(file, source="rows.parquet"), "rows.parquet")

    np.testing.assert_array_equal(data.features, encoded(GOOD).features)
    np.testing.assert_array_equal(data.labels, encoded(GOOD).labels)


def test_a_null_and_a_nan_in_parquet_are_missing() -> None:
    table = pa.table(
        {"late": ["yes", "no"], "age": [None, 50], "income": [float("nan"), 9.0], "sector": [None, 99], "owner": [True, None]}
    )

    data = encode(task(), table, "rows.parquet")

    assert data.features[0].tolist() == [0, 0, 1, 0, 0, 1, 1]


def test_a_byte_order_mark_is_no_part_of_the_first_name() -> None:
    assert len(encoded("\ufeff" + GOOD)) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        (HEADER, "no rows"),
        (GOOD.replace("income", "wage"), "the column 'income' is missing"),
        (GOOD.replace("income", "age"), "the column 'age' is there 2 times"),
        (GOOD.replace("\n50", "\nfifty"), "column 'age', row 3 is 'fifty', not a number"),
        (GOOD.replace("\n50", "\ninf"), "column 'age', row 3 is infinite"),
        (GOOD + "1,2,3\n", "not a CSV file"),
        (GOOD.replace(",no", ","), "label column 'late', row 3 is empty"),
        (GOOD + "1,1,1,true,maybe\n", "has 'maybe', 'no' beside the positive values"),
    ],
)
def test_bad_data_gets_one_sentence_with_file_column_row_and_remedy(text: str, said: str) -> None:
    assert said in refusal(text)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(DataError, match="not a CSV file"):
        read_columns(io.BytesIO(b"\xff\xfe\x00\x01,\n"), source="rows.csv")


def test_a_broken_parquet_file_is_refused() -> None:
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_columns(io.BytesIO(b"PAR1 and nothing more"), source="rows.parquet")


def test_a_label_outside_the_declared_values_is_refused() -> None:
    spec = task(BINARY.replace('positive = ["yes"]', 'positive = ["yes"]\nnegative = ["no"]'))

    assert "row 3 is 'maybe', which the task does not know" in refusal(GOOD.replace(",no", ",maybe"), spec)


def test_a_constant_label_cannot_be_trained_on_but_can_be_tested_on() -> None:
    data = encoded(GOOD.replace(",no", ",yes"))

    with pytest.raises(DataError, match="'late' has the same value in all 2 rows"):
        require_trainable(task(), data, "rows.csv")


def test_classes_become_their_numbers() -> None:
    text = BINARY.replace('"binary"', '"multiclass"').replace('positive = ["yes"]', 'classes = ["no", "maybe", "yes"]')

    data = encoded(GOOD, task(text))

    assert data.labels.tolist() == [2, 0]
    assert data.labels.dtype == np.int64


def test_a_regression_label_is_scaled_by_its_public_range() -> None:
    text = BINARY.replace('"binary"', '"regression"').replace("logistic", "linear")
    text = text.replace('positive = ["yes"]', "minimum = 10\nmaximum = 30")

    data = encoded(GOOD.replace(",yes", ",25").replace(",no", ",99"), task(text))

    assert data.labels.tolist() == [0.5, 1.0]


PERSONS = BINARY.replace('kind = "binary"', 'kind = "binary"\nperson = "customer"')
OF_PERSONS = "customer," + HEADER


def customers(*cells: object) -> list[int]:
    """The numbers that the cells of a Parquet column of persons become."""
    count = len(cells)
    table = pa.table(
        {"customer": list(cells), "age": [20] * count, "income": [0] * count, "sector": [11] * count, "owner": [True] * count}
        | {"late": ["yes", "no"] * (count // 2) + ["yes"] * (count % 2)}
    )
    persons = encode(task(PERSONS), table, "rows.parquet").persons
    assert persons is not None
    assert persons.dtype == np.int64
    return [int(number) for number in persons]


def test_rows_of_one_person_get_one_number_and_no_other_person_gets_it() -> None:
    data = encoded(OF_PERSONS + "b7,20,0,11,true,yes\na1,50,9,99,FALSE,no\n b7 ,50,9,99,FALSE,no\n", task(PERSONS))

    assert data.persons is not None
    assert data.persons.tolist() == [1, 0, 1]
    assert (len(data), data.units) == (3, 2)


def test_the_column_of_persons_is_no_input() -> None:
    with_persons = encoded(OF_PERSONS + "b7,20,0,11,true,yes\na1,50,9,99,FALSE,no\n", task(PERSONS))

    np.testing.assert_array_equal(with_persons.features, encoded(GOOD).features)
    assert task(PERSONS).inputs == task().inputs


def test_without_a_column_of_persons_each_row_counts_for_itself() -> None:
    assert encoded(GOOD).persons is None
    assert encoded(GOOD).units == 2


def test_a_number_is_the_same_person_however_it_is_written() -> None:
    assert customers("7", "7.0", " 7") == [0, 0, 0]
    assert customers(7, 8, 7) == [0, 1, 0]
    assert customers(7.0, 8.0) == [0, 1]


def test_long_numbers_that_a_float_cannot_tell_apart_are_different_persons() -> None:
    assert customers(9007199254740993, 9007199254740992) == [1, 0]
    assert customers("90071992547409930001", "90071992547409930002") == [0, 1]


@pytest.mark.parametrize("cell", ["", " ", "NA", "null"])
def test_a_row_that_does_not_say_whose_it_is_is_refused(cell: str) -> None:
    said = refusal(OF_PERSONS + f"b7,20,0,11,true,yes\n{cell},50,9,99,FALSE,no\n", task(PERSONS))

    assert said == "rows.csv: person column 'customer', row 3 is empty; say whose record it is or remove the row"


@pytest.mark.parametrize("cell", [None, float("nan")])
def test_a_null_is_nobody_in_parquet_too(cell: float | None) -> None:
    with pytest.raises(DataError, match=r"person column 'customer', row 2 is empty"):
        customers(cell, 8.0)


def test_a_file_without_its_column_of_persons_is_refused_unless_it_is_only_judged_by() -> None:
    assert "the column 'customer' is missing" in refusal(GOOD, task(PERSONS))

    table = read_columns(io.BytesIO(GOOD.encode()), source="rows.csv")
    assert encode(task(PERSONS), table, "rows.csv", with_persons=False).persons is None


def test_one_row_of_each_person_is_its_first() -> None:
    rows = Dataset(np.arange(5, dtype=np.float32)[:, None], np.zeros(5, dtype=np.float32), np.array([1, 0, 1, 2, 0]))

    assert one_row_each(rows).features[:, 0].tolist() == [1.0, 0.0, 3.0]
    assert one_row_each(encoded(GOOD)).units == 2


def test_example_rows_are_within_the_ranges_and_set_one_category_each() -> None:
    rows = example_rows(task(), 4)

    assert rows.shape == (4, task().inputs)
    assert rows.dtype == np.float32
    assert np.abs(rows).max() <= 1
    assert rows[:, 3:6].sum(1).tolist() == [1.0] * 4
    assert len({tuple(row) for row in rows.tolist()}) == 4
