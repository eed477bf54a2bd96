"""A model as ONNX: onnxruntime says of every row what torch says, for every kind of task. In the environment with the extras."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import builtin_tasks
from operator_console.cli import app
from operator_console.model_file import card_in, read_model, write_model
from shared.errors import DataError, SettingsError
from shared.tasks.features import example_rows
from shared.tasks.models import initial_parameters
from shared.tasks.predictions import predict
from tests.cards import FRUITS, PRICE, RIPENESS, a_card

PAGE = Path(__file__).parents[2] / "docs" / "using-the-model.md"
OWN = """
from torch import nn


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, outputs))


def image(inputs, outputs):
    side = int(inputs**0.5)
    return nn.Sequential(
        nn.Unflatten(1, (1, side, side)), nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(4 * (side // 2) ** 2, outputs),
    )
"""
ROWS = """\
id,weight,colour,orchard,organic
1,5,20,hill,1
2,,NA,moon,0
3,99,-4,valley,1.0
4,-1,0,,TRUE
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "orchard_networks.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))


def learned(card):
    """Parameters that no symmetry hides a mistake in, of a trained model's size."""
    rng = np.random.default_rng(3)
    first = initial_parameters(card.task, 0)
    scales = {name: 1.5 / np.prod(array.shape[1:]) ** 0.5 if array.ndim > 1 else 0.2 for name, array in first.items()}
    return {name: rng.normal(scale=scales[name], size=array.shape).astype(np.float32) for name, array in first.items()}


TASKS = {name: builtin_tasks.task_text(name) for name in builtin_tasks.TASKS} | {
    "regression": PRICE,
    "own network": RIPENESS.replace('"logistic"', '"orchard_networks:network"'),
    "own image network": builtin_tasks.task_text("digits").replace('"mlp"\nhidden = [16]', '"orchard_networks:image"'),
}


@pytest.mark.extras
@pytest.mark.long
@pytest.mark.parametrize("name", TASKS)
def test_onnxruntime_and_torch_agree_within_a_millionth(name, tmp_path, own_module):
    card = a_card(TASKS[name])
    parameters = learned(card)
    write_model(tmp_path / "model.onnx", "onnx", card, parameters)
    found = read_model(tmp_path / "model.onnx")
    span = card.task.label.maximum or 1.0  # of a number; a probability's is 1
    assert found.card == card
    assert "# Model card" in (tmp_path / "model.md").read_text()
    for count in (1, 2, 1000):
        rows = example_rows(card.task, count)
        ours, theirs = predict(card.task, parameters, rows), found.predict(rows)
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-6 * span
    assert np.ptp(predict(card.task, parameters, example_rows(card.task, 1000))) > 0.1 * span


@pytest.mark.extras
@pytest.mark.long
@pytest.mark.parametrize("task", [RIPENESS, FRUITS, PRICE])
def test_the_program_of_the_page_says_what_fedqueue_predict_says(task, tmp_path):
    """It has nothing of fedqueue: rows are prepared from the card alone."""
    card = a_card(task)
    write_model(tmp_path / "model.onnx", "onnx", card, learned(card))
    write_model(tmp_path / "model.safetensors", "safetensors", card, learned(card))
    (tmp_path / "rows.csv").write_text(ROWS)
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-I", "program.py", "model.onnx", "rows.csv"]
    said = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    written = {}
    for form in ("onnx", "safetensors"):
        words = ["predict", "--model", str(tmp_path / f"model.{form}"), str(tmp_path / "rows.csv")]
        header, *lines = CliRunner().invoke(app, words, catch_exceptions=False).stdout.splitlines()
        numbers = [place for place, name in enumerate(header.split(",")) if name.startswith("probability") or task == PRICE]
        written[form] = [[float(line.split(",")[place]) for place in numbers if place] for line in lines]
    theirs = [np.atleast_1d(np.array(eval(line))) for line in said.splitlines()]  # a number or a list of numbers
    assert len(theirs) == 4
    for form in written.values():
        assert np.allclose(np.array(theirs), np.array(form), rtol=1e-6, atol=1e-6)


@pytest.mark.extras
@pytest.mark.long
def test_an_onnx_file_needs_no_torch_to_predict(tmp_path):
    write_model(tmp_path / "model.onnx", "onnx", a_card(), learned(a_card()))
    (tmp_path / "rows.csv").write_text(ROWS)
    program = f"""
import sys
from operator_console.cli import app
try:
    app(["predict", "--model", "{tmp_path}/model.onnx", "{tmp_path}/rows.csv"])
finally:
    print("torch" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[0] == "id,probability,prediction"
    assert said.splitlines()[-1] == "False"


@pytest.mark.extras
@pytest.mark.long
def test_a_cut_onnx_file_and_one_without_a_card_are_refused(tmp_path):
    import onnx

    write_model(tmp_path / "model.onnx", "onnx", a_card(), learned(a_card()))
    content = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="is no whole ONNX file"):
        read_model(tmp_path / "cut.onnx")
    bare = onnx.load(tmp_path / "model.onnx")
    del bare.metadata_props[:]
    onnx.save(bare, tmp_path / "bare.onnx")
    assert card_in(tmp_path / "bare.onnx") is None
    with pytest.raises(DataError, match="holds no model card"):
        read_model(tmp_path / "bare.onnx")


def test_without_the_extra_one_sentence_says_how_to_install_it(tmp_path, monkeypatch):
    for package in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SettingsError, match=r"an ONNX file needs the package onnx: install the extra.*\.\[onnx\]"):
        write_model(tmp_path / "model.onnx", "onnx", a_card(), learned(a_card()))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model.onnx").write_bytes(b"\x08\x0a" + bytes(20))
    with pytest.raises(SettingsError, match="pip install onnxruntime"):
        read_model(tmp_path / "model.onnx")
