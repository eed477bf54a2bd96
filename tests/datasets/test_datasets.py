import hashlib
import re
from importlib.resources import files

import pytest

import datasets
from shared.tasks.spec import parse_task


@pytest.mark.parametrize("task", datasets.TASKS)
def test_every_built_in_task_is_one(task: str) -> None:
    assert parse_task(datasets.task_text(task), source=task).name == task


@pytest.mark.parametrize("task", datasets.ROWS)
def test_shipped_files_are_those_that_their_readme_names(task: str) -> None:
    folder = files("datasets") / datasets.TASKS[task]
    named = re.findall(r"[0-9a-f]{64}", (folder / "README.md").read_text())
    shipped = hashlib.sha256((folder / datasets.ROWS[task]).read_bytes()).hexdigest()
    content = hashlib.sha256(datasets.rows(task)).hexdigest()

    assert set(named) == {shipped, content}


@pytest.mark.parametrize("task", datasets.TASKS)
def test_every_data_set_says_its_licence(task: str) -> None:
    assert "CC BY" in (text := (files("datasets") / datasets.TASKS[task] / "README.md").read_text()) or "Licence" in text
