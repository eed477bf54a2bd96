"""Rows into numbers, by public ranges and categories alone: nothing is computed from the data, so scaling leaks nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shared.errors import DataError
from shared.tasks.spec import Categorical, Label, Numeric, TaskSpec, canonical
from shared.tasks.tables import select

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
FIRST_DATA_ROW = 2  # row 1 of a CSV file is its header
MOST_EXACT_DIGITS = 15  # of a number that a float64 tells from its neighbours


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Encoded rows: float32 features (rows, inputs); labels 0 or 1, or scaled to [-1, 1], in float32, or a class in int64.

    `persons` says whose record each row is, as numbers from 0 without a gap; None where each row counts for itself. It is no
    input of a model and never leaves.
    """

    features: NDArray[np.float32]
    labels: NDArray[Any]
    persons: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def units(self) -> int:
        """How many are protected: persons, or rows where each counts for itself."""
        return len(self) if self.persons is None else int(self.persons.max(initial=-1)) + 1


def encode(spec: TaskSpec, table: pa.Table, source: str, *, with_persons: bool = True) -> Dataset:
    """The dataset in a table that has the task's columns. Raises DataError naming file, column, row and remedy.

    Rows that are only judged by, and public, need no column of persons.
    """
    wanted = [name for name in spec.columns if with_persons or name != spec.person]
    columns = select(table, wanted, source=source)
    features = np.empty((columns.num_rows, spec.inputs), dtype=np.float32)
    position = 0
    for block in _feature_blocks(spec, columns, source):
        features[:, position : position + block.shape[1]] = block
        position += block.shape[1]
    persons = _persons(columns[spec.person], spec.person, source) if spec.person and with_persons else None
    return Dataset(features, labels(spec, columns, source), persons)


def require_trainable(spec: TaskSpec, dataset: Dataset, source: str) -> None:
    """Raises DataError if every row has the same label: there is nothing to learn from such a file alone."""
    if len(np.unique(dataset.labels)) == 1:
        raise DataError(
            f"{source}: the label column {spec.label.column!r} has the same value in all {len(dataset)} rows; "
            "add rows with another, or correct the label in the task"
        )


def label_scale(label: Label) -> tuple[float, float]:
    """Midpoint and half-width of the public range of a regression label."""
    if label.minimum is None or label.maximum is None:
        raise ValueError("only a regression label has a range")
    return (label.minimum + label.maximum) / 2, (label.maximum - label.minimum) / 2


def example_rows(spec: TaskSpec, count: int) -> NDArray[np.float32]:
    """Rows as encoded data may look, of no data: every number within its range, one category set in each column."""
    blocks, place = [], np.arange(count)
    columns = [group for group in spec.groups for _ in group.names]
    for number, group in enumerate(columns):
        block = np.zeros((count, group.width), dtype=np.float32)
        if isinstance(group, Categorical):
            block[place, (place + number) % group.width] = 1.0
        else:
            block[:, 0] = np.cos(1.0 + 1.7 * number + 2.3 * place)
        blocks.append(block)
    return np.hstack(blocks)


def one_row_each(dataset: Dataset) -> Dataset:
    """The first row of each person; the dataset itself where each row counts for itself."""
    if dataset.persons is None:
        return dataset
    _, first = np.unique(dataset.persons, return_index=True)
    return Dataset(dataset.features[first], dataset.labels[first], dataset.persons[first])


def _persons(column: pa.ChunkedArray, name: str, source: str) -> NDArray[np.int64]:
    """Equal cells become equal numbers; as in categories, 7, 7.0 and "7" are equal."""
    values = [_person(cell) for cell in column.to_pylist()]
    if "" in values:
        where = f"{source}: person column {name!r}, row {values.index('') + FIRST_DATA_ROW}"
        raise DataError(f"{where} is empty; say whose record it is or remove the row")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _person(cell: object) -> str:
    """Text as it stands where a float would not tell long numbers apart."""
    text = "" if cell is None else str(cell).strip()
    if text.lower() in MISSING:
        return ""
    return text if len(text) > MOST_EXACT_DIGITS else canonical(text)


def _feature_blocks(spec: TaskSpec, columns: pa.Table, source: str) -> Iterator[NDArray[np.float32]]:
    for group, _, values in feature_values(spec, columns, source):
        yield feature_block(group, values)


def feature_values(
    spec: TaskSpec, columns: pa.Table, source: str, *, first_row: int = FIRST_DATA_ROW
) -> Iterator[tuple[Numeric | Categorical, str, Any]]:
    """Each feature column's declaration, name and cells, in the order of the model's inputs: numbers with NaN for a missing one,
    or text, empty for a missing one. `first_row` is the number of the table's first row, for errors. Raises DataError.
    """
    for numeric in spec.numeric:
        for name in numeric.names:
            yield numeric, name, numbers(columns[name], name, source, first_row=first_row)
    for categorical in spec.categorical:
        for name in categorical.names:
            yield categorical, name, texts(columns[name])


def feature_block(group: Numeric | Categorical, values: Any) -> NDArray[np.float32]:
    """The model inputs that are made of one column's cells."""
    return _scale(group, values) if isinstance(group, Numeric) else _one_hot(group, values)


