"""A task as a small TOML file: columns with public ranges, model, local training, and what a good figure is.

This module imports no torch: programs that only read or compare tasks start at once.
"""

import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from shared.codec import Dtype
from shared.errors import SettingsError
from shared.plan import Frozen, Positive, RuleName, UpdateEncoding
from shared.wrong_keys import explain

Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Kind = Literal["binary", "multiclass", "regression"]

METRICS: dict[Kind, tuple[str, ...]] = {
    "binary": ("auc", "log_loss", "accuracy", "recall", "f1"),
    "multiclass": ("auc", "log_loss", "accuracy", "recall", "f1"),
    "regression": ("rmse", "mae", "r2"),
}
LOWER_IS_BETTER = frozenset({"log_loss", "rmse", "mae"})
MODELS: dict[Kind, tuple[str, ...]] = {
    "binary": ("logistic", "mlp"),
    "multiclass": ("logistic", "mlp"),
    "regression": ("linear", "mlp"),
}
COLUMN_RANGE = re.compile(r"(?P<prefix>.*?)(?P<first>\d+)\.\.(?P=prefix)(?P<last>\d+)")
MOST_COLUMNS_IN_A_RANGE = 100_000
USUAL_RATES: Mapping[RuleName, float] = {"fedasync": 0.6, "fedbuff": 0.5}
"""Where it is not 1. FedAsync's is alpha (Xie et al. 2019, section 6): the part of the way to the mixed model that a fresh update
goes. FedBuff's makes one whole step per cycle where K is half of the institutions, as much as it may be."""
FEDBUFF_BUFFER = 10
"""K of FedBuff (Nguyen et al. 2022, section 5)."""
ADAM_RATE = 0.003
"""Of Adam at the server, whose steps are about this long on every coordinate, whatever the updates' length. Of rates from 0.001
to 0.3 the best or nearly so on heart-disease and digits, with noise of epsilon 3 and without, K = 1."""


def better(metric: str, one: float | None, other: float | None) -> bool:
    """Whether the figure `one` beats `other`; one that does not exist beats nothing and is not beaten."""
    if one is None or other is None:
        return False
    return one < other if metric in LOWER_IS_BETTER else one > other


def canonical(value: object) -> str:
    """A cell or a declared category as text, so that 1, 1.0, "1" and True, TRUE, "true" each are one category."""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() else text


def expand(columns: str | tuple[str, ...]) -> tuple[str, ...]:
    """The column names that are meant: "p0..p63" are sixty-four, any other text is itself."""
    if not isinstance(columns, str):
        return columns
    match = COLUMN_RANGE.fullmatch(columns)
    if match is None:
        return (columns,)
    first, last = int(match["first"]), int(match["last"])
    if not first <= last < first + MOST_COLUMNS_IN_A_RANGE:
        raise ValueError(f"{columns!r} must count upwards, over at most {MOST_COLUMNS_IN_A_RANGE} columns")
    return tuple(f"{match['prefix']}{number}" for number in range(first, last + 1))


Columns = Annotated[str | tuple[str, ...], Field(min_length=1)]
_OF_COLUMNS = ("str", "tuple[str, ...]")
"""How pydantic tells the two kinds apart, where it says what is wrong."""
Category = Annotated[str, BeforeValidator(canonical)]


class Label(Frozen):
    """What is predicted. `positive` is for binary tasks, `classes` for multiclass, `minimum` and `maximum` for regression."""

    column: Annotated[str, Field(min_length=1)]
    positive: tuple[Category, ...] = ()
    negative: tuple[Category, ...] = ()
    classes: tuple[Category, ...] = ()
    minimum: Finite | None = None
    maximum: Finite | None = None
    base_rate: Share | None = None
    threshold: Share | None = None


