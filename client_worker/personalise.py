"""`fedqueue-client personalise`: the newest global model, fine-tuned on the institution's own rows, for itself alone.

Nothing is published, and the privacy ledger is neither opened nor charged: it looks on with the worker's login, beside the
worker. What it makes is without noise and stays in the house.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.numpy

from broker_config.downloads import Wanted
from broker_config.streams import newest, records_of
from broker_config.written import write_private
from client_worker.data import load_dataset
from client_worker.files import fingerprint, read_task
from client_worker.global_model import read_model, wanted_of
from client_worker.local_work import Member
from client_worker.own_model import OwnModel, merit, of_own_rows, personalised
from client_worker.policy import require_task
from client_worker.settings import ClientSettings
from client_worker.standing import require_membership
from shared.broker import Broker
from shared.errors import (
    DataError,
    FederationError,
    IncompatibleUpdateError,
    SettingsError,
    StorageError,
)
from shared.messages import BlobName, ManifestRecord
from shared.parameters import Parameters, require_shapes, shapes
from shared.tasks.features import Dataset
from shared.tasks.metrics import Figures, evaluate
from shared.tasks.models import initial_parameters
from shared.tasks.spec import TaskSpec

Version = int | Literal["best"] | None
"""Of the global model that is begun with: a number, the best by the operator's held-out figure, or None, the newest."""
SCHEMA = 1
SUFFIX = ".safetensors"
STAYS = "trained without noise on this institution's rows: neither the model nor its figures may leave"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The task, the rows to fine-tune on, and others to judge by."""

    spec: TaskSpec
    training: Dataset
    test: Dataset


@dataclass(frozen=True, slots=True)
class Source:
    """The global model that was begun with."""

    run_id: str
    version: int
    model_hash: str


@dataclass(frozen=True, slots=True, eq=False)
class Personalised:
    """The fine-tuned model, and figures on the test rows of the global one, of it, and of a model of the own rows alone."""

    model: OwnModel
    figures: Mapping[str, Figures]


def read_rows(settings: ClientSettings, test_file: Path | None) -> Rows:
    """What the settings name, and test rows: `test_file`, or else the validation file. Raises SettingsError, DataError."""
    test_file = test_file or settings.validation_file
    if test_file is None:
        raise SettingsError(
            "there are no rows to test the models on: name a file that is not trained on with --test, or set validation_file"
        )
    spec = read_task(settings.task_file)
    training = load_dataset(spec, settings.training_file)
    test = load_dataset(spec, test_file, for_training=False, with_persons=False)
    if fingerprint(test_file) == fingerprint(settings.training_file):
        raise DataError(f"{test_file} holds the rows that are trained on: a model is judged by others; hold some back")
    if evaluate(spec, initial_parameters(spec, 0), test)[spec.first_metric] is None:
        raise DataError(
            f"{test_file}: {spec.first_metric} does not exist on these {len(test)} rows, the label {spec.label.column!r} lacks a "
            "value among them; add rows that have it"
        )
    return Rows(spec, training, test)


def fetch(broker: Broker, member: Member, spec: TaskSpec, *, version: Version = None) -> tuple[Source, Parameters]:
    """The newest global model or another version's, read as the worker reads it; nothing is written.

    Raises TopologyError where this institution is no member, SettingsError where the federation's task or model is another one,
    FederationError where there is nothing to begin with yet or no longer.
    """
    head, lineage = newest(broker)
    require_membership(lineage, member)
    if lineage.plan is not None:
        require_task(lineage.plan, task_hash=spec.hash)
    wanted = _best_of(head) if version == "best" else wanted_of(head if version is None else _record_of(broker, version, head))
    if wanted.version == 0:
        raise FederationError("version 0 is the untrained model: nothing has been learned yet; try again after the first updates")
    model = read_model(broker, wanted)
    try:
        require_shapes(model, shapes(initial_parameters(spec, 0)))
    except IncompatibleUpdateError as error:
        raise SettingsError(f"the model of version {wanted.version} is not what {spec.model.type} makes here: {error}") from error
    return Source(head.manifest.run_id, wanted.version, wanted.blob.hash), model


def _best_of(head: ManifestRecord) -> Wanted:
    """The version that did best on the operator's held-out rows, whose model the aggregator keeps readable."""
    scalars = head.manifest.scalars
    if "best_version" not in scalars or head.best_at is None:
        raise FederationError("this run names no best version: the operator measures none on held-out rows; take the newest")
    blob = BlobName(hash=str(scalars["best_model"]), size=int(scalars["best_size"]))
    return Wanted(int(scalars["best_version"]), blob, head.best_at)


def _record_of(broker: Broker, version: int, head: ManifestRecord) -> ManifestRecord:
    newest_version, found = head.manifest.version, None
    if version > newest_version:
        raise SettingsError(f"there is no version {version} yet; the newest is {newest_version}")
    for record in records_of(broker):
        if record.manifest.version == version:
            found = record
    if found is None:
        raise FederationError(f"the lineage no longer holds version {version}; take a newer one, up to {newest_version}")
    return found


def compare(rows: Rows, model: Parameters) -> Personalised:
    """Fine-tunes, trains the institution's own model for comparison, and measures the three on the test rows."""
    mine, alone = personalised(rows.spec, rows.training, model), of_own_rows(rows.spec, rows.training)
    models = {"global": model, "personalised": mine.parameters, "alone": alone.parameters}
    return Personalised(mine, {name: evaluate(rows.spec, each, rows.test) for name, each in models.items()})


def best(spec: TaskSpec, figures: Mapping[str, Figures]) -> str:
    """The name of the model with the best first figure; of equals the first."""
    return max(figures, key=lambda name: merit(spec, figures[name]))


def file_for(settings: ClientSettings, out: Path | None) -> Path:
    """Where the model goes: `out`, or into the institution's own state folder. Raises SettingsError for another kind of name."""
    path = out or settings.state_folder / f"personalised{SUFFIX}"
    if path.suffix != SUFFIX:
        raise SettingsError(f"--out {path} must end in {SUFFIX}; the figures go beside it, into a file that ends in .json")
    return path


def keep(path: Path, rows: Rows, source: Source, found: Personalised) -> None:
    """Writes the model, and its figures beside it as JSON, so that only their owner can read them. Raises StorageError."""
    spec = rows.spec
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": source.run_id,
        "version": source.version,
        "global_model": source.model_hash,
        "task": spec.name,
        "metric": spec.first_metric,
        "training_rows": len(rows.training),
        "test_rows": len(rows.test),
        "penalty": found.model.penalty,
        "figures": found.figures,
        "best": best(spec, found.figures),
        "note": STAYS,
    }
    metadata = {"run_id": source.run_id, "version": str(source.version), "task": spec.name, "note": STAYS}
    _keep(path, safetensors.numpy.save(found.model.parameters, metadata=metadata))
    _keep(path.with_suffix(".json"), (json.dumps(content, indent=2) + "\n").encode())


def _keep(path: Path, content: bytes) -> None:
    """In one step: what was there stays until all of it is written."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, content)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror or error}; name another file with --out") from error
