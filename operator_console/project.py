"""The folder of a new project: its task, rows to try it with, and how to start it."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from operator_console.column_guess import Draft
from operator_console.made_up_rows import Rows
from shared.tasks.features import encode, require_trainable
from shared.tasks.spec import Kind, TaskSpec, Training, parse_task
from shared.tasks.tables import read_columns

TASK, HELD_OUT = "task.toml", "held_out.csv"
FILES = (TASK, "scenario.toml", "workers.sh", "compose.yml", "README.md")
NO_TORCH: Mapping[Kind, str] = {"binary": "logistic", "multiclass": "logistic", "regression": "linear"}
UPDATES = 20
STOP_AT_SHARE = 0.75
"""Of all the updates that the institutions can give, so that the run ends though one is late."""
FEW_ROWS = 2000
_TEMPLATES = Environment(  # noqa: S701 - TOML, YAML and text: their values are quoted as JSON strings, not as HTML
    loader=PackageLoader("operator_console", "project_templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclass(frozen=True, slots=True)
class Project:
    """What a project is made of. `source` names the file that the rows are from; empty, they are made up.

    `rows` are those of each institution, by its id. With `own_torch_model` the model is a module beside the task.
    """

    name: str
    title: str
    draft: Draft
    rows: Mapping[str, Rows]
    held_out: Rows
    source: str = ""
    own_torch_model: bool = False

    @property
    def module(self) -> str:
        """The Python module of the model; empty where there is none."""
        return f"{self.name.replace('-', '_')}_model" if self.own_torch_model else ""

    def files(self) -> dict[str, str]:
        """Every file's text by its path. Raises DataError where the rows do not fit the task, which would be our mistake."""
        values = self._values()
        texts = {name: _TEMPLATES.get_template(f"{name}.j2").render(values) for name in FILES}
        texts[".gitignore"] = _TEMPLATES.get_template("gitignore.j2").render(values)
        if self.module:
            texts[f"{self.module}.py"] = _TEMPLATES.get_template("model.py.j2").render(values)
        spec = parse_task(texts[TASK], source=TASK)
        tables = {f"data/{each}/training.csv": rows for each, rows in self.rows.items()} | {HELD_OUT: self.held_out}
        for name, rows in tables.items():
            texts[name] = as_csv(rows)
            _demand_fit(spec, texts[name], name, for_training=name != HELD_OUT)
        return texts

    def _values(self) -> dict[str, object]:
        model = f"{self.module}:network" if self.module else NO_TORCH[self.draft.label.kind]
        return {
            "name": self.name,
            "title": self.title,
            "source": self.source,
            "draft": self.draft,
            "left_out": self.draft.left_out,
            "model": model,
            "module": self.module,
            "training": _training(self.draft.label.kind, max(map(len, self.rows.values())), own=self.own_torch_model),
            "institutions": list(self.rows),
            "stop_after": round(STOP_AT_SHARE * UPDATES * len(self.rows)),
            "version": metadata.version("fedqueue"),
        }


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Writes a project's files below the folder. Raises OSError."""
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (folder / "workers.sh").chmod(0o755)


def as_csv(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows, of which there is at least one, with a header line."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _training(kind: Kind, rows: int, *, own: bool) -> Training:
    """Few steps on all rows need the least noise in small tables; a squared error, and several classes, want smaller ones.

    A network makes more of the noise than a logistic model: its steps are smaller, or honest updates are taken for harmful ones.
    """
    rate = {"binary": 2.0, "multiclass": 1.0, "regression": 0.1}[kind] * (0.25 if own else 1.0)
    if rows <= FEW_ROWS:
        return Training(steps=4, sample_rate=1.0, learning_rate=rate, updates=UPDATES)
    return Training(steps=10, sample_rate=0.25, learning_rate=rate, updates=UPDATES)


def _demand_fit(spec: TaskSpec, text: str, source: str, *, for_training: bool) -> None:
    dataset = encode(spec, read_columns(io.BytesIO(text.encode()), source=source), source)
    if for_training:
        require_trainable(spec, dataset, source)
