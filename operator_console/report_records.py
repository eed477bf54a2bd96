"""What the report is made of: the records of a run, and the pictures and tables that come of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from operator_console.events import Event
from operator_console.summary import Summary
from shared.tasks.spec import better

MOST_ROWS_IN_A_PLOT = 40
LONGEST_NAME = 24
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Records:
    """What the files of a run hold. `lines` are lineage.jsonl's, `sweep` epsilon.json's rows, None where it was not made."""

    summary: Summary
    lines: Sequence[Line]
    titles: Mapping[str, str]
    events: Sequence[Event] = ()
    sweep: Sequence[Mapping[str, Any]] | None = None
    reports: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot with what it shows in words: `alternative` for those who do not see it, `caption` for everybody."""

    svg: str
    alternative: str
    caption: str
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """A table. The first cell of a row is its name; rows in `strong` stand out; the cells of a `wordy` one are text."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = field(default_factory=frozenset)
    wordy: bool = False


def title_of(records: Records, institution: str) -> str:
    """The institution's name for people."""
    return records.titles.get(institution) or institution


def short_title(records: Records, institution: str) -> str:
    """The same, shortened to fit beside a plot."""
    title = title_of(records, institution)
    return title if len(title) <= LONGEST_NAME else f"{title[: LONGEST_NAME - 1].rstrip()}…"


def shown_institutions(records: Records) -> list[dict[str, Any]]:
    """As many as a plot can show, those with the most weight first where there are more."""
    institutions = records.summary["institutions"]
    if len(institutions) <= MOST_ROWS_IN_A_PLOT:
        return list(institutions)
    return sorted(institutions, key=lambda each: each["total_weight"], reverse=True)[:MOST_ROWS_IN_A_PLOT]


def selection_text(records: Records) -> str:
    """What a caption adds where a plot cannot show everybody."""
    count = len(records.summary["institutions"])
    return f" (the {MOST_ROWS_IN_A_PLOT} of {count} institutions with the most weight)" if count > MOST_ROWS_IN_A_PLOT else ""


def best_alone(summary: Summary) -> tuple[str, float] | None:
    """The institution whose own model is best on all test rows."""
    metric, best = summary["metric"], None
    for each in summary["institutions"]:
        value = each["alone"][metric]
        if value is not None and (best is None or better(metric, value, best[1])):
            best = (each["id"], value)
    return best


def epsilon_text(epsilon: float | None) -> str:
    """None is training without noise."""
    return "none" if epsilon is None else f"{epsilon:g}"
