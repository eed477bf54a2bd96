"""The rows of a new project: made up, or those of a file, divided by chance among the institutions and the operator."""

import random
from collections.abc import Sequence
from pathlib import Path

from operator_console.column_guess import guess, is_missing
from operator_console.made_up_rows import DRAFT, TITLE, Rows, invoices
from operator_console.project import Project
from shared.errors import DataError
from shared.tasks.tables import read_columns

HELD_OUT_EVERY = 5
FEWEST_EACH = 10


def made_up(name: str, institutions: Sequence[str], *, rows_each: int, seed: int, own_torch_model: bool) -> Project:
    """A project with rows of the same kind everywhere."""
    first = 1000 * seed
    rows = {each: invoices(rows_each, first + number) for number, each in enumerate(institutions, start=1)}
    return Project(name, TITLE, DRAFT, rows, invoices(2 * rows_each, first), own_torch_model=own_torch_model)


def of_file(
    name: str, file: Path, label: str, institutions: Sequence[str], *, seed: int, own_torch_model: bool = False
) -> Project:
    """A project with the rows of a CSV or Parquet file that have a label; a fifth is held out. Raises DataError."""
    rows = _labelled(file, label)
    if len(rows) < FEWEST_EACH * (len(institutions) + 1):
        raise DataError(
            f"{file}: {len(rows)} rows with a label are too few for {len(institutions)} institutions and held-out rows; "
            f"each needs {FEWEST_EACH}"
        )
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    draft = guess(columns, label, source=str(file))
    *shares, held_out = _divided(rows, label, len(institutions), random.Random(seed))  # noqa: S311 - a division for a trial
    named = dict(zip(institutions, shares, strict=True))
    title = f"What is {label}?"
    return Project(name, title, draft, named, held_out, source=file.name, own_torch_model=own_torch_model)


def _divided(rows: Rows, label: str, institutions: int, rng: random.Random) -> list[Rows]:
    """Equal shares, and held-out rows behind them; each value of the label is spread evenly."""
    rng.shuffle(rows)
    rows.sort(key=lambda row: row[label])
    held_out = rows[::HELD_OUT_EVERY]
    rest = [row for place, row in enumerate(rows) if place % HELD_OUT_EVERY]
    parts = [*(rest[number::institutions] for number in range(institutions)), held_out]
    for part in parts:
        rng.shuffle(part)
    return parts


def _labelled(file: Path, label: str) -> Rows:
    try:
        with file.open("rb") as opened:
            table = read_columns(opened, source=str(file))
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}; check the path and this user's right to read it") from error
    if label not in table.column_names:
        raise DataError(f"{file}: there is no column {label!r} to predict; the file has {', '.join(table.column_names)}")
    rows = [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in table.to_pylist()]
    return [row for row in rows if not is_missing(row[label])]
