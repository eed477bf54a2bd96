import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from shared.errors import DataError
from shared.tasks.features import Dataset, encode, require_trainable
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
