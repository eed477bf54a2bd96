"""The end of a run in figures: `summary.json` as a value, and the table that is printed from it."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from aggregator_worker.ending import Progress
from operator_console.history import History, Part, write_whole
from operator_console.live_view import metric_name
from shared.tasks.spec import METRICS, TaskSpec, better

SCHEMA = 1
OWN_MODELS = {"federated": "federated", "personalised": "personalised", "alone": "own alone"}
"""What is compared on an institution's own rows, and what it is called there."""
Figures = Mapping[str, float | None]
Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The final models measured. `alone`, `federated` and `pooled` on all test rows, the `own` ones on an institution's own."""

    federated: Figures = field(default_factory=dict)
    pooled: Figures = field(default_factory=dict)
    alone: Mapping[str, Figures] = field(default_factory=dict)
    own_alone: Mapping[str, Figures] = field(default_factory=dict)
    own_federated: Mapping[str, Figures] = field(default_factory=dict)
    own_personalised: Mapping[str, Figures] = field(default_factory=dict)


def summarise(spec: TaskSpec, history: History, comparison: Comparison, *, seed: int | None, wall_seconds: float) -> Summary:
    """The content of `summary.json`; what its figures mean is in docs/report.md. A figure that does not exist is None."""
    names = figure_names(spec)
    head = history.links[-1].manifest
    return {
        "schema": SCHEMA,
        "run_id": head.run_id,
        "task": spec.name,
        "title": spec.title or spec.name,
        "metric": spec.first_metric,
        "threshold_rule": threshold_rule(spec),
        "seed": seed,
        "wall_seconds": round(wall_seconds, 3),
        "versions": head.version,
        "phase": head.phase,
        "phase_reason": head.phase_reason,
        "best": best_version(history),
        "updates": history.counters(),
        "institutions": [_institution(part, comparison, names, head.plan_hash) for part in history.parts()],
        "federated": _picked(comparison.federated, names),
        "pooled": _picked(comparison.pooled, names),
    }


def best_version(history: History) -> dict[str, Any] | None:
    """The best version by the plan's figure on held-out rows, and that figure of the last one; None where none was measured."""
    head, plan = history.links[-1].manifest, history.plan
    best = Progress.of(head.scalars).best
    if best is None or plan is None:
        return None
    metric = plan.ending.metric
    return {"version": best.version, "metric": metric, "figure": best.figure, "figure_of_last": head.metrics.get(metric)}


def _institution(part: Part, comparison: Comparison, names: tuple[str, ...], plan_hash: str) -> dict[str, Any]:
    own = part.institution
    return {
        "id": own,
        "num_examples": part.entry.num_examples,
        "updates": part.entry.counters.aggregated,
        "mean_staleness": part.mean_staleness,
        "total_weight": part.total_weight,
        "epsilon_spent": part.entry.epsilon_spent,
        "target_delta": part.entry.target_delta,
        "standing": part.standing(plan_hash),
        "alone": _picked(comparison.alone.get(own, {}), names),
        "federated": _picked(comparison.federated, names),
        "own": {
            "alone": _picked(comparison.own_alone.get(own, {}), names),
            "federated": _picked(comparison.own_federated.get(own, {}), names),
            "personalised": _picked(comparison.own_personalised.get(own, {}), names),
        },
    }


def _picked(figures: Figures, names: tuple[str, ...]) -> dict[str, float | None]:
    values = {name: figures.get(name) for name in names}
    return {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}


def figure_names(spec: TaskSpec) -> tuple[str, ...]:
    """The figures of a task's kind, and the threshold where decisions have one."""
    return (*METRICS[spec.kind], "threshold") if spec.kind == "binary" else METRICS[spec.kind]


def threshold_rule(spec: TaskSpec) -> str | None:
    """Which rows are called positive, in words; None for a task that calls none so."""
    label = spec.label
    if spec.kind != "binary":
        return None
    if label.threshold is not None:
        return f"a row is called positive from a score of {label.threshold:g}"
    if label.base_rate is not None:
        return f"the {label.base_rate:.1%} of rows with the highest scores are called positive, as many as in training"
    return "as many rows are called positive, by the highest scores, as are positive among those measured"


def write_summary(path: Path, summary: Summary) -> None:
    """Writes `summary.json` in one step."""
    write_whole(path, json.dumps(summary, indent=2, allow_nan=False) + "\n")


def beaten(summary: Summary) -> tuple[int, int]:
    """How many institutions' own models the federated one beats on all test rows, of how many that were measured."""
    metric, federated = summary["metric"], summary["federated"]
    alone = [each["alone"][metric] for each in summary["institutions"] if each["alone"].get(metric) is not None]
    return sum(better(metric, federated[metric], value) for value in alone), len(alone)


def better_at_home(summary: Summary) -> list[dict[str, Any]]:
    """The institutions whose own model beats the federated one on their own rows."""
    metric = summary["metric"]
    return [
        each for each in summary["institutions"] if better(metric, each["own"]["alone"][metric], each["own"]["federated"][metric])
    ]


def own_figures(institution: Mapping[str, Any], metric: str) -> dict[str, float]:
    """The first figure of each model that was measured on an institution's own rows; runs of older versions lack some."""
    own = institution["own"]
    found = {name: own.get(name, {}).get(metric) for name in OWN_MODELS}
    return {name: value for name, value in found.items() if value is not None}