def texts(column: pa.ChunkedArray) -> list[str]:
    """Each cell as canonical text; a missing one is empty."""
    cells = column.to_pylist()
    known = {cell: _text(cell) for cell in set(cells)}
    return [known[cell] for cell in cells]


def _text(cell: object) -> str:
    text = "" if cell is None else canonical(cell)
    return "" if text.lower() in MISSING else text


def numbers(column: pa.ChunkedArray, name: str, source: str, *, first_row: int = FIRST_DATA_ROW) -> NDArray[np.float64]:
    """Each cell as a number; a missing one is NaN. Raises DataError at the first cell that is text or infinite."""
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy().astype(np.float64)
    else:
        values = np.array([_number(cell, row, name, source) for row, cell in enumerate(column.to_pylist(), start=first_row)])
    infinite = np.flatnonzero(np.isinf(values))
    if len(infinite):
        raise DataError(f"{source}: column {name!r}, row {infinite[0] + first_row} is infinite; correct it or leave it empty")
    return values


def _number(cell: object, row: int, name: str, source: str) -> float:
    text = "" if cell is None else str(cell).strip()
    if text.lower() in MISSING:
        return np.nan
    try:
        return float(int(cell)) if isinstance(cell, bool) else float(text)
    except ValueError:
        where = f"{source}: column {name!r}, row {row}"
        raise DataError(f"{where} is {text[:40]!r}, not a number; correct it, leave it empty, or make it categorical") from None


def _scale(numeric: Numeric, values: NDArray[np.float64]) -> NDArray[np.float32]:
    missing = np.isnan(values) | np.isin(values, numeric.missing_values)
    span = numeric.minimum, numeric.maximum
    position, first, last = np.clip(values, *span), *span
    if numeric.log:
        position, first, last = np.log1p(position), math.log1p(first), math.log1p(last)
    share = (position - first) / (last - first)
    scaled = np.where(missing, 0.0, 2.0 * share - 1.0)
    block = np.column_stack([scaled, missing]) if numeric.missing == "indicator" else scaled[:, None]
    return block.astype(np.float32)


def _one_hot(categorical: Categorical, values: list[str]) -> NDArray[np.float32]:
    slots = {category: slot for slot, category in enumerate(categorical.categories)}
    block = np.zeros((len(values), len(slots) + 1), dtype=np.float32)
    block[np.arange(len(values)), [slots.get(value, len(slots)) for value in values]] = 1.0
    return block[:, : categorical.width]


def labels(spec: TaskSpec, columns: pa.Table, source: str) -> NDArray[Any]:
    """The encoded labels of a table that has the label's column. Raises DataError where one is empty or unknown."""
    label, column = spec.label, columns[spec.label.column]
    if spec.kind == "regression":
        return _scaled_label(label, numbers(column, label.column, source), source)
    values = texts(column)
    _require_present(values, label.column, source)
    if spec.kind == "multiclass":
        return np.array(_class_numbers(values, label, source), dtype=np.int64)
    if label.negative:
        _require_known(values, (*label.positive, *label.negative), label.column, source)
    else:
        _require_two_values(values, label, source)
    return np.isin(values, label.positive).astype(np.float32)


def _scaled_label(label: Label, values: NDArray[np.float64], source: str) -> NDArray[np.float32]:
    missing = np.flatnonzero(np.isnan(values))
    if len(missing):
        _refuse_missing_label(label.column, int(missing[0]), source)
    midpoint, half = label_scale(label)
    return (np.clip((values - midpoint) / half, -1.0, 1.0)).astype(np.float32)


def _class_numbers(values: list[str], label: Label, source: str) -> list[int]:
    _require_known(values, label.classes, label.column, source)
    numbering = {name: number for number, name in enumerate(label.classes)}
    return [numbering[value] for value in values]


def _require_present(values: list[str], column: str, source: str) -> None:
    if "" in values:
        _refuse_missing_label(column, values.index(""), source)


def _refuse_missing_label(column: str, row: int, source: str) -> None:
    where = f"{source}: label column {column!r}, row {row + FIRST_DATA_ROW}"
    raise DataError(f"{where} is empty; a row without a label teaches nothing: fill it in or remove the row")


def _require_known(values: list[str], known: tuple[str, ...], column: str, source: str) -> None:
    strange = set(values) - set(known)
    if strange:
        row = next(row for row, value in enumerate(values) if value in strange)
        where = f"{source}: label column {column!r}, row {row + FIRST_DATA_ROW}"
        raise DataError(f"{where} is {values[row][:40]!r}, which the task does not know; correct it, or declare it in [label]")


def _require_two_values(values: list[str], label: Label, source: str) -> None:
    """Without declared negatives at most one other value may be one: a third is more likely a mistake than a class."""
    others = sorted(set(values) - set(label.positive))
    if len(others) > 1:
        raise DataError(
            f"{source}: label column {label.column!r} has {', '.join(map(repr, others[:4]))} beside the positive values; "
            "correct them, or list label.negative in the task"
        )
