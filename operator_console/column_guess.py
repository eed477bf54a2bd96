"""What a CSV file's columns look like: a first draft of a task, to be corrected by whoever knows them.

Ranges and categories of a task are public knowledge. These come from rows, so the draft is for a trial with rows that may
be known.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from shared.errors import DataError
from shared.tasks.features import MISSING
from shared.tasks.spec import Kind, canonical

MOST_CATEGORIES = 20
MANY_TIMES = 20
"""A numeric column whose largest value is so many times its median is scaled by its logarithm."""
ID_NAME = re.compile(r"(?i)(^|[_-])id$|(?-i:[a-z]I[dD]$)")
POSITIVES = ("yes", "y", "true", "1", "positive", "t")

Columns = Mapping[str, Sequence[str]]
"""Cells by column name."""


@dataclass(frozen=True, slots=True)
class NumericDraft:
    """A `[[numeric]]` table of one column."""

    column: str
    minimum: float
    maximum: float
    log: bool = False
    has_missing: bool = False
    comment: str = ""


@dataclass(frozen=True, slots=True)
class CategoricalDraft:
    """A `[[categorical]]` table of one column."""

    column: str
    categories: tuple[str, ...]
    comment: str = ""


@dataclass(frozen=True, slots=True)
class LabelDraft:
    """The `[label]` table and the kind of the task; what the kind does not need is empty."""

    column: str
    kind: Kind
    positive: str = ""
    negative: str = ""
    base_rate: float = 0.0
    classes: tuple[str, ...] = ()
    minimum: float = 0.0
    maximum: float = 0.0


@dataclass(frozen=True, slots=True)
class Draft:
    """A task's columns, and why others were left out, by column."""

    label: LabelDraft
    numeric: tuple[NumericDraft, ...]
    categorical: tuple[CategoricalDraft, ...]
    left_out: Mapping[str, str]


def guess(columns: Columns, label: str, *, source: str) -> Draft:
    """A draft from cells as text; the label's must not be empty. Raises DataError where no task can be made of them."""
    numeric, categorical, left_out = [], [], {}
    for name, cells in columns.items():
        if name == label:
            continue
        found = _feature(name, cells)
        if isinstance(found, NumericDraft):
            numeric.append(found)
        elif isinstance(found, CategoricalDraft):
            categorical.append(found)
        else:
            left_out[name] = found
    if not numeric and not categorical:
        raise DataError(f"{source}: no column is left to learn from beside the label {label!r}; {_told(left_out)}")
    return Draft(_label(label, columns[label], source), tuple(numeric), tuple(categorical), left_out)


def is_missing(cell: str) -> bool:
    """Whether a cell counts as empty in a task."""
    return cell.strip().lower() in MISSING


def _feature(name: str, cells: Sequence[str]) -> NumericDraft | CategoricalDraft | str:
    """A table of the task, or why there is none."""
    present = [canonical(cell) for cell in cells if not is_missing(cell)]
    distinct = Counter(present)
    if len(distinct) < 2:
        return "it has one value only" if distinct else "it is empty"
    if ID_NAME.search(name):
        return _of_an_id(name, len(distinct), len(present))
    numbers = _numbers(present)
    if numbers is None and len(distinct) <= MOST_CATEGORIES:
        return CategoricalDraft(name, tuple(sorted(distinct)))
    if numbers is None:
        return f"it is text with {len(distinct)} different values"
    if _counts_up(numbers):
        return "it counts the rows"
    return _numeric(name, numbers, has_missing=len(present) < len(cells))


def _of_an_id(name: str, distinct: int, count: int) -> str:
    if distinct < count:
        return f"its name says that it is an id; if it says whose record a row is, set person = {name!r} in the task"
    return "its name says that it is an id"


def _numbers(cells: Sequence[str]) -> list[float] | None:
    try:
        values = [float(cell) for cell in cells]
    except ValueError:
        return None
    return values if all(map(math.isfinite, values)) else None


def _counts_up(values: Sequence[float]) -> bool:
    return len(values) > 2 and all(after - before == 1 for before, after in pairwise(values))


def _numeric(name: str, values: Sequence[float], *, has_missing: bool) -> NumericDraft:
    low, high = min(values), max(values)
    if {low, high} == {0.0, 1.0} and set(values) == {0.0, 1.0}:
        return NumericDraft(name, -1, 1, has_missing=has_missing, comment="0 or 1; the range puts 0 in the middle")
    log = low >= 0 and high > MANY_TIMES * max(median(values), 1e-9) and high > 1
    return NumericDraft(name, *rounded_outwards(low, high, log=log), log=log, has_missing=has_missing)


def rounded_outwards(low: float, high: float, *, log: bool = False) -> tuple[float, float]:
    """A range that holds both ends, in steps of about a tenth of it; for a logarithm in steps of each end's own size."""
    down, up = (_power(low), _power(high)) if log else (_step(high - low),) * 2
    return _tidy(math.floor(low / down) * down if down else low), _tidy(math.ceil(high / up) * up if up else high)


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, at least a tenth of the span."""
    return next(step for step in (factor * _power(span / 10) for factor in (1, 2, 5, 10)) if step >= span / 10 * (1 - 1e-9))


def _power(value: float) -> float:
    """The power of ten at or below a number; 0 of 0."""
    return 10.0 ** math.floor(math.log10(value)) if value > 0 else 0.0


def _tidy(value: float) -> float:
    """Without what floating point leaves behind the twelfth digit."""
    return float(f"{value:.12g}")


def _label(name: str, cells: Sequence[str], source: str) -> LabelDraft:
    values = [canonical(cell) for cell in cells]
    distinct, numbers = Counter(values), _numbers(values)
    if len(distinct) < 2:
        raise DataError(f"{source}: the label column {name!r} has one value only; name another with --label")
    if len(distinct) == 2:
        positive, negative = _positive_first(distinct)
        return LabelDraft(name, "binary", positive, negative, base_rate=_share(distinct[positive] / len(values)))
    if numbers is not None and len(distinct) > MOST_CATEGORIES:
        low, high = rounded_outwards(min(numbers), max(numbers))
        return LabelDraft(name, "regression", minimum=low, maximum=high)
    if len(distinct) <= MOST_CATEGORIES:
        return LabelDraft(name, "multiclass", classes=tuple(sorted(distinct)))
    raise DataError(
        f"{source}: the label column {name!r} is text with {len(distinct)} different values; name another with --label"
    )


def _share(value: float) -> float:
    return min(max(round(value, 2), 0.01), 0.99)


def _positive_first(values: Counter[str]) -> tuple[str, str]:
    """What is called positive, and the other: a yes, else the rarer one."""
    one, other = sorted(values, key=lambda value: (value.lower() not in POSITIVES, values[value], value))
    return one, other


def _told(left_out: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in left_out.items())
