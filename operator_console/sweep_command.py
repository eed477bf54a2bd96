"""`fedqueue sweep`: server learning rate, buffer size and staleness exponent tried in virtual time, and what to found with."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from operator_console.live_view import metric_name
from operator_console.simulate_command import INTERRUPTED, AsJson, numbers, rules
from operator_console.simulation_records import Sheet
from shared.tasks.spec import LOWER_IS_BETTER

if TYPE_CHECKING:  # torch takes seconds, which `fedqueue --help` should not
    from shared.plan import AggregationPlan, RuleName
    from simulator.results import RunResult
    from simulator.scenario import Scenario, Variant

FACTORS = (0.3, 1.0, 3.0)
"""Of the rate that the plan has."""
BUFFER_SIZES = (1, 2, 4)
EXPONENTS = (0.0, 0.5)
NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the grid. `own`: it is what the scenario's plan says."""

    rule: "RuleName"
    server_learning_rate: float
    buffer_size: int
    staleness_exponent: float
    own: bool = False

    def variant(self) -> "Variant":
        """As a plan to run."""
        from shared.plan import AggregationPlan, StalenessRule
        from simulator.scenario import Variant

        aggregation = AggregationPlan(
            rule=self.rule,
            server_learning_rate=self.server_learning_rate,
            buffer_size=self.buffer_size,
            staleness=StalenessRule(exponent=self.staleness_exponent),
        )
        return Variant(name="one of the grid", aggregation=aggregation)


@dataclass(frozen=True, slots=True)
class Row:
    """What a setting came to under each seed: the last figure, and the seconds until the target. Empty where a seed has none."""

    setting: Setting
    figures: Sequence[float]
    times: Sequence[float] = ()
    refused: float = 0.0

    @property
    def figure(self) -> float | None:
        """The mean of the last figures."""
        return fmean(self.figures) if self.figures else None

    @property
    def seconds(self) -> float | None:
        """The mean time to the target."""
        return fmean(self.times) if self.times else None


@dataclass(frozen=True, slots=True)
class Swept:
    """Rows, the best first."""

    metric: str
    target: float | None
    seeds: int
    rows: Sequence[Row]
    planned: int


