"""A scenario as a small TOML file: data, institutions, and the plans that are compared. No torch, no I/O.

Everything that is drawn is drawn by `seed`: the same file gives the same figures, to the bit.
"""

import json
import tomllib
from collections import Counter
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from shared.codec import Dtype
from shared.errors import SettingsError
from shared.plan import AggregationPlan, Defence, Frozen, LocalPlan, NotNegative, Positive, PrivacyPlan, UpdateEncoding
from shared.wrong_keys import explain

Share = Annotated[float, Field(ge=0, le=1)]
Whole = Annotated[int, Field(ge=1)]
SWITCHED_OFF = ("norm_cap", "gate_tolerance", "strikes", "server_adam", "epsilon")
"""Keys that TOML's `false` switches off, where a plan has None."""


class Synthetic(Frozen):
    """A classification problem without a file: Gaussian classes whose means are `separation` standard deviations apart.

    `rows_each` is the mean number of rows of an institution. `shift` moves all rows of one institution, in standard deviations
    of a feature: what is measured differently at every place. Without `hidden` layers the model is logistic.
    """

    inputs: Whole = 20
    classes: Annotated[int, Field(ge=2)] = 2
    hidden: tuple[Whole, ...] = ()
    rows_each: Whole = 50
    test_rows: Whole = 1000
    separation: Positive = 3.0
    shift: NotNegative = 0.0


class Table(Frozen):
    """One file of rows, of which `test_share` is held out for the figures; the population divides the rest."""

    task_file: str
    rows_file: str
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2


def _require_list(key: str, values: tuple[float, ...], distribution: str) -> None:
    if distribution == "list" and not values:
        raise ValueError(f'distribution = "list" needs {key}, one number for each institution')
    if values and distribution != "list":
        raise ValueError(f'{key} has no meaning with distribution = "{distribution}"; remove it, or say "list"')


class Size(Frozen):
    """How many rows an institution has: `equal`; `lognormal`, whose logarithm has the standard deviation `sigma`; or a `list` of
    relative sizes, gone through again where there are more institutions.
    """

    distribution: Literal["equal", "lognormal", "list"] = "equal"
    sigma: NotNegative = 1.0
    relative: tuple[Positive, ...] = ()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _require_list("relative", self.relative, self.distribution)
        return self


class Speed(Frozen):
    """The virtual seconds of a local training, transport included.

    Each institution has its usual ones: `fixed`, all the same; `ratio`, a `slow_share` of them `ratio` times slower; `list`, as
    `each_seconds` has them, gone through again where there are more institutions; `lognormal` with median `seconds`;
    `exponential` with mean `seconds`. One training varies around them: `none`; `uniform` by up to `spread` of them either way;
    `lognormal`, whose logarithm has the standard deviation `spread`; `exponential`, with the usual ones as mean.
    """

    distribution: Literal["fixed", "ratio", "list", "lognormal", "exponential"] = "fixed"
    seconds: Positive = 1.0
    ratio: Positive = 10.0
    slow_share: Share = 0.5
    each_seconds: tuple[Positive, ...] = ()
    sigma: NotNegative = 1.0
    variation: Literal["none", "uniform", "lognormal", "exponential"] = "uniform"
    spread: NotNegative = 0.1

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        _require_list("each_seconds", self.each_seconds, self.distribution)
        if self.variation == "uniform" and self.spread >= 1:
            raise ValueError(
                f"spread {self.spread:g} of a uniform variation must be below 1: no training takes less than no time"
            )
        return self


class Dropout(Frozen):
    """Who goes. A `leave_share` of the institutions goes for good at `leave_after_seconds`; an `away_share` comes and goes, there
    for `there_seconds` and away for `away_seconds` at a time, both means of exponential draws.

    A training that is under way then is lost.
    """

    leave_share: Share = 0.0
    leave_after_seconds: Positive | None = None
    away_share: Share = 0.0
    there_seconds: Positive | None = None
    away_seconds: Positive | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.leave_share and self.leave_after_seconds is None:
            raise ValueError("leave_share needs leave_after_seconds: when they go")
        if self.away_share and (self.there_seconds is None or self.away_seconds is None):
            raise ValueError("away_share needs there_seconds and away_seconds: how long at a time")
        return self


class Poison(Frozen):
    """So many of the institutions, drawn by the seed, send their update times `factor`; -1 is the sign flip."""

    institutions: Annotated[int, Field(ge=0)] = 0
    factor: Annotated[float, Field(allow_inf_nan=False)] = -1.0


class Population(Frozen):
    """The institutions. `institutions` is their number, which a `data_folder` has already.

    `dirichlet_alpha` divides each class over them (Hsu, Qi & Brown 2019, arXiv 1909.06335, turned round: a draw for every
    class, as in Li et al. 2022, arXiv 2102.02079): 0.1 gives each few classes, 100 about the same; without it rows go at random.
    """

    institutions: Whole | None = None
    dirichlet_alpha: Positive | None = None
    size: Size = Size()
    speed: Speed = Speed()
    dropout: Dropout = Dropout()
    poison: Poison = Poison()


