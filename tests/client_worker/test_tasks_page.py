"""The examples of docs/tasks.md, tried."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from client_worker.data import load_dataset
from shared.errors import DataError
from shared.tasks.spec import parse_task

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tasks.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


SPEC = parse_task(block("toml"), source="docs/tasks.md")
CSV = block("csv")


def test_the_example_fits_its_task(tmp_path: Path) -> None:
    file = tmp_path / "loans.csv"
    file.write_text(CSV)

    data = load_dataset(SPEC, file)

    assert data.features.shape == (4, 6)
    assert data.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "age,income,region,late\n",
        "age,region,late\n34,north,no\n",
        CSV.replace("\n51", "\nfifty"),
        CSV.replace("\n51", "\ninf"),
        CSV.replace("south,yes", "south,"),
        CSV.replace("south,yes", "south,maybe"),
        CSV.replace(",no\n", ",yes\n"),
    ],
)
def test_bad_data_says_what_the_page_says(text: str, tmp_path: Path) -> None:
    file = tmp_path / "loans.csv"
    file.write_text(text)

    with pytest.raises(DataError) as caught:
        load_dataset(SPEC, file)
    assert f"`{str(caught.value).removeprefix(f'{tmp_path}/')}`" in PAGE


def test_a_row_of_nobody_says_what_the_page_says(tmp_path: Path) -> None:
    file = tmp_path / "loans.csv"
    file.write_text(
        "id," + CSV.replace("\n34", "\na,34").replace("\n51", "\n,51").replace("\n29", "\na,29").replace("\n62", "\nb,62")
    )

    with pytest.raises(DataError) as caught:
        load_dataset(SPEC.model_copy(update={"person": "id"}), file)
    assert f"`{str(caught.value).removeprefix(f'{tmp_path}/')}`" in PAGE


def test_a_model_of_ones_own_is_found_on_the_path_and_trained_with_noise(tmp_path: Path) -> None:
    (tmp_path / "bank_models.py").write_text(block("python"))
    (tmp_path / "loans.csv").write_text(CSV)
    (tmp_path / "task.toml").write_text(block("toml").replace('"logistic"', '"bank_models:build"'))
    code = """
from pathlib import Path
from client_worker.data import load_dataset
from client_worker.mechanism import LocalTraining
from client_worker.training import local_update
from shared.tasks.models import initial_parameters
from shared.tasks.spec import parse_task
spec = parse_task(Path("task.toml").read_text(), source="task.toml")
settings = LocalTraining(
    mechanism="dp-sgd", steps=2, sample_rate=0.5, expected_rows=1.0, learning_rate=1.0, clipping_norm=1.0, noise_multiplier=1.0
)
print(*local_update(spec, initial_parameters(spec, 0), load_dataset(spec, Path("loans.csv")), settings))
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}

    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert answer.stdout.split() == ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"], answer.stderr


def test_every_key_of_a_task_is_on_the_page() -> None:
    keys = set(re.findall(r"`(\w+)`", PAGE))

    parts = (SPEC, SPEC.label, SPEC.numeric[0], SPEC.categorical[0], SPEC.model, SPEC.training, SPEC.aggregation, SPEC.transport)
    for part in parts:
        tables = {"label", "numeric", "categorical", "model", "training", "aggregation", "transport"} if part is SPEC else set()
        assert set(type(part).model_fields) - tables <= keys
