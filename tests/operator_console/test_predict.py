"""`fedqueue predict`: raw rows in, predictions out, and words for everything that is wrong or unusual."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from operator_console.cli import app
from operator_console.model_file import write_model
from shared.errors import DataError
from shared.tasks.models import initial_parameters
from tests.cards import FRUITS, PRICE, RIPENESS, a_card

HEADER = "customer_id,weight,colour,orchard,organic,ripe\n"
GOOD = HEADER + "a,5,0,hill,1,yes\nb,10,100,valley,0,no\n"


@pytest.fixture
def model(tmp_path):
    """A model of which only the weight counts: its score is 1 / (1 + exp(-2 * scaled weight))."""

    def write(task=RIPENESS, **changes):
        card = a_card(task, **changes)
        parameters = {name: np.zeros_like(array) for name, array in initial_parameters(card.task, 0).items()}
        parameters["weight"][0, 0] = 2.0
        write_model(tmp_path / "model.safetensors", "safetensors", card, parameters)
        return tmp_path / "model.safetensors"

    return write


@pytest.fixture
def predict(tmp_path):
    def run(file, text, *words):
        data = tmp_path / "data.csv"
        if text is not None:
            data.write_text(text)
        return CliRunner().invoke(app, ["predict", "--model", str(file), *map(str, words), str(data)], catch_exceptions=False)

    return run


def score(weight):
    return 1 / (1 + math.exp(-2 * (weight / 5 - 1)))


def test_probabilities_and_classes_are_written_beside_the_id(predict, model, tmp_path):
    said = predict(model(), GOOD, "--out", tmp_path / "out.csv")
    header, *rows = [line.split(",") for line in (tmp_path / "out.csv").read_text().splitlines()]
    assert header == ["customer_id", "probability", "prediction"]
    assert [(row[0], row[2]) for row in rows] == [("a", "yes"), ("b", "yes")]
    assert [float(row[1]) for row in rows] == pytest.approx([score(5), score(10)], abs=1e-8)
    assert "2 predictions are written to" in said.stdout
    assert "on 2 rows with a label: auc 0.0000, log_loss" in said.stdout
    assert "accuracy 0.5000" in said.stdout


def test_a_threshold_of_ones_own_and_other_columns_are_taken(predict, model):
    lines = predict(model(), GOOD, "--threshold", "0.6", "--keep", "orchard", "--keep", "weight").stdout.splitlines()
    assert lines == ["orchard,weight,probability,prediction", "hill,5,0.5,no", f"valley,10,{score(10):.9g},yes"]


def test_rows_without_any_id_are_predicted_too(predict, model):
    text = "weight,colour,orchard,organic\n5,0,hill,1\n10,100,valley,0\n"
    assert predict(model(), text, "--threshold", "0.6").stdout.splitlines() == [
        "probability,prediction",
        "0.5,no",
        f"{score(10):.9g},yes",
    ]


def test_without_a_threshold_no_row_is_called_positive(predict, model):
    said = predict(model(decision=None), GOOD)
    assert said.stdout.splitlines()[0] == "customer_id,probability"
    assert "--threshold sets one" in said.stderr


def test_cells_that_the_model_takes_in_its_own_way_are_counted(predict, model):
    rows = "a,,1,hill,1,\nb,-1,1,moon,1,\nc,11,-5,sun,2,\nd,5,1,,0,\n"
    said = predict(model(), HEADER + rows)
    assert said.stderr.splitlines() == [
        "column weight: 2 empty cells count as the middle of the range",
        "column weight: 1 values are beyond 0..10 and count as the nearest end",
        "column colour: 1 values are beyond 0..100 and count as the nearest end",
        "column orchard: 1 empty cells count as anything else",
        "column orchard: 2 cells have a category that the task does not know, such as 'moon'; they count as anything else",
        "no row has a label, so how good they are cannot be said",
    ]
    assert [line.split(",")[1] for line in said.stdout.splitlines()[1:]] == ["0.5", "0.5", f"{score(10):.9g}", "0.5"]


def test_rows_without_a_label_are_predicted_and_left_out_of_the_figures(predict, model):
    said = predict(model(), GOOD + "c,1,1,hill,0,\n")
    assert len(said.stdout.splitlines()) == 4
    assert "on 2 rows with a label" in said.stderr
    unlabelled = "\n".join(line.rpartition(",")[0] for line in GOOD.splitlines()) + "\n"
    assert predict(model(), unlabelled).stderr == ""
    said = predict(model(), GOOD + "c,1,1,hill,0,maybe\n")
    assert len(said.stdout.splitlines()) == 4
    assert "how good they are cannot be said" in said.stderr
    assert "row 4 is 'maybe', which the task does not know" in said.stderr


def test_each_class_has_a_probability_and_a_number_is_in_the_labels_unit(predict, model):
    lines = predict(model(FRUITS), GOOD.replace("yes", "apple").replace("no\n", "plum\n")).stdout.splitlines()
    assert lines[0] == "customer_id,prediction,probability_apple,probability_pear,probability_plum"
    assert lines[2].split(",")[:2] == ["b", "apple"]
    assert sum(float(cell) for cell in lines[2].split(",")[2:]) == pytest.approx(1)


def test_a_number_is_in_the_labels_unit(predict, tmp_path):
    card = a_card(PRICE, metrics={"rmse": 2.0}, decision=None)
    parameters = {name: np.zeros_like(array) for name, array in initial_parameters(card.task, 0).items()}
    write_model(tmp_path / "model.safetensors", "safetensors", card, parameters)
    said = predict(tmp_path / "model.safetensors", GOOD.replace("yes", "250000").replace("no\n", "350000\n"))
    assert said.stdout.splitlines() == ["customer_id,prediction", "a,250000", "b,250000"]
    assert "on 2 rows with a label: rmse 70710.67" in said.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "data.csv: the file is empty; write a header line"),
        (HEADER, "data.csv: the file has columns but no rows"),
        (GOOD.replace("colour", "color"), "the column 'colour' is missing; add it, or correct its name"),
        (GOOD.replace("b,10", "b,ten"), "column 'weight', row 3 is 'ten', not a number"),
        (GOOD.replace("b,10", "b,inf"), "column 'weight', row 3 is infinite"),
        ("\udcff".encode("utf-8", "surrogateescape"), "not a CSV file"),
        (None, "cannot be read: "),
    ],
)
def test_what_cannot_be_predicted_is_refused_and_nothing_is_written(predict, model, tmp_path, text, words):
    if isinstance(text, bytes):
        (tmp_path / "data.csv").write_bytes(text + GOOD.encode())
        text = None
    with pytest.raises(DataError, match=words):
        predict(model(), text, "--out", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    assert list(tmp_path.glob(".out*")) == []


def test_what_is_read_is_not_overwritten(predict, model, tmp_path):
    said = predict(model(), GOOD, "--out", tmp_path / "data.csv")
    assert said.exit_code == 2
    assert "it would overwrite what is read" in said.output
    assert (tmp_path / "data.csv").read_text() == GOOD
    assert (
        "is what the prediction's own column is called"
        in predict(model(), GOOD.replace("ripe", "probability"), "--keep", "probability").output
    )


def test_a_file_of_many_pieces_is_read_like_one_and_its_rows_are_counted_through(predict, model, tmp_path):
    """Arrow reads CSV by the MiB: what is wrong far behind is named by its row in the whole file."""
    count = 120_000
    lines = [f"c{row},{row % 11},{row % 90},hill,{row % 2},yes" for row in range(count)]
    said = predict(model(), HEADER + "\n".join(lines) + "\n", "--out", tmp_path / "out.csv")
    assert f"{count:,} predictions" in said.stdout
    written = (tmp_path / "out.csv").read_text().splitlines()
    assert len(written) == count + 1
    assert written[-1].startswith(f"c{count - 1},{score((count - 1) % 11):.6g}"[:12])
    lines[-1] = lines[-1].replace("hill", "hill").replace(f",{(count - 1) % 11},", ",heavy,")
    with pytest.raises(DataError, match=f"column 'weight', row {count + 1} is 'heavy'"):
        predict(model(), HEADER + "\n".join(lines) + "\n")


def test_parquet_is_read_as_well(predict, model, tmp_path):
    columns = {"weight": [5.0, None], "colour": [1, 2], "orchard": ["hill", None], "organic": [True, False], "id": [1, 2]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "data.csv")
    assert predict(model(), None).stdout.splitlines() == ["id,probability,prediction", "1,0.5,yes", "2,0.5,yes"]