def sweep(  # noqa: PLR0913 - typer takes one parameter for each option
    scenario: Annotated[Path, typer.Argument(metavar="SCENARIO.toml", help="See docs/simulator.md. [[compare]] is not used.")],
    *,
    server_learning_rate: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Such as 0.3,1; without it, 0.3, 1 and 3 times what the plan has.")
    ] = None,
    buffer_size: Annotated[str | None, typer.Option(metavar="NUMBERS", help="K, such as 1,2,4, which is the default.")] = None,
    staleness_exponent: Annotated[
        str | None, typer.Option(metavar="NUMBERS", help="Such as 0,0.5, which is the default.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="Without it, the one of the scenario's [plan].")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Each setting under so many seeds, from the scenario's on.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Try server learning rates, buffer sizes and staleness exponents in virtual time, and say what to put into fedqueue init."""
    rates = numbers(server_learning_rate, option="--server-learning-rate") if server_learning_rate else None
    sizes = numbers(buffer_size, option="--buffer-size", whole=True, least=1) if buffer_size else None
    exponents = numbers(staleness_exponent, option="--staleness-exponent") if staleness_exponent else None
    if rates and 0 in rates:
        raise typer.BadParameter("0 moves nothing", param_hint="--server-learning-rate")
    chosen = rules([rule])[0] if rule else None
    swept, interrupted = _swept(scenario, Grid(rates, sizes, exponents, chosen), seeds)
    if swept is not None and as_json:
        typer.echo(json.dumps(_document(swept), allow_nan=False))
    elif swept is not None:
        console = Console()
        console.print(table(swept))
        console.print(advice(swept), highlight=False, soft_wrap=True, markup=False)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Grid:
    """What is to be tried; None is the default, which for rate and rule is the plan's own."""

    rates: Sequence[float] | None = None
    buffer_sizes: Sequence[float] | None = None
    exponents: Sequence[float] | None = None
    rule: "RuleName | None" = None

    def settings(self, own: "AggregationPlan", usual_rate: float, institutions: int) -> list[Setting]:
        """All combinations, and the plan's own. A buffer counts once that is capped at half of the institutions anyhow."""
        from aggregator_worker.rules import TABLE_RULES

        rule = self.rule or own.rule
        rate = own.server_learning_rate if rule == own.rule else usual_rate
        cap = max(1, institutions // 2) if not own.exact_buffer else institutions
        sizes = dict.fromkeys(min(int(size), cap) for size in self.buffer_sizes or BUFFER_SIZES)
        rates = self.rates or [float(f"{factor * rate:.3g}") for factor in FACTORS]
        # the rules that keep what an institution gave last do not damp it
        exponents = [own.staleness.exponent] if rule in TABLE_RULES else self.exponents or EXPONENTS
        mine = Setting(rule, rate, own.buffer_size, own.staleness.exponent, own=True)
        others = (Setting(rule, *values) for values in product(rates, sizes, exponents))
        return [mine, *(each for each in others if replace(each, own=True) != mine)]


def _swept(file: Path, grid: Grid, seeds: int) -> tuple[Swept | None, bool]:
    """What there is when all was run, or after Ctrl-C, and whether it was that."""
    from simulator.engine import prepare, run
    from simulator.plans import plan_of
    from simulator.population import read_scenario
    from simulator.scenario import Variant

    scenario = read_scenario(file)
    populations = [prepare(scenario.model_copy(update={"seed": scenario.seed + number})) for number in range(seeds)]
    first = populations[0].population
    own = plan_of(scenario.plan, Variant(name="own"), first.spec, institutions=len(first.institutions)).aggregation
    settings = grid.settings(own, first.spec.aggregation.rate_for(grid.rule or own.rule), len(first.institutions))
    rows: list[Row] = []
    interrupted = False
    with Console(stderr=True).status("") as status:
        try:
            for setting in settings:
                status.update(f"{len(rows)} of {len(settings)} settings are tried")
                rows.append(_row(scenario, setting, [run(each, setting.variant()) for each in populations]))
        except KeyboardInterrupt:
            interrupted = True
    if not rows:
        return None, interrupted
    metric = (scenario.target and scenario.target.metric) or first.spec.first_metric
    target = scenario.target.value if scenario.target else None
    return Swept(metric, target, seeds, in_order(rows, metric), len(settings)), interrupted


def _row(scenario: "Scenario", setting: Setting, results: Sequence["RunResult"]) -> Row:
    target = scenario.target
    metric = (target and target.metric) or results[0].metric
    figures = [figure for result in results if (figure := result.final.metrics.get(metric)) is not None]
    reached = [
        result.reached(target.value, metric=metric, evaluations=target.evaluations) if target else None for result in results
    ]
    times = [point.seconds for point in reached if point is not None]
    return Row(
        setting,
        figures if len(figures) == len(results) else (),
        times if len(times) == len(results) else (),
        refused=fmean(sum(count for name, count in result.outcomes.items() if name != "aggregated") for result in results),
    )


def in_order(rows: Sequence[Row], metric: str) -> list[Row]:
    """By the time to the target where there is one, then by the last figure; the plan's own first among equals."""

    def key(row: Row) -> tuple[float, float, bool]:
        figure = NEVER if row.figure is None else (row.figure if metric in LOWER_IS_BETTER else -row.figure)
        return (NEVER if row.seconds is None else row.seconds, figure, not row.setting.own)

    return sorted(rows, key=key)


def table(swept: Swept) -> Table:
    """The best first."""
    title = f"{swept.rows[0].setting.rule}, the best first; the plan's own setting is marked"
    to_target = [f"seconds to {swept.target:g}"] if swept.target is not None else []
    some, several = any(row.refused for row in swept.rows), swept.seeds > 1
    head = ["rate", "K", "exponent", *to_target, f"last {metric_name(swept.metric)}"]
    head += [*(["by seed"] if several else []), *(["refused"] if some else []), ""]
    rows = []
    for row in swept.rows:
        setting = row.setting
        cells = [f"{setting.server_learning_rate:.3g}", str(setting.buffer_size), f"{setting.staleness_exponent:g}"]
        cells += ["never" if row.seconds is None else f"{row.seconds:,.1f}"] if to_target else []
        cells.append(_text(row.figure))
        cells += [_spread(row.figures)] if several else []
        cells += [f"{row.refused:,.0f}"] if some else []
        rows.append([*cells, "own" if setting.own else ""])
    return Sheet(title, head, rows).printed()


def _text(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.4f}"


def _spread(figures: Sequence[float]) -> str:
    return f"{min(figures):.3f}-{max(figures):.3f}" if figures else "-"


def advice(swept: Swept) -> str:
    """One sentence on what to put into `fedqueue init`."""
    best, own = swept.rows[0], next((row for row in swept.rows if row.setting.own), None)
    unfinished = "" if len(swept.rows) == swept.planned else f" Interrupted: {len(swept.rows)} of {swept.planned} were tried."
    if best.figure is None:
        return f"No setting has a figure; nothing can be said.{unfinished}"
    setting = best.setting
    words = f"--rule {setting.rule} --server-learning-rate {setting.server_learning_rate:.3g} --buffer-size {setting.buffer_size}"
    told = f"fedqueue init {words}, with staleness_exponent = {setting.staleness_exponent:g} under [aggregation] in the task file"
    if setting.own:
        return f"Nothing does better than the plan's own setting: {told}.{unfinished}"
    luck = "" if swept.seeds > 1 else " One seed may be luck: --seeds 3 tells."
    if own is not None and (_overlap(best.times, own.times) if best.times else _overlap(best.figures, own.figures)):
        return f"Nothing is clearly better than the plan's own setting; the best by a hair is {told}.{luck}{unfinished}"
    return f"Found with {told}.{luck}{unfinished}"


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether the seeds of one setting reach into those of the other."""
    return len(one) > 1 and bool(other) and max(min(one), min(other)) <= min(max(one), max(other))


def _document(swept: Swept) -> dict[str, Any]:
    rows = [
        {
            "rule": row.setting.rule,
            "server_learning_rate": row.setting.server_learning_rate,
            "buffer_size": row.setting.buffer_size,
            "staleness_exponent": row.setting.staleness_exponent,
            "own": row.setting.own,
            "figure": row.figure,
            "figures": list(row.figures),
            "seconds_to_target": row.seconds,
            "seconds_by_seed": list(row.times),
            "refused": row.refused,
        }
        for row in swept.rows
    ]
    about = {"schema": 1, "metric": swept.metric, "target": swept.target, "seeds": swept.seeds}
    return {**about, "finished": len(swept.rows) == swept.planned, "settings": rows, "advice": advice(swept)}
