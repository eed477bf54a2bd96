"""A real run's arrival times under another plan: what would have come of it. Local training is done again, from the run's rows.

What is repeated: the rows, the first model, when each institution took a model and when its update arrived. What is not: noise
and samples are drawn anew, and a training that the run lost is not there.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ValidationError

from shared.errors import SettingsError
from shared.messages import Settlement, encode_model
from shared.plan import AggregationPlan, Plan
from shared.tasks.models import initial_parameters
from simulator.engine import Prepared, run
from simulator.epsilon_sweep import read_folder
from simulator.population import Institution, Population
from simulator.results import Point, RunResult
from simulator.scenario import Ending, Evaluation, PlanKeys, Scenario, Variant
from simulator.tally import Tally
from simulator.timing import End

APART_SECONDS = 1e-6
"""Between two updates of a version, whose order is known but not their times."""
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Training:
    """One recorded training, in seconds since version 0: when its base was taken and when its update arrived."""

    began: float
    arrived: float


class RecordedTiming:
    """See simulator.timing.Timing. Each institution trains when it did; one that is held up meanwhile is as late at the end."""

    def __init__(self, trainings: Sequence[Sequence[Training]]) -> None:
        self._trainings = trainings
        self._begun = [0] * len(trainings)

    def there_from(self, place: int, now: float) -> float | None:
        """The recorded beginning of the next training, or now where that is past."""
        left = self._trainings[place][self._begun[place] :]
        return max(now, left[0].began) if left else None

    def end_of(self, place: int, now: float) -> End:
        """The recorded arrival, or later by as much as the beginning is late."""
        training = self._trainings[place][self._begun[place]]
        self._begun[place] += 1
        return End(training.arrived + max(0.0, now - training.began), arrives=True)


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A run's folder: its plan, its institutions in their order with when they trained, and the run as a result."""

    name: str
    seed: int
    plan: Plan
    population: Population
    trainings: Sequence[Sequence[Training]]
    lines: Sequence[Line]

    def under(self, name: str, aggregation: AggregationPlan) -> RunResult:
        """The run again, under another aggregation."""
        scenario = Scenario(
            name=self.name[:60],
            seed=self.seed,
            data_folder="recorded",
            plan=PlanKeys(),
            ending=Ending(updates=max(1, sum(map(len, self.trainings)))),
            evaluation=Evaluation(every_updates=1),
        )
        plan = self.plan
        variant = Variant(
            name=name,
            aggregation=aggregation,
            defence=plan.defence,
            local=plan.local.model_copy(update={"horizon_seconds": 0.0}),
            privacy=plan.privacy,
            broadcast=plan.broadcast,
            update_encoding=plan.update_encoding,
        )
        return run(Prepared(scenario, self.population), variant, timing=RecordedTiming(self.trainings))

    def as_it_was(self, update_bytes: float) -> RunResult:
        """What really happened, by its lineage. Update bodies are about the same in length; each takes so many bytes."""
        tally, points = Tally(self.population.institutions), []
        places = {each.name: place for place, each in enumerate(self.population.institutions)}
        for line in self.lines:
            for update in (*line["updates"], *line["not_folded"]):
                if update["institution"] in places:
                    tally.settled(places[update["institution"]], _settlement(update), size_bytes=0)
            sent, taken = round(tally.updates * update_bytes), tally.updates * line["model_bytes"]
            points.append(Point(line["seconds"], tally.updates, line["version"], sent, taken, line["metrics"]))
        last, aggregation = self.lines[-1], self.plan.aggregation
        return RunResult(
            scenario=self.name,
            name="as it was",
            rule=aggregation.rule,
            buffer_size=aggregation.buffer_size,
            metric=self.population.spec.first_metric,
            points=tuple(points),
            contributions=tally.contributions(aggregation.rule),
            outcomes=dict(sorted(tally.outcomes.items())),
            ended=last["phase_reason"] or last["phase"],
            noise_multiplier=None,
            parameters={},
        )


