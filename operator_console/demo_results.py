"""What the demonstration is measured against, and what it leaves in the run folder."""

import json
import sys
from types import TracebackType
from typing import Any, Self

from client_worker.data import load_dataset
from client_worker.files import read_task
from client_worker.own_model import personalised
from operator_console.card_facts import card_of
from operator_console.demo_run import DemoRun
from operator_console.federation_folder import FederationFolder
from operator_console.model_file import write_model
from operator_console.report import write_report
from operator_console.summary import Comparison, Summary, write_summary
from operator_console.worker_processes import WorkerProcess
from shared.errors import FederationError
from shared.parameters import Parameters
from shared.tasks.features import Dataset
from shared.tasks.metrics import Figures, evaluate
from shared.tasks.spec import TaskSpec

COMPARISON_SECONDS = 300.0


class ComparisonFailedError(FederationError):
    """The process that trains the models to compare with ended early; its log says why."""


class Comparing:
    """Trains each bank's own model, the pooled one, and the runs at other epsilons, in a process beside the federation.

    It runs at low priority: the federation is what the machine is for.
    """

    def __init__(self, folder: FederationFolder, *, seed: int, updates: int) -> None:
        self.folder = folder
        command = ["nice", "-n", "10", sys.executable, "-m", "simulator.comparison", "--folder", str(folder.path)]
        command += ["--seed", str(seed), "--updates", str(updates)]
        self._process = WorkerProcess("comparison", command, folder.log_file("comparison"), folder.path)

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()

    def outcome(self, spec: TaskSpec, model: Parameters) -> Comparison:
        """Lets each institution fine-tune the federation's last model, waits for the process, and measures all models."""
        personal = {each.id: self._personal(spec, model, each.id) for each in self.folder.facts().institutions}
        found = self._wait()
        own = {each: evaluate(spec, model, self._rows(spec, each)) for each in found["alone"]}
        return Comparison(
            federated=evaluate(
                spec, model, load_dataset(spec, self.folder.path / "held_out.csv", for_training=False, with_persons=False)
            ),
            pooled=found["pooled"],
            alone=found["alone"],
            own_alone=found["own_alone"],
            own_federated=own,
            own_personalised=personal,
        )

    def _personal(self, spec: TaskSpec, model: Parameters, institution: str) -> Figures:
        """What `fedqueue-client personalise` would find at the institution: its test rows have no part in the choice."""
        training = load_dataset(spec, self.folder.path / "data" / institution / "training.csv")
        return evaluate(spec, personalised(spec, training, model).parameters, self._rows(spec, institution))

    def _rows(self, spec: TaskSpec, institution: str) -> Dataset:
        return load_dataset(spec, self.folder.path / "data" / institution / "test.csv", for_training=False, with_persons=False)

    def _wait(self) -> dict[str, Any]:
        if self._process.wait(COMPARISON_SECONDS) != 0:
            raise ComparisonFailedError(f"the comparison models could not be trained; see {self._process.log_file}")
        content: dict[str, Any] = json.loads((self.folder.path / "comparison.json").read_text())
        return content


def write_results(
    folder: FederationFolder, run: DemoRun, model: Parameters, summary: Summary, *, best: tuple[int, Parameters] | None
) -> None:
    """`lineage.jsonl`, `model.safetensors` and `best.safetensors` with their cards, `summary.json` and `report.html`.

    `best` is the best version and its parameters, where one was measured.
    """
    run.history.write(folder.path / "lineage.jsonl")
    spec = read_task(folder.task_file)
    newest = card_of(run.history, spec, summary["versions"], "it is the newest", named=True)
    write_model(folder.path / "model.safetensors", "safetensors", newest, model)
    if best is not None:
        version, parameters = best
        card = card_of(run.history, spec, version, "it is the best on held-out rows", named=True)
        write_model(folder.path / "best.safetensors", "safetensors", card, parameters)
    write_summary(folder.path / "summary.json", summary)
    write_report(folder.path)
