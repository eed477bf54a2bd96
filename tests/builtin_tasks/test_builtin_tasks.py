import hashlib
import re
from importlib.resources import files

import pytest

import builtin_tasks
from shared.tasks.spec import parse_task


@pytest.mark.parametrize("task", builtin_tasks.TASKS)
def test_every_built_in_task_is_one(task: str) -> None:
    assert parse_task(builtin_tasks.task_text(task), source=task).name == task


@pytest.mark.parametrize("task", builtin_tasks.ROWS)
def test_shipped_files_are_those_that_their_readme_names(task: str) -> None:
    folder = files("builtin_tasks") / builtin_tasks.TASKS[task]
    named = re.findall(r"[0-9a-f]{64}", (folder / "README.md").read_text())
    shipped = hashlib.sha256((folder / builtin_tasks.ROWS[task]).read_bytes()).hexdigest()
    content = hashlib.sha256(builtin_tasks.rows(task)).hexdigest()

    assert set(named) == {shipped, content}


@pytest.mark.parametrize("task", builtin_tasks.TASKS)
def test_every_data_set_says_its_licence(task: str) -> None:
    text = (files("builtin_tasks") / builtin_tasks.TASKS[task] / "README.md").read_text()
    assert "Licence" in text or "CC BY" in text
