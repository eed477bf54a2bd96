"""`fedqueue simulate --from-lineage FEDERATION`: the sealed updates in the journals folded again with another rule's weights."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from aggregator_worker.settings import AggregatorSettings
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.service import read_settings
from client_worker.data import load_dataset
from operator_console.federation_folder import FederationFolder
from operator_console.live_view import metric_name
from operator_console.recorded_run import RecordedRun, recorded_run
from shared.errors import SettingsError
from shared.messages import Entry, Settlement
from shared.parameters import Parameters
from shared.tasks.metrics import Figures, evaluate
from shared.tasks.spec import TaskSpec, parse_task
from simulator.refold import Repeated, events_of, what_if
from simulator.virtual import VirtualAggregator

if TYPE_CHECKING:
    from operator_console.what_if_command import Choice

MOST_SHOWN = 6
NOT_A_TRAINING = (
    "This is not a re-training: every update was computed on the models of the real run. It tells what the weights would have "
    "been and where they would have led, not what the institutions would have learned on other models."
)


@dataclass(frozen=True, slots=True)
class Folded:
    """The sealed updates under one rule. `weight_shares` is of all weight, by institution; `moved` is how far the last model is
    from the real one, against how far the real run went."""

    plan: str
    rule: str
    buffer_size: int
    server_learning_rate: float
    versions: int
    weight_shares: Mapping[str, float]
    moved: float
    metrics: Figures


def folded_again(federation: FederationFolder, choice: "Choice", *, as_json: bool) -> None:
    """Prints what every rule would have weighed, beside the real run. Raises SettingsError where there are no journals."""
    logins = federation.logins()
    if logins.limits.journal_stream_bytes is None:
        raise SettingsError(
            f"{federation.path} keeps no journals and no lineage.jsonl with rows beside it, so there is nothing to try again: "
            "`fedqueue init --journal SIZE` keeps sealed updates"
        )
    spec = parse_task(federation.task_file.read_text(encoding="utf-8"), source=str(federation.task_file))
    with closing(connect(logins.settings(OPERATOR), name="fedqueue-simulate")) as broker:
        run = recorded_run(broker, federation.names())
        rows, sentence = _folded(run, choice, federation, spec)
    if as_json:
        document = {"schema": 1, "start": run.start.version, "run": sentence, "not_a_training": NOT_A_TRAINING}
        typer.echo(json.dumps({**document, "plans": [asdict(row) for row in rows]}, allow_nan=False))
        return
    console = Console()
    console.print(_table(rows, spec))
    for line in (sentence, run.passed_over, NOT_A_TRAINING):
        console.print(line, highlight=False, soft_wrap=True, markup=False) if line else None


def _folded(run: RecordedRun, choice: "Choice", federation: FederationFolder, spec: TaskSpec) -> tuple[list[Folded], str]:
    events = events_of(run.start, run.links, run.load)
    repeated = Repeated(run.start)
    differ = sum(bool(version.differences) for version in repeated.versions(run.links, events, run.load))
    last, judge, names = repeated.aggregator, _judge(federation, spec), run.start.names
    real = run.start.plan.aggregation

    def row(plan: str, aggregator: VirtualAggregator) -> Folded:
        aggregation, model = aggregator.plan.aggregation, aggregator.model()
        return Folded(
            plan,
            aggregation.rule,
            aggregation.buffer_size,
            aggregation.server_learning_rate,
            aggregator.version - run.start.version,
            _shares(run.start.link.table, aggregator.federation.table, names),
            _distance(model, last.model()) / (_distance(last.model(), run.start.model) or 1.0),
            judge(model),
        )

    rows = [row("as it was", last)]
    for rule in choice.rules:
        aggregation = choice.of(real, rule, spec)
        if aggregation != real:
            regrouped = aggregation.buffer_size != real.buffer_size
            tried = what_if(run.start, run.links, events, run.load, aggregation=aggregation, regrouped=regrouped)
            rows.append(row(rule, tried))
    folded = sum(event.outcome == "aggregated" for happened in events for event in happened if isinstance(event, Settlement))
    bits = "each version equal to the bit" if not differ else f"{differ} versions differ from the lineage: run `fedqueue replay`"
    return rows, f"{folded:,} sealed updates from version {run.start.version} on; under the run's own plan {bits}."


def _shares(before: Mapping[str, Entry], after: Mapping[str, Entry], names: Mapping[str, str]) -> dict[str, float]:
    """Of the weight since the start."""
    earlier = {alias: float.fromhex(entry.total_weight) for alias, entry in before.items()}
    weights = {alias: float.fromhex(entry.total_weight) - earlier.get(alias, 0.0) for alias, entry in after.items()}
    whole = sum(weights.values()) or 1.0
    return {names.get(alias, alias): weight / whole for alias, weight in sorted(weights.items(), key=lambda each: names[each[0]])}


def _distance(one: Parameters, other: Parameters) -> float:
    return math.sqrt(sum(float(np.sum((one[name] - other[name]).astype(np.float64) ** 2)) for name in one))


def _judge(federation: FederationFolder, spec: TaskSpec) -> Callable[[Parameters], Figures]:
    """Figures on the operator's held-out rows; none where it has none."""
    settings = read_settings(AggregatorSettings, federation.aggregator_file)
    if settings.held_out_file is None:
        return lambda _: {}
    rows = load_dataset(spec, settings.held_out_file, for_training=False, with_persons=False)
    return lambda model: evaluate(spec, model, rows)


def _table(rows: Sequence[Folded], spec: TaskSpec) -> Table:
    metric, judged = spec.first_metric, bool(rows[0].metrics)
    shown = list(rows[0].weight_shares)[:MOST_SHOWN]
    table = Table(
        box=box.SIMPLE_HEAD, title="weights of the sealed updates, not a training", title_justify="left", title_style="dim"
    )
    for name in ("plan", "K", "versions", "apart", *([metric_name(metric)] if judged else []), *shown):
        table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=name == "plan")
    for row in rows:
        figure = row.metrics.get(metric)
        figures = ["-" if figure is None else f"{figure:.4f}"] if judged else []
        parts = (f"{row.weight_shares[name]:.1%}" for name in shown)
        table.add_row(row.plan, str(row.buffer_size), f"{row.versions:,}", f"{row.moved:.0%}", *figures, *parts)
    table.caption = (
        "apart: the last model's distance from the real one, against how far that moved; then each one's share of the weight"
    )
    return table
