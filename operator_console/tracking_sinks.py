"""TensorBoard, MLflow and Weights & Biases behind one seam, a function of (step, metrics). None of them uses a network."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from broker_config.written import write_public
from operator_console.tracking import LAST, Metrics
from shared.errors import SettingsError

Tool = Literal["tensorboard", "mlflow", "wandb"]
MLFLOW_BATCH = 1000
"""Metrics that MLflow takes at once."""


@dataclass(frozen=True, slots=True)
class Sink:
    """Takes the steps after `last_step`, which is the last that an earlier call wrote whole, -1 for none."""

    log: Callable[[int, Metrics], None]
    last_step: int


@dataclass(frozen=True, slots=True)
class Tracked:
    """The run, and the folder that its figures go to."""

    run_id: str
    title: str
    out: Path


@contextmanager
def tensorboard(run: Tracked) -> Iterator[Sink]:
    """Event files in a folder of the run's id."""
    with _needing("tensorboard", "TensorBoard"):
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from torch.utils.tensorboard import SummaryWriter
    folder = run.out / run.run_id
    events = (event for file in sorted(folder.glob("events.out.tfevents.*")) for event in EventFileLoader(str(file)).Load())
    last = max((event.step for event in events if any(value.tag == LAST for value in event.summary.value)), default=-1)
    # what a killed call wrote of a step that it did not finish is purged
    writer = SummaryWriter(str(folder), purge_step=last + 1 if last >= 0 else None)

    def log(step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    try:
        yield Sink(log, last)
    finally:
        writer.close()


@contextmanager
def mlflow(run: Tracked) -> Iterator[Sink]:
    """A run of the experiment `fedqueue` in `mlflow.db`, an SQLite file: MLflow's file store is not kept up any more."""
    for variable in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(variable, "true")
    with _needing("mlflow", "MLflow"):
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient
    run.out.mkdir(parents=True, exist_ok=True)
    client = MlflowClient(tracking_uri=f"sqlite:///{(run.out / 'mlflow.db').resolve()}")
    experiment = client.get_experiment_by_name("fedqueue")
    place = {"artifact_location": (run.out / "artifacts").resolve().as_uri()}
    number = experiment.experiment_id if experiment else client.create_experiment("fedqueue", **place)
    known = client.search_runs([number], f"tags.`fedqueue.run_id` = '{run.run_id}'")
    chosen = known[0] if known else client.create_run(number, run_name=run.title, tags={"fedqueue.run_id": run.run_id})
    written = chosen.info.run_id
    client.update_run(written, status="RUNNING")
    last = max((each.step for each in client.get_metric_history(written, LAST)), default=-1)

    def log(step: int, metrics: Metrics) -> None:
        at_ms = round(1000 * metrics.get("federation/seconds", 0))
        told = [Metric(name, value, at_ms, step) for name, value in metrics.items()]
        for begin in range(0, len(told), MLFLOW_BATCH):
            client.log_batch(written, metrics=told[begin : begin + MLFLOW_BATCH])

    yield Sink(log, last)
    client.set_terminated(written)


@contextmanager
def wandb(run: Tracked) -> Iterator[Sink]:
    """A run in offline mode: `wandb sync` sends it when its owner wants that, and nothing else does."""
    os.environ.update({"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true"})
    with _needing("wandb", "Weights & Biases"):
        import wandb as weights_and_biases
    kept = _Kept(run)
    kept.drop_unfinished()
    settings = weights_and_biases.Settings(
        mode="offline",
        console="off",
        disable_git=True,
        disable_code=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
    )
    names = {"project": "fedqueue", "name": run.title, "id": run.run_id}
    session = weights_and_biases.init(**names, dir=str(run.out), resume="allow", settings=settings)
    newest = kept.last_step

    def log(step: int, metrics: Metrics) -> None:
        nonlocal newest
        session.log(dict(metrics), step=step, commit=True)
        newest = step

    try:
        yield Sink(log, kept.last_step)
    finally:
        session.finish()
        kept.finish(newest)


class _Kept:
    """What earlier calls wrote for W&B. It writes to disk when it ends: what a killed call left is nothing to build on."""

    def __init__(self, run: Tracked) -> None:
        self._folders = run.out / "wandb"
        self._run_id = run.run_id
        self._file = run.out / f"wandb-{run.run_id}.json"
        run.out.mkdir(parents=True, exist_ok=True)
        found: dict[str, Any] = {"last_step": -1, "folders": []}
        if self._file.exists():
            found = json.loads(self._file.read_bytes())
        self.last_step = int(found["last_step"])
        self._finished = set(found["folders"])

    def drop_unfinished(self) -> None:
        """Deletes what a killed call left behind: its steps are written again."""
        for folder in self._present():
            if folder.name not in self._finished:
                shutil.rmtree(folder)

    def finish(self, last_step: int) -> None:
        """Notes that everything up to this step is on disk."""
        names = sorted(folder.name for folder in self._present())
        write_public(self._file, json.dumps({"last_step": last_step, "folders": names}).encode())

    def _present(self) -> list[Path]:
        return list(self._folders.glob(f"offline-run-*-{self._run_id}"))


@contextmanager
def _needing(extra: str, name: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise SettingsError(
            f"{name} is not installed ({error}): pip install 'fedqueue[{extra}]', or .venv/bin/pip install '.[{extra}]'"
        ) from error


SINKS: Mapping[Tool, Callable[[Tracked], AbstractContextManager[Sink]]] = {
    "tensorboard": tensorboard,
    "mlflow": mlflow,
    "wandb": wandb,
}
SHOWN_BY: Mapping[Tool, str] = {
    "tensorboard": "tensorboard --logdir {out}",
    "mlflow": "mlflow ui --backend-store-uri sqlite:///{out}/mlflow.db",
    "wandb": "wandb sync {out}/wandb/offline-run-* sends it, where you want that",
}
