"""`python -m benchmarks.fairness`: what the slow half of ten equal institutions counts, by rule and ratio of speeds.

Virtual time, the aggregator's own core, quadratics whose optima are the unit vectors: so the model itself tells how much of it
each institution has made. About three minutes; docs/aggregation.md has the figures.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

import operator_console
from benchmarks.utility import PICTURE_STYLE
from operator_console import plots
from shared.plan import AggregationPlan, StalenessRule
from simulator.quadratics import Course, Numbers, periods, tracers

INSTITUTIONS, GAIN = 10, 0.1
"""The second half is slow. One training goes a tenth of the way to the institution's own optimum."""
RATIOS = (1.0, 3.0, 10.0, 100.0)
SLOW_PERIODS, LEAST_UPDATES = 24, 3000
"""A run is as long as a slow institution takes for so many updates; its second half is measured."""
CONSTANT = StalenessRule(function="constant")
PLANS = {
    "credit": AggregationPlan(),
    "credit, server learning rate 0.3": AggregationPlan(server_learning_rate=0.3),
    "credit, server learning rate 0.1": AggregationPlan(server_learning_rate=0.1),
    "fedasync, constant": AggregationPlan(rule="fedasync", server_learning_rate=0.6, staleness=CONSTANT),
    "fedasync, polynomial": AggregationPlan(rule="fedasync", server_learning_rate=0.6),
    "fedbuff, K = 5": AggregationPlan(rule="fedbuff", buffer_size=5),
    "latest-model": AggregationPlan(rule="latest-model"),
    "latest-update": AggregationPlan(rule="latest-update"),
}
BY_CONSTRUCTION = frozenset({"latest-model", "latest-update"})
"""Rules whose weight is an institution's share of the data whenever it comes, so that to add weights up would say nothing."""
HEADINGS = ("rule", "ratio", "updates", "of the weight", "of the model", "error")


@dataclass(frozen=True, slots=True)
class Row:
    """One rule at one ratio: the slow half's share of the data, of the weight that was applied and of the mean model.

    `error` is the mean squared distance of the models from the optimum, over that of the institutions' own optima.
    """

    plan: str
    ratio: float
    updates: int
    data_share: float
    weight_share: float
    weight_by_construction: bool
    model_share: float
    error: float


def measured(name: str, ratio: float) -> Row:
    """One run, over its second half."""
    problem = tracers(INSTITUTIONS, ratio=ratio, gain=GAIN)
    updates = max(LEAST_UPDATES, periods(problem, SLOW_PERIODS))
    steps = list(Course(problem, PLANS[name]).steps(updates))[updates // 2 :]
    weights = np.zeros(INSTITUTIONS)
    for step in steps:
        weights[problem.names.index(step.arrival.institution)] += step.arrival.weight
    models = np.array([step.model for step in steps])
    data = slow_share(np.array(problem.examples, dtype=np.float64))
    fixed = name in BY_CONSTRUCTION
    weight = data if fixed else slow_share(weights)
    error = float(np.mean([problem.error(model) for model in models]))
    return Row(name, ratio, updates, data, weight, fixed, slow_share(models.mean(axis=0)), error)


def slow_share(of_each: Numbers) -> float:
    """The second half's part."""
    return float(of_each[INSTITUTIONS // 2 :].sum() / of_each.sum())


def found(names: Sequence[str]) -> Iterator[Row]:
    """Every rule at every ratio."""
    for name in names:
        for ratio in RATIOS:
            yield measured(name, ratio)


def cells(row: Row) -> tuple[str, ...]:
    """Columns as HEADINGS."""
    weight = f"{row.weight_share:.3f}" + ("*" if row.weight_by_construction else "")
    return row.plan, f"{row.ratio:g}", f"{row.updates:,}", weight, f"{row.model_share:.3f}", f"{row.error:.1e}"


def table(rows: Sequence[Row]) -> str:
    """For people."""
    lines = [HEADINGS, *map(cells, rows)]
    text = "\n".join(f"{line[0]:34}" + "".join(f"{cell:>15}" for cell in line[1:]) for line in lines)
    return f"{text}\n* by construction: the share of the data, whenever an update comes"


def markdown(rows: Sequence[Row]) -> str:
    """For docs/aggregation.md: a line for each rule with its share of the weight, of the model and the error, at each ratio."""
    lines = []
    for name in dict.fromkeys(row.plan for row in rows):
        own = [row for row in rows if row.plan == name]
        weights = ["by construction" if row.weight_by_construction else f"{row.weight_share:.3f}" for row in own]
        lines.append([name, *weights, *(f"{row.model_share:.3f}" for row in own), *(f"{row.error:.0e}" for row in own)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(rows: Sequence[Row]) -> str:
    """The slow half's share of the model against the ratio of speeds, as an SVG file."""
    names = list(dict.fromkeys(row.plan for row in rows))
    css = (Path(operator_console.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    ends = "; ".join(f"{row.plan} {row.model_share:.3f}" for row in rows if row.ratio == max(RATIOS))
    title = (
        f"What the slow half makes of the model, by how many times slower it is; half would be fair. At {max(RATIOS):g}: {ends}"
    )

    def draw(axes: Axes) -> None:
        for name, (colour, dash) in zip(names, plots.colours(len(names)), strict=True):
            own = [row for row in rows if row.plan == name]
            shares = [row.model_share for row in own]
            axes.plot(range(len(own)), shares, color=colour, linestyle=dash, linewidth=1.8, marker="o", markersize=4, label=name)
        axes.axhline(0.5, color=plots.MUTED, linewidth=1, linestyle=plots.DASHES[1], zorder=1)
        axes.set_xticks(range(len(RATIOS)), [f"{ratio:g}" for ratio in RATIOS])
        axes.set(xlabel="how many times slower the slow half is", ylabel="its share of the model", ylim=(0, 0.56))
        whole: Any = axes.get_figure()
        whole.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9.5, labelcolor=plots.INK)

    style = css[: css.index("* {")] + PICTURE_STYLE
    return plots.standalone(plots.inline_svg(draw, height_inches=4.4), title=title, style=style)


def main() -> None:
    """`python -m benchmarks.fairness`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    parser.add_argument("--rows", action="store_true", help="the rows of the table of docs/aggregation.md")
    parser.add_argument("--pictures", type=Path, help="a folder for fairness.svg")
    chosen = parser.parse_args()
    rows = list(found(list(PLANS)))
    if chosen.json:
        print(json.dumps({"institutions": INSTITUTIONS, "gain": GAIN, "rows": [asdict(row) for row in rows]}))
    else:
        print(markdown(rows) if chosen.rows else table(rows))
    if chosen.pictures:
        (chosen.pictures / "fairness.svg").write_text(picture(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