class Numeric(Frozen):
    """Columns scaled from their public range to [-1, 1], by log(1 + value) with `log`; beyond an end counts as the end.

    Empty cells and the numbers of `missing_values` count as the midpoint, and with `missing = "indicator"` set one more input.
    """

    columns: Columns
    minimum: Finite
    maximum: Finite
    log: bool = False
    missing: Literal["midpoint", "indicator"] = "midpoint"
    missing_values: tuple[Finite, ...] = ()

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum >= self.maximum:
            raise ValueError(f"minimum {self.minimum:g} must be below maximum {self.maximum:g}")
        if self.log and self.minimum <= -1:
            raise ValueError(f"log needs a minimum above -1, not {self.minimum:g}; remove log or raise the minimum")
        return self

    @field_validator("columns")
    @classmethod
    def _expand(cls, columns: str | tuple[str, ...]) -> tuple[str, ...]:
        return expand(columns)

    @property
    def names(self) -> tuple[str, ...]:
        """Every column name."""
        return expand(self.columns)

    @property
    def width(self) -> int:
        """Model inputs made of one column."""
        return 2 if self.missing == "indicator" else 1


class Categorical(Frozen):
    """Columns turned into one input per public category, and with `other` one more for anything else, missing values included.

    Without `other` anything else sets no input at all. That suits a category that most rows have: a shorter row loses less
    to clipping.
    """

    columns: Columns
    categories: Annotated[tuple[Category, ...], Field(min_length=1)]
    other: bool = True

    @field_validator("columns")
    @classmethod
    def _expand(cls, columns: str | tuple[str, ...]) -> tuple[str, ...]:
        return expand(columns)

    @field_validator("categories")
    @classmethod
    def _once(cls, categories: tuple[str, ...]) -> tuple[str, ...]:
        return _each_once(categories, "category")

    @property
    def names(self) -> tuple[str, ...]:
        """Every column name."""
        return expand(self.columns)

    @property
    def width(self) -> int:
        """Model inputs made of one column."""
        return len(self.categories) + self.other


class Model(Frozen):
    """`logistic`, `linear`, `mlp` with hidden layers, or `module:function` of (inputs, outputs) returning a torch.nn.Module."""

    type: Annotated[str, Field(pattern=r"^(logistic|linear|mlp|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")]
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = ()


class Training(Frozen):
    """One update is `steps` of SGD on Poisson samples of `sample_rate`; `updates` is how many an institution gives in all."""

    steps: Annotated[int, Field(ge=1)] = 10
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 0.25
    learning_rate: Positive = 1.0
    clipping_norm: Positive = 1.0
    updates: Annotated[int, Field(ge=1)] = 20


class Aggregation(Frozen):
    """What was found to suit this task; a plan may say otherwise. The server learning rate is meant for the `rule` named here."""

    rule: RuleName = "credit"
    server_learning_rate: Positive = 1.0
    staleness_function: Literal["constant", "polynomial", "hinge"] = "polynomial"
    staleness_exponent: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    buffer_size: Annotated[int, Field(ge=1)] = 1

    def rate_for(self, rule: RuleName, *, adam: bool = False) -> float:
        """The server learning rate where the operator names none: the task's own for its own rule, else what is usual."""
        if adam:
            return ADAM_RATE
        if rule == self.rule and "server_learning_rate" in self.model_fields_set:
            return self.server_learning_rate
        return USUAL_RATES.get(rule, 1.0)

    def buffer_for(self, rule: RuleName) -> int:
        """K where the operator names none: the task's own for its own rule, else what is usual."""
        if rule == self.rule and "buffer_size" in self.model_fields_set:
            return self.buffer_size
        return FEDBUFF_BUFFER if rule == "fedbuff" else 1


class Transport(Frozen):
    """In what numbers updates and models travel; a plan may say otherwise."""

    updates: UpdateEncoding = "int8"
    models: Dtype = "float32"


