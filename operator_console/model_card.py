"""What a model file says of itself: the same facts inside the file, as JSON, and beside it, as Markdown for people."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydantic import Field, ValidationError

from shared.errors import DataError
from shared.plan import Frozen, Mechanism
from shared.tasks.spec import LOWER_IS_BETTER, Categorical, Numeric, TaskSpec

METADATA_KEY = "fedqueue_card"
"""Under which a safetensors or ONNX file holds the card."""
_TEMPLATES = Environment(  # noqa: S701 - Markdown for people who read it as text
    loader=PackageLoader("operator_console", "card_templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


class MemberFacts(Frozen):
    """One institution's part up to this version. Its name and number of examples are there where the operator wants them told.

    `epsilon_spent` and `target_delta` are what it said it has spent by then; None where there is no noise.
    """

    institution: str
    updates: Annotated[int, Field(ge=0)]
    epsilon_spent: float | None
    target_delta: float | None
    examples: int | None = None


class PrivacyFacts(Frozen):
    """What noise protects: a `unit` in words, and what each institution may spend at most."""

    mechanism: Mechanism
    unit: str
    epsilon_budget: float | None
    target_delta: float


class LineageFacts(Frozen):
    """Hashes by which the version is found again; `first_manifest` is the first of the run that the broker still holds."""

    first_manifest: str
    manifest: str
    model: str
    task: str
    plan: str


class ModelCard(Frozen):
    """Everything that a reader of the file needs to use the model, and to judge whether to.

    `task` has the columns and how they are prepared: predictions follow from it and the file alone. Times are milliseconds of the
    aggregator's wall clock. `decision` is the score from which a row is called positive, where there is one.
    """

    schema_number: Literal[1] = 1
    fedqueue: str
    task: TaskSpec
    run_id: str
    version: Annotated[int, Field(ge=0)]
    newest_version: Annotated[int, Field(ge=0)]
    why: str
    first_at_ms: int
    at_ms: int
    institutions: tuple[MemberFacts, ...]
    named: bool
    examples: int | None
    updates: Mapping[str, int]
    roll_backs: tuple[int, ...]
    metrics: Mapping[str, float | None]
    measured_versions: int
    decision: float | None
    privacy: PrivacyFacts
    lineage: LineageFacts

    def as_metadata(self) -> dict[str, str]:
        """What a model file holds beside the parameters."""
        text = self.model_dump_json(exclude={"task"})
        # What the task's author left open stays open: a key that is set to its default would not be the same task.
        task = self.task.model_dump_json(exclude_unset=True)
        return {
            METADATA_KEY: f'{{"task":{task},{text[1:]}',
            "run_id": self.run_id,
            "version": str(self.version),
        }

    def markdown(self) -> str:
        """The card for people."""
        return _TEMPLATES.get_template("model_card.md.j2").render(
            card=self,
            columns=[_prepared(group) for group in self.task.groups],
            figures=_figures(self),
            since=_time(self.first_at_ms),
            until=_time(self.at_ms),
            limits=limits(self),
        )


def read_card(metadata: Mapping[str, str], *, source: str) -> ModelCard | None:
    """The card in a file's metadata; None where there is none. Raises DataError where it is not one of ours."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    try:
        return ModelCard.model_validate_json(text)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors(include_input=False, include_url=False)[0]["loc"])
        raise DataError(
            f"{source}: the model card in it cannot be read (its {place or 'JSON'}); another version of fedqueue wrote it, or "
            "somebody changed it: export the model again with this version"
        ) from None


def limits(card: ModelCard) -> list[str]:
    """What the model is not, one sentence each."""
    first = card.task.first_metric
    told = [
        "Its inputs are the columns above in their ranges: a value beyond a range counts as the nearest end, and of anything "
        "but the declared categories the model has learned little or nothing.",
    ]
    if card.metrics.get(first) is None:
        told.append("No version was measured on held-out rows: how good it is, is not known.")
    else:
        told.append(
            "The figures are those of the operator's held-out rows. At an institution whose rows differ they may be worse: "
            "measure there before you rely on them."
        )
    if card.measured_versions > 1 and card.why.startswith("it is the best"):
        told.append(
            f"It was picked as the best of {card.measured_versions} measured versions by these same rows, so its figure is "
            "better than it will be on others."
        )
    if card.privacy.mechanism == "none":
        told.append("It was trained without noise: who has it may find out whether a row was in the training data.")
    else:
        told.append(
            f"Noise protects {card.privacy.unit}, up to the epsilon above; it promises nothing about what is known otherwise."
        )
    if card.version == 0:
        told.append("Version 0 has learned nothing yet.")
    return told


def _prepared(group: Numeric | Categorical) -> dict[str, str]:
    """A line of the table of columns."""
    if isinstance(group, Categorical):
        other = "; one more input for anything else, an empty cell too" if group.other else "; anything else sets no input"
        return {"names": _names(group), "is": "categories", "how": f"one input each for {', '.join(group.categories)}{other}"}
    scale = "log(1 + value)" if group.log else "value"
    missing = "an empty cell counts as the middle" + (", and sets one more input" if group.missing == "indicator" else "")
    also = f"; so does {', '.join(f'{each:g}' for each in group.missing_values)}" if group.missing_values else ""
    how = f"{scale} scaled from {group.minimum:g}..{group.maximum:g} to -1..1; {missing}{also}"
    return {"names": _names(group), "is": "a number", "how": how}


def _names(group: Numeric | Categorical) -> str:
    names = group.names
    return ", ".join(names) if len(names) <= 6 else f"{names[0]}, {names[1]} ... {names[-1]} ({len(names)} columns)"


def _figures(card: ModelCard) -> list[tuple[str, str]]:
    told = []
    for name, value in card.metrics.items():
        better = "less is better" if name in LOWER_IS_BETTER else ""
        told.append((name, ("does not exist" if value is None else f"{value:.4f}") + (f" ({better})" if better else "")))
    return told


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
