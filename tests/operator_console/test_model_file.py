"""A model file and its card: what was written is what is read, and anything else is refused in words."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from operator_console.card_facts import tells_of
from operator_console.cli import app
from operator_console.history import History
from operator_console.model_card import METADATA_KEY, read_card
from operator_console.model_file import card_in, read_model, write_model, write_without_card
from shared.errors import DataError, SettingsError, StorageError
from shared.tasks.models import initial_parameters
from shared.tasks.predictions import predict
from shared.tasks.spec import parse_task
from tests.cards import FRUITS, PRICE, RIPENESS, a_card

ROWS = np.linspace(-1, 1, 21, dtype=np.float32).reshape(3, 7)


def parameters_of(card, seed=1):
    rng = np.random.default_rng(seed)
    first = initial_parameters(card.task, 0)
    return {name: rng.normal(size=array.shape).astype(np.float32) for name, array in first.items()}


@pytest.mark.parametrize("task", [RIPENESS, FRUITS, PRICE])
def test_a_safetensors_file_gives_back_card_task_and_predictions(tmp_path, task):
    card = a_card(task)
    parameters = parameters_of(card)
    write_model(tmp_path / "model.safetensors", "safetensors", card, parameters)
    found = read_model(tmp_path / "model.safetensors")
    assert found.card == card
    assert found.spec.hash == parse_task(task, source="the task").hash
    assert np.array_equal(found.predict(ROWS), predict(card.task, parameters, ROWS))


def test_the_card_stands_beside_the_file_in_words(tmp_path):
    write_model(tmp_path / "model.safetensors", "safetensors", a_card(), parameters_of(a_card()))
    text = (tmp_path / "model.md").read_text()
    assert "# Model card: Is it ripe?" in text
    assert "The probability that `ripe` is yes.\nA row is called positive from 0.5000 on." in text
    assert "| weight | a number | value scaled from 0..10 to -1..1; an empty cell counts as the middle; so does -1 |" in text
    assert (
        "| colour | a number | log(1 + value) scaled from 0..100 to -1..1; an empty cell counts as the middle, and sets one"
        in text
    )
    assert (
        "| orchard | categories | one input each for hill, valley; one more input for anything else, an empty cell too |" in text
    )
    assert "| organic | categories | one input each for 1; anything else sets no input |" in text
    assert "2 institutions with 500 examples in all, from 2023-11-14 22:13:20 UTC to 2023-11-14 23:13:20 UTC" in text
    assert "Each institution spends at most epsilon 3 at delta 1e-05" in text
    assert "| institution 1 | 4 | 1.250 | 1e-05 |" in text
    assert "picked as the best of 9 measured versions" in text
    assert CliRunner().invoke(app, ["model", "card", str(tmp_path / "model.safetensors")]).output == text


def test_a_card_says_what_is_missing_where_nothing_protects_and_nothing_was_measured():
    privacy = a_card().privacy.model_copy(update={"mechanism": "none", "epsilon_budget": None})
    text = a_card(privacy=privacy, metrics={}, decision=None, why="it is the newest", version=0).markdown()
    assert "None: it was trained without noise." in text
    assert "It was not measured." in text
    assert "no threshold was declared, and none measured" in text
    assert "Version 0 has learned nothing yet." in text
    assert "who has it may find out whether a row was in the training data" in text


def test_a_file_of_another_kind_a_cut_one_and_one_without_a_card_are_refused(tmp_path):
    files = {name: tmp_path / name for name in ("other", "cut", "bare", "missing", "altered", "shape")}
    files["other"].write_text("weight,colour\n1,2\n")
    write_model(tmp_path / "model.safetensors", "safetensors", a_card(), parameters_of(a_card()))
    files["cut"].write_bytes((tmp_path / "model.safetensors").read_bytes()[:-3])
    save_file(parameters_of(a_card()), files["bare"])
    metadata = json.loads(a_card().as_metadata()[METADATA_KEY])
    save_file(parameters_of(a_card()), files["altered"], metadata={METADATA_KEY: json.dumps({**metadata, "version": "x"})})
    save_file({"weight": np.zeros(2, np.float32)}, files["shape"], metadata=a_card().as_metadata())
    expected = {
        "other": "is neither a safetensors nor an ONNX file",
        "cut": "is no whole safetensors file",
        "bare": "holds no model card",
        "missing": "cannot be read: No such file",
        "altered": r"the model card in it cannot be read \(its version\)",
        "shape": "its parameters are not those of the model logistic",
    }
    for name, words in expected.items():
        with pytest.raises(DataError, match=words):
            read_model(files[name])
    task = parse_task(RIPENESS, source="the task")
    assert read_model(files["bare"], task=task).card is None
    with pytest.raises(DataError, match="holds another task than --task names"):
        read_model(tmp_path / "model.safetensors", task=parse_task(PRICE, source="the task"))
    assert card_in(files["bare"]) is None


def test_a_version_that_the_lineage_no_longer_tells_of_is_written_without_a_card(tmp_path):
    file, parameters = tmp_path / "model.safetensors", parameters_of(a_card())
    assert not tells_of(History({}), 3)
    write_without_card(file, "safetensors", {"version": "3"}, parameters)
    task = parse_task(RIPENESS, source="the task")
    assert np.array_equal(read_model(file, task=task).predict(ROWS), predict(task, parameters, ROWS))
    with pytest.raises(SettingsError, match="take --format safetensors, or --newest"):
        write_without_card(file, "onnx", {"version": "3"}, parameters)
    with pytest.raises(StorageError, match="name another file with --out"):
        write_without_card(tmp_path / "nowhere" / "model", "safetensors", {}, parameters)


def test_a_card_of_a_later_schema_is_refused():
    metadata = json.loads(a_card().as_metadata()[METADATA_KEY])
    with pytest.raises(DataError, match="another version of fedqueue wrote it"):
        read_card({METADATA_KEY: json.dumps({**metadata, "schema_number": 2})}, source="f")


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    with pytest.raises(StorageError, match="name another file with --out"):
        write_model(tmp_path / "nowhere" / "model.safetensors", "safetensors", a_card(), parameters_of(a_card()))