def best_at_home(institution: Mapping[str, Any], metric: str) -> str | None:
    """Which model does best on an institution's own rows, of equals the first of OWN_MODELS; None where none was measured."""
    best: tuple[str, float] | None = None
    for name, value in own_figures(institution, metric).items():
        if best is None or better(metric, value, best[1]):
            best = name, value
    return best[0] if best else None


def findings(summary: Summary, titles: Mapping[str, str] | None = None) -> list[str]:
    """What the figures say, in plain sentences; `titles` are names of institutions better than their ids."""
    metric, (won, measured) = summary["metric"], beaten(summary)
    name, sentences = metric_name(metric), []
    if measured:
        sentences.append(f"The federated model beats {won} of {measured} institutions' own models on all test rows ({name}).")
    if at_home := better_at_home(summary):
        figures = ", ".join(_at_home(each, metric, titles or {}) for each in at_home)
        some = f"{len(at_home)} of {measured}"
        sentences.append(f"On their own rows {some} do better with their own model than with it: {figures}.")
    sentences += _personalised(summary, titles or {})
    if summary["threshold_rule"] and measured:
        sentences.append(f"Accuracy, recall and F1: {summary['threshold_rule']}.")
    return [*sentences, *_course(summary)]


def _course(summary: Summary) -> list[str]:
    """Why the run ended, and which of its versions was the best. Runs of older versions do not tell of a best one."""
    sentences = [f"Why the run ended: {summary['phase_reason']}."] if summary["phase"] == "finished" else []
    best, last = summary.get("best"), summary["versions"]
    if best is None:
        return sentences
    name, figure = metric_name(best["metric"]), figure_text(best["figure"])
    if best["version"] == last:
        return [*sentences, f"The last version, {last}, is also the best by {name} on held-out rows: {figure}."]
    said = f"The best version by {name} on held-out rows is {best['version']}, with {figure}; the last, {last}, has "
    return [*sentences, f"{said}{figure_text(best['figure_of_last'])}. It was picked on these rows, which flatters it."]


def _personalised(summary: Summary, titles: Mapping[str, str]) -> list[str]:
    """What fine-tuning at home comes to, and where a model of the institution's own rows is still better."""
    metric = summary["metric"]
    tuned = [each for each in summary["institutions"] if "personalised" in own_figures(each, metric)]
    if not tuned:
        return []
    over = {name: sum(_personal_beats(each, name, metric) for each in tuned) for name in ("federated", "alone")}
    still = [each for each in tuned if best_at_home(each, metric) == "alone"]
    said = (
        "Personalised, that is fine-tuned by each institution on its own rows, it does better there than untuned at "
        f"{over['federated']} of {len(tuned)}, and better than the own model at {over['alone']}"
    )
    if not still:
        return [f"{said}."]
    figures = ", ".join(_at_home(each, metric, titles, "personalised") for each in still)
    return [f"{said}; the own model is still the best of the three at {len(still)}: {figures}."]


def _personal_beats(institution: Mapping[str, Any], other: str, metric: str) -> bool:
    figures = own_figures(institution, metric)
    return better(metric, figures.get("personalised"), figures.get(other))


def _at_home(part: Mapping[str, Any], metric: str, titles: Mapping[str, str], against: str = "federated") -> str:
    own = part["own"]
    return f"{titles.get(part['id'], part['id'])} {own['alone'][metric]:.3f} against {own[against][metric]:.3f}"


def final_table(summary: Summary) -> RenderableType:
    """The federated model against each institution alone and against pooled training, all on the same rows."""
    names = [name for name in summary["federated"] if name != "threshold"]
    table = Table(title="on all institutions' test rows", box=box.SIMPLE_HEAD, title_justify="left", title_style="dim")
    table.add_column("model", no_wrap=True, overflow="ellipsis", max_width=30)
    for name in names:
        table.add_column(metric_name(name), justify="right", no_wrap=True)
    table.add_row("federated", *_cells(summary["federated"], names), style="bold green")
    table.add_row("pooled data", *_cells(summary["pooled"], names), style="dim", end_section=True)
    metric = summary["metric"]
    for each in summary["institutions"]:
        wins = better(metric, each["alone"][metric], summary["federated"][metric])
        table.add_row(f"{each['id']} alone", *_cells(each["alone"], names), style="yellow" if wins else "")
    tables = [table, own_table(summary)] if any(own_figures(each, metric) for each in summary["institutions"]) else [table]
    return Group(*tables, *(Padding(Text(sentence), (0, 1)) for sentence in findings(summary)))


def own_table(summary: Summary) -> Table:
    """On each institution's own test rows, by the first figure: the federated model, fine-tuned there, and its own."""
    metric = summary["metric"]
    title = f"{metric_name(metric)} on each institution's own test rows"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="dim")
    table.add_column("institution", no_wrap=True, overflow="ellipsis", max_width=30)
    for name in (*OWN_MODELS.values(), "best"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in summary["institutions"]:
        figures, best = own_figures(each, metric), best_at_home(each, metric)
        cells = [figure_text(figures.get(name)) for name in OWN_MODELS]
        style = "yellow" if best == "alone" else ""
        table.add_row(each["id"], *cells, OWN_MODELS[best] if best else "-", style=style)
    return table


def _cells(figures: Figures, names: list[str]) -> list[str]:
    return [figure_text(figures[name]) for name in names]


def figure_text(value: float | None) -> str:
    """A figure with as many digits as mean something."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