class TaskSpec(Frozen):
    """A whole task. Two tasks are the same if their hashes are, whatever their comments and layout.

    `person` is the column that says whose record a row is. With it privacy is that of a person with all its records.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
    title: str = ""
    kind: Kind
    metric: str = ""
    person: str = ""
    label: Label
    numeric: tuple[Numeric, ...] = ()
    categorical: tuple[Categorical, ...] = ()
    model: Model
    training: Training = Training()
    aggregation: Aggregation = Aggregation()
    transport: Transport = Transport()

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for problem in (_label_problem(self), _model_problem(self), _column_problem(self), _metric_problem(self)):
            if problem:
                raise ValueError(problem)
        return self

    @property
    def hash(self) -> str:
        """SHA-256 in hexadecimal over the content as JSON with sorted keys and no spaces."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def groups(self) -> tuple[Numeric | Categorical, ...]:
        """The feature declarations, in the order of the model's inputs."""
        return (*self.numeric, *self.categorical)

    @property
    def inputs(self) -> int:
        """Width of an encoded row."""
        return sum(len(group.names) * group.width for group in self.groups)

    @property
    def outputs(self) -> int:
        """Model outputs: one per class, a single one otherwise."""
        return len(self.label.classes) if self.kind == "multiclass" else 1

    @property
    def first_metric(self) -> str:
        """The figure to look at first."""
        return self.metric or METRICS[self.kind][0]

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that a data file must have, the person's first and the label last."""
        features = (name for group in self.groups for name in group.names)
        return (*((self.person,) if self.person else ()), *features, self.label.column)


def parse_task(text: str, *, source: str) -> TaskSpec:
    """The task in the TOML text; `source` names it in errors. Raises SettingsError with one line per wrong key."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{source}: not TOML: {error}") from error
    try:
        return TaskSpec.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        lines = explain(error, TaskSpec, whole="the task", skip=_OF_COLUMNS)
        raise SettingsError("\n".join(f"{source}: {line}" for line in lines)) from None


def _each_once(values: tuple[str, ...], noun: str) -> tuple[str, ...]:
    repeated, times = Counter(values).most_common(1)[0]
    if times > 1:
        raise ValueError(f"the {noun} {repeated!r} is named twice; name it once")
    return values


def _label_problem(task: TaskSpec) -> str:
    label = task.label
    wanted: dict[Kind, tuple[str, ...]] = {
        "binary": ("positive", "negative", "base_rate", "threshold"),
        "multiclass": ("classes",),
        "regression": ("minimum", "maximum"),
    }
    given = [key for key in label.model_fields_set if key != "column"]
    stray = next((key for key in sorted(given) if key not in wanted[task.kind]), None)
    if stray:
        return f"label.{stray} has no meaning in a {task.kind} task; remove it or change kind"
    if task.kind == "binary":
        return _binary_label_problem(label)
    if task.kind == "multiclass" and len(set(label.classes)) < max(2, len(label.classes)):
        return "label.classes must name every class once, and at least two"
    if task.kind == "regression" and not _ordered(label.minimum, label.maximum):
        return "label.minimum and label.maximum must give the public range of the label, the smaller first"
    return ""


def _binary_label_problem(label: Label) -> str:
    if not label.positive:
        return 'label.positive must list the label values that count as positive, such as ["1"]'
    if set(label.positive) & set(label.negative):
        return "label.positive and label.negative share a value; each value is one or the other"
    if label.base_rate and label.threshold:
        return "label.base_rate and label.threshold exclude each other; give the one that sets the decision"
    return ""


def _ordered(minimum: float | None, maximum: float | None) -> bool:
    return minimum is not None and maximum is not None and minimum < maximum


def _model_problem(task: TaskSpec) -> str:
    model, allowed = task.model, MODELS[task.kind]
    if ":" not in model.type and model.type not in allowed:
        return f"model.type {model.type!r} does not fit a {task.kind} task; use {' or '.join(allowed)}, or module:function"
    if model.type == "mlp" and not model.hidden:
        return "model.hidden must list the sizes of the hidden layers, such as [32]"
    if model.type != "mlp" and model.hidden:
        return f"model.hidden has no meaning for {model.type!r}; remove it or use mlp"
    return ""


def _column_problem(task: TaskSpec) -> str:
    if not task.groups:
        return "no feature is declared; add a [[numeric]] or a [[categorical]] table"
    try:
        _each_once(task.columns, "column")
    except ValueError as error:
        return str(error)
    return ""


def _metric_problem(task: TaskSpec) -> str:
    allowed = METRICS[task.kind]
    if task.metric and task.metric not in allowed:
        return f"metric {task.metric!r} is not a figure of a {task.kind} task; use one of {', '.join(allowed)}"
    return ""