def read_run(folder: Path) -> Recorded:
    """The folder of a finished run, as a demonstration leaves it. Raises SettingsError where something is missing in it."""
    try:
        lines = [json.loads(line) for line in _text(folder, "lineage.jsonl").splitlines()]
        summary = json.loads(_text(folder, "summary.json"))
    except json.JSONDecodeError as error:
        raise SettingsError(f"{folder}: lineage.jsonl or summary.json is cut short or no JSON: {error}") from error
    plan = _plan(folder, lines)
    spec, trainings, held_out = read_folder(folder)
    if not trainings:
        raise SettingsError(f"{folder / 'data'} holds no rows; local training cannot be done again without them")
    first = encode_model(summary["run_id"], initial_parameters(spec, summary["seed"]), plan.broadcast).hash
    if first != lines[0]["model"]:
        raise SettingsError(
            f"{folder}: the task and the seed of its summary do not give version 0; it was begun by something else"
        )
    when = recorded_trainings(lines)
    if unknown := when.keys() - trainings.keys():
        raise SettingsError(f"{folder / 'data'} has no rows of {', '.join(sorted(unknown))}, whose updates the lineage names")
    timetable = [when.get(name, []) for name in trainings]
    institutions = tuple(
        Institution(name, rows, _usual_seconds(own, lines))
        for (name, rows), own in zip(trainings.items(), timetable, strict=True)
    )
    # the aggregator of a demonstration judges updates on the rows by which all is measured
    population = Population(spec, institutions, held_out, gate=held_out)
    return Recorded(folder.resolve().name, summary["seed"], plan, population, timetable, lines)


def _usual_seconds(own: Sequence[Training], lines: Sequence[Line]) -> float:
    """One that never gave an update is taken to be slower than the run was long."""
    return median(each.arrived - each.began for each in own) if own else float(lines[-1]["seconds"])


def recorded_trainings(lines: Sequence[Line]) -> dict[str, list[Training]]:
    """By institution, in order. A base is taken as soon as it is there; what a version is made of arrives together with it.

    Refused updates are among them: under another rule they might have been folded.
    """
    taken: dict[int, float] = {}
    found: dict[str, list[tuple[int, int, Training]]] = {}
    at = 0.0
    for line in lines:
        for update in line["updates"]:
            at = max(at + APART_SECONDS, line["seconds"])
            _add(found, update, taken, arrived=at)
        at = taken[line["version"]] = max(at + APART_SECONDS, line["seconds"])
        for update in line["not_folded"]:
            # what a version itself refused cannot be told from what came after it; runs of before 2026-11 do not tell the base
            at = max(at + APART_SECONDS, update.get("seconds") or 0.0)
            if update.get("base_version") is not None:
                _add(found, update, taken, arrived=at)
    return {name: [training for *_, training in sorted(own, key=lambda each: each[:2])] for name, own in found.items()}


def _add(found: dict[str, list[tuple[int, int, Training]]], update: Line, taken: Mapping[int, float], *, arrived: float) -> None:
    began = min(taken.get(update["base_version"], arrived), arrived)
    number = (update["incarnation"], update["sequence"])
    found.setdefault(update["institution"], []).append((*number, Training(began, arrived)))


def _settlement(update: Line) -> Settlement:
    folded = "weight_hex" in update
    return Settlement(
        institution=update["pseudonym"],
        incarnation=update["incarnation"],
        sequence=update["sequence"],
        hash=update["hash"],
        outcome="aggregated" if folded else update["outcome"],
        **({"weight": update["weight_hex"], "scale": update["scale_hex"], "staleness": update["staleness"]} if folded else {}),
    )


def _plan(folder: Path, lines: Sequence[Line]) -> Plan:
    plans = [line["plan"] for line in lines if line.get("plan")]
    if not plans or lines[0]["version"] != 0:
        raise SettingsError(f"{folder / 'lineage.jsonl'} does not begin with version 0 and its plan")
    if any("roll_back" in line for line in lines):
        raise SettingsError(f"{folder / 'lineage.jsonl'} holds a roll-back, whose model is not made of trainings")
    if len({line["plan_hash"] for line in lines}) > 1:
        raise SettingsError(f"{folder / 'lineage.jsonl'} holds more than one plan; only a run under one can be tried again")
    try:
        return Plan.model_validate_json(json.dumps(plans[0]))
    except ValidationError as error:
        first = ".".join(map(str, error.errors()[0]["loc"]))
        raise SettingsError(f"{folder / 'lineage.jsonl'} holds a plan of another version of fedqueue: {first}") from error


def _text(folder: Path, name: str) -> str:
    try:
        return (folder / name).read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{folder / name}: {error.strerror}; `fedqueue demo` leaves it when a run has ended") from error
