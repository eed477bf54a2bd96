"""What a comparison of simulated runs comes to, as a table, as JSON and as CSV files; the same runs give the same bytes."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from rich import box
from rich.table import Table

from operator_console.history import write_whole
from operator_console.live_view import metric_name
from shared.plan import AggregationPlan
from shared.tasks.spec import LOWER_IS_BETTER
from simulator.results import Contribution, Point, RunResult, data_share, weight_share
from simulator.scenario import Target

SCHEMA = 1
"""Of results.json."""


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """One run, and the aggregation that it was of. `recorded`: it happened, and was not simulated."""

    result: RunResult
    aggregation: AggregationPlan
    recorded: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Runs on the same institutions. `notes` are sentences on what the figures mean; `planned` is how many there were to be."""

    title: str
    seed: int
    tried: Sequence[Tried]
    planned: int
    target: Target | None = None
    notes: Sequence[str] = ()

    @property
    def metric(self) -> str:
        """The figure by which plans are compared."""
        return (self.target and self.target.metric) or self.tried[0].result.metric

    @property
    def best(self) -> Tried | None:
        """That with the best last figure, the first of equals; None where none has one."""
        sign = -1.0 if self.metric in LOWER_IS_BETTER else 1.0
        finals = [(tried.result.final.metrics.get(self.metric), tried) for tried in self.tried]
        figures = [(sign * figure, tried) for figure, tried in finals if figure is not None]
        return max(figures, key=lambda each: each[0])[1] if figures else None

    @property
    def unfinished(self) -> str:
        """A sentence where it was interrupted."""
        if len(self.tried) == self.planned:
            return ""
        return f"Interrupted: {len(self.tried)} of {self.planned} plans are finished, the rest is missing."


@dataclass(frozen=True, slots=True)
class SlowHalf:
    """The institutions whose trainings usually take longer than the median: their part of the weight, and of the data."""

    weight_share: float
    data_share: float


def slow_half(contributions: Sequence[Contribution]) -> SlowHalf | None:
    """None where all take the same time."""
    middle = median(each.usual_seconds for each in contributions)
    if all(each.usual_seconds <= middle for each in contributions):
        return None
    return SlowHalf(
        weight_share(contributions, slower_than_seconds=middle), data_share(contributions, slower_than_seconds=middle)
    )


def target_point(comparison: Comparison, result: RunResult) -> Point | None:
    """Where a run reached the target; None where it did not, or there is none."""
    target = comparison.target
    return result.reached(target.value, metric=target.metric, evaluations=target.evaluations) if target else None


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: its title, the names of its columns, and a row for each run."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def printed(self) -> Table:
        """For a terminal."""
        found = Table(box=box.SIMPLE_HEAD, title=self.title, title_justify="left", title_style="dim")
        found.add_column(self.head[0], no_wrap=True, overflow="ellipsis", max_width=28)
        for place, column in enumerate(self.head[1:], start=1):
            cells = [*column.split(), *(row[place] for row in self.rows), ""]
            found.add_column(column, justify="right", min_width=max(map(len, cells)))
        for row in self.rows:
            found.add_row(*row)
        return found


def sheets(comparison: Comparison) -> list[Sheet]:
    """What was compared and, where there is a target, what it took to reach it; then what it came to."""
    name, target, tried = metric_name(comparison.metric), comparison.target, comparison.tried
    aim = f"until {name} {target.value:g}" if target else "plans"
    if target and target.evaluations > 1:
        aim += f", {target.evaluations} evaluations in a row"
    to_target = ["seconds", "updates", "MB"] if target else []
    some = any(refused(each.result) for each in tried)
    end = ["seconds", "updates", *(["refused"] if some else []), "MB", name, "slow half"]
    return [
        Sheet(aim, ["plan", "rule", "K", "rate", *to_target], [_to_target(comparison, each) for each in tried]),
        Sheet("at the end", ["plan", *end], [_at_the_end(comparison, each, some=some) for each in tried]),
    ]


def _to_target(comparison: Comparison, tried: Tried) -> list[str]:
    result, reached = tried.result, target_point(comparison, tried.result)
    plan = [result.name, result.rule, str(result.buffer_size), f"{tried.aggregation.server_learning_rate:.3g}"]
    if comparison.target is None:
        return plan
    return [*plan, *([f"{reached.seconds:,.1f}", f"{reached.updates:,}", megabytes(reached)] if reached else ["never", "-", "-"])]