class PlanKeys(Frozen):
    """What a plan says; a key that is not given is the task's, and what the task leaves open is the product's default.

    Without noise an institution gives as many updates as the run lasts, unless `local.updates` is given.
    """

    aggregation: AggregationPlan = AggregationPlan()
    defence: Defence = Defence()
    local: LocalPlan = LocalPlan()
    privacy: PrivacyPlan = PrivacyPlan(mechanism="none", epsilon=None)
    broadcast: Dtype | None = None
    update_encoding: UpdateEncoding | None = None


class Variant(PlanKeys):
    """One of the plans that are compared: `[plan]`, with the keys that are given here on top."""

    name: Annotated[str, Field(min_length=1, max_length=60)]


class Ending(Frozen):
    """Where a run ends, whichever is reached first. An institution's updates may end it too."""

    seconds: Positive | None = None
    updates: Whole | None = None
    versions: Whole | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.seconds is None and self.updates is None and self.versions is None:
            raise ValueError("say where the run ends: seconds, updates or versions")
        return self


class Evaluation(Frozen):
    """The held-out rows judge version 0, the first version after every so many updates more, and the last one.

    `gate_rows` of them are the aggregator's own, for its gate (`defence.gate_tolerance`), and judge nothing else.
    """

    every_updates: Whole = 10
    gate_rows: Annotated[int, Field(ge=0)] = 0


class Target(Frozen):
    """A figure to reach, and in how many evaluations in a row. `metric` is the task's first one unless given."""

    metric: str = ""
    value: Annotated[float, Field(allow_inf_nan=False)]
    evaluations: Whole = 1


class Scenario(Frozen):
    """A whole scenario. Its rows come from exactly one of `synthetic`, `table` and `data_folder`.

    A data folder is as a demonstration writes it: `task.toml`, `data/NAME/training.csv` for each institution, `held_out.csv`.
    """

    name: Annotated[str, Field(min_length=1, max_length=60)]
    title: str = ""
    seed: Annotated[int, Field(ge=0)] = 0
    data_folder: str | None = None
    table: Table | None = None
    synthetic: Synthetic | None = None
    population: Population = Population()
    plan: PlanKeys = PlanKeys()
    compare: tuple[Variant, ...] = ()
    ending: Ending
    evaluation: Evaluation = Evaluation()
    target: Target | None = None

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for problem in (_source_problem(self), _population_problem(self), _names_problem(self)):
            if problem:
                raise ValueError(problem)
        return self

    def within(self, folder: PurePath) -> Self:
        """The same with paths that begin at `folder`; absolute ones stay."""
        if self.data_folder is not None:
            return self.model_copy(update={"data_folder": str(folder / self.data_folder)})
        if self.table is None:
            return self
        files = {key: str(folder / getattr(self.table, key)) for key in ("task_file", "rows_file")}
        return self.model_copy(update={"table": self.table.model_copy(update=files)})

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What is compared; a scenario that compares nothing has one, named after its rule."""
        return self.compare or (Variant(name=self.plan.aggregation.rule),)


def parse_scenario(text: str, *, source: str) -> Scenario:
    """The scenario in the TOML text; `source` names it in errors. Raises SettingsError with one line per wrong key.

    Paths stay as they are written; `false` switches off what a plan may leave out, such as `norm_cap`.
    """
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source}: not TOML: {error}") from error
    try:
        return Scenario.model_validate_json(json.dumps(_with_nulls(values), default=str))
    except ValidationError as error:
        raise SettingsError("\n".join(f"{source}: {line}" for line in explain(error, Scenario, whole="the scenario"))) from None


def _with_nulls(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_nulls(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {key: None if key in SWITCHED_OFF and each is False else _with_nulls(each) for key, each in value.items()}


def _source_problem(scenario: Scenario) -> str:
    sources = {"data_folder": scenario.data_folder, "table": scenario.table, "synthetic": scenario.synthetic}
    given = [name for name, source in sources.items() if source is not None]
    if len(given) == 1:
        return ""
    return f"give one source of rows, data_folder, [table] or [synthetic], not {' and '.join(given) or 'none'}"


def _population_problem(scenario: Scenario) -> str:
    population = scenario.population
    if scenario.data_folder is None:
        if population.institutions is None:
            return "population.institutions is missing; say how many there are"
        if population.poison.institutions > population.institutions:
            return f"population.poison.institutions is more than the {population.institutions} that there are"
        return ""
    divides = {"institutions", "dirichlet_alpha", "size"} & population.model_fields_set
    stray = min(divides, default=None)
    return f"population.{stray} has no meaning with a data_folder, which is divided already; remove it" if stray else ""


def _names_problem(scenario: Scenario) -> str:
    name, times = Counter(variant.name for variant in scenario.variants).most_common(1)[0]
    return f"two plans to compare are named {name!r}; give each a name of its own" if times > 1 else ""
