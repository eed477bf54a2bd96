"""Predictions of a model for raw rows, a piece of a file after the other, and what is to be told about the rows."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from operator_console.column_guess import ID_NAME
from operator_console.model_file import Floats, ModelFile
from shared.tasks.features import FIRST_DATA_ROW, feature_block, feature_values, labels, texts
from shared.tasks.spec import Categorical, Numeric, TaskSpec
from shared.tasks.tables import select

if TYPE_CHECKING:
    from shared.tasks.metrics import Figures


@dataclass(slots=True)
class Notes:
    """What the rows had that the model takes in its own way, counted by column."""

    missing: Counter[str] = field(default_factory=Counter)
    beyond: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def take(self, group: Numeric | Categorical, name: str, values: Any) -> None:
        """Counts one column of a piece."""
        if isinstance(group, Categorical):
            # Without `other` what is not declared is usual: most rows share a value that is left out.
            known = {"", *group.categories}
            strange = [value for value in values if value not in known] if group.other else []
            self.unknown[name] += len(strange)
            self.missing[name] += sum(value == "" for value in values) if "" not in group.categories else 0
            if strange:
                self.examples.setdefault(name, strange[0])
            return
        empty = np.isnan(values) | np.isin(values, group.missing_values)
        self.missing[name] += int(empty.sum())
        self.beyond[name] += int((~empty & ((values < group.minimum) | (values > group.maximum))).sum())

    def lines(self, spec: TaskSpec) -> Iterator[str]:
        """A sentence for each column and each thing."""
        groups = {name: group for group in spec.groups for name in group.names}
        for name, group in groups.items():
            if self.missing[name]:
                how = "the middle of the range" if isinstance(group, Numeric) else _other(group)
                yield f"column {name}: {self.missing[name]:,} empty cells count as {how}"
            if self.beyond[name] and isinstance(group, Numeric):
                span = f"{group.minimum:g}..{group.maximum:g}"
                yield f"column {name}: {self.beyond[name]:,} values are beyond {span} and count as the nearest end"
            if self.unknown[name]:
                told = f"column {name}: {self.unknown[name]:,} cells have a category that the task does not know"
                yield f"{told}, such as {self.examples[name][:40]!r}; they count as anything else"


@dataclass(frozen=True, slots=True, eq=False)
class Predicted:
    """One piece: the kept cells of each row, its predictions, and the label column where the file has it."""

    kept: list[tuple[str, ...]]
    scores: Floats
    labels: pa.ChunkedArray | None


def kept_columns(spec: TaskSpec, present: Sequence[str], asked: Sequence[str]) -> list[str]:
    """What of a file is written beside the predictions: what was asked for; else the person's column and those named as ids."""
    features = {name for group in spec.groups for name in group.names}
    if asked:
        return list(asked)
    return [name for name in present if name == spec.person or (ID_NAME.search(name) and name not in features)]


def predicted(
    model: ModelFile, pieces: Iterator[pa.Table], keep: Sequence[str], notes: Notes, *, source: str
) -> Iterator[Predicted]:
    """The predictions of every piece, in order. Raises DataError naming file, column, row and remedy."""
    spec, first_row = model.spec, FIRST_DATA_ROW
    wanted = [name for group in spec.groups for name in group.names]
    for piece in pieces:
        columns = select(piece, [*wanted, *(name for name in keep if name not in wanted)], source=source)
        features = _encoded(spec, columns, notes, source, first_row)
        has_label = spec.label.column in piece.column_names
        yield Predicted(
            _rows_of([map(_cell, columns[name].to_pylist()) for name in keep], piece.num_rows),
            model.predict(features),
            select(piece, [spec.label.column], source=source)[0] if has_label else None,
        )
        first_row += piece.num_rows


def _rows_of(columns: Sequence[Iterator[str]], count: int) -> list[tuple[str, ...]]:
    """Columns as rows; of no column at all, so many empty ones."""
    return list(zip(*columns, strict=True)) if columns else [()] * count


def _encoded(spec: TaskSpec, columns: pa.Table, notes: Notes, source: str, first_row: int) -> NDArray[np.float32]:
    blocks = []
    for group, name, values in feature_values(spec, columns, source, first_row=first_row):
        notes.take(group, name, values)
        blocks.append(feature_block(group, values))
    return np.hstack(blocks)


def columns_of(spec: TaskSpec, decision: float | None) -> list[str]:
    """The names of the columns that `cells` gives."""
    match spec.kind:
        case "binary":
            return ["probability", *(["prediction"] if decision is not None else [])]
        case "multiclass":
            return ["prediction", *(f"probability_{name}" for name in spec.label.classes)]
        case "regression":
            return ["prediction"]


def cells(spec: TaskSpec, scores: Floats, decision: float | None) -> Iterator[tuple[str, ...]]:
    """What is written of each row's prediction."""
    match spec.kind:
        case "binary":
            yes = spec.label.positive[0]
            no = spec.label.negative[0] if spec.label.negative else f"not {yes}"
            for score in scores.tolist():
                yield (f"{score:.9g}", *((yes if score >= decision else no,) if decision is not None else ()))
        case "multiclass":
            for row, called in zip(scores.tolist(), scores.argmax(axis=1).tolist(), strict=True):
                yield (spec.label.classes[called], *(f"{value:.9g}" for value in row))
        case "regression":
            for value in scores.tolist():
                yield (f"{value:.9g}",)


def judged(
    spec: TaskSpec, column: pa.ChunkedArray, scores: Floats, decision: float | None, *, source: str
) -> tuple["Figures", int]:
    """The task's figures on the rows that have a label, and how many those are. Raises DataError where a label is unknown."""
    from shared.tasks.metrics import figures  # scikit-learn and torch take seconds

    present = np.array([value != "" for value in texts(column)])
    if not present.any():
        return {}, 0
    labelled = pa.table({spec.label.column: column.filter(pa.array(present))})
    if decision is not None:
        spec = spec.model_copy(update={"label": spec.label.model_copy(update={"threshold": decision, "base_rate": None})})
    where = source if present.all() else f"{source}, of the rows with a label"
    return figures(spec, scores[present], labels(spec, labelled, where)), int(present.sum())


def _cell(value: object) -> str:
    return "" if value is None else str(value)


def _other(group: Categorical) -> str:
    return "anything else" if group.other else "none of the categories"