def _at_the_end(comparison: Comparison, tried: Tried, *, some: bool) -> list[str]:
    result, final, slow = tried.result, tried.result.final, slow_half(tried.result.contributions)
    figure = final.metrics.get(comparison.metric)
    shares = f"{100 * slow.weight_share:.1f} / {100 * slow.data_share:.1f} %" if slow else "-"
    said = "-" if figure is None else f"{figure:.4f}"
    counts = [f"{final.updates:,}", *([f"{refused(result):,}"] if some else [])]
    return [result.name, f"{final.seconds:,.1f}", *counts, megabytes(final), said, shares]


def megabytes(point: Point) -> str:
    """All that travelled until then."""
    sent = all_bytes(point) / 1e6
    return f"{sent:,.1f}" if sent >= 10 else f"{sent:.2g}"


def all_bytes(point: Point) -> int:
    """Updates and models."""
    return point.bytes_up + point.bytes_down


def refused(result: RunResult) -> int:
    """How many updates arrived and were not aggregated."""
    return sum(count for outcome, count in result.outcomes.items() if outcome != "aggregated")


def document(comparison: Comparison) -> dict[str, Any]:
    """results.json (docs/simulator.md)."""
    target = comparison.target
    return {
        "schema": SCHEMA,
        "title": comparison.title,
        "seed": comparison.seed,
        "metric": comparison.metric,
        "target": target.model_dump() if target else None,
        "finished": not comparison.unfinished,
        "notes": list(comparison.notes),
        "plans": [_plan(comparison, tried) for tried in comparison.tried],
    }


def _plan(comparison: Comparison, tried: Tried) -> dict[str, Any]:
    result, reached = tried.result, target_point(comparison, tried.result)
    slow = slow_half(result.contributions)
    return {
        "name": result.name,
        "recorded": tried.recorded,
        "rule": result.rule,
        "buffer_size": result.buffer_size,
        "server_learning_rate": tried.aggregation.server_learning_rate,
        "staleness_exponent": tried.aggregation.staleness.exponent,
        "reached_target": _point(reached) if reached else None,
        "final": _point(result.final),
        "best": _point(result.best),
        "outcomes": dict(result.outcomes),
        "slow_half": asdict(slow) if slow else None,
        "noise_multiplier": result.noise_multiplier,
        "ended": result.ended,
        "points": [_point(point) for point in result.points],
    }


def _point(point: Point) -> dict[str, Any]:
    return {
        "seconds": point.seconds,
        "updates": point.updates,
        "version": point.version,
        "bytes_up": point.bytes_up,
        "bytes_down": point.bytes_down,
        # JSON knows no infinity: a model that has run away has no figure
        "metrics": {name: figure if figure is not None and isfinite(figure) else None for name, figure in point.metrics.items()},
    }


def write_data(comparison: Comparison, folder: Path) -> None:
    """`results.json`, `points.csv` and `institutions.csv`."""
    write_whole(folder / "results.json", json.dumps(document(comparison), indent=1, allow_nan=False) + "\n")
    metrics = sorted({name for tried in comparison.tried for point in tried.result.points for name in point.metrics})
    head = ["plan", "seconds", "updates", "version", "bytes_up", "bytes_down", *metrics]
    write_whole(folder / "points.csv", _csv(head, _point_rows(comparison, metrics)))
    shares = ["examples", "data_share", "weight_share", "usual_seconds", "updates", "aggregated", "mean_staleness", "poisoned"]
    rows = (
        [tried.result.name, each.institution, *(getattr(each, name) for name in shares)]
        for tried in comparison.tried
        for each in tried.result.contributions
    )
    write_whole(folder / "institutions.csv", _csv(["plan", "institution", *shares], rows))


def _point_rows(comparison: Comparison, metrics: Sequence[str]) -> Iterator[list[Any]]:
    for tried in comparison.tried:
        for point in tried.result.points:
            counts = [point.seconds, point.updates, point.version, point.bytes_up, point.bytes_down]
            yield [tried.result.name, *counts, *(point.metrics.get(name) for name in metrics)]


def _csv(head: Sequence[str], rows: Any) -> str:
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()
