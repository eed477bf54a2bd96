"""`python -m benchmarks.personalisation`: what fine-tuning at home brings on each institution's own test rows, over seeds.

Data and schedule as the demonstration draws them, federations of one process under virtual time, one institution ten times
slower. docs/report.md has the figures.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from client_worker.data import load_dataset
from client_worker.own_model import of_own_rows, personalised
from client_worker.randomness import SecureRandom
from operator_console.demo_data import prepare
from shared.tasks.metrics import evaluate
from shared.tasks.spec import better
from simulator.epsilon_sweep import members_with_one_slow, read_folder
from simulator.federation import Options, simulate
from simulator.schedule import updates_in_all

TASKS = ("sba-loans", "credit-default", "heart-disease", "digits")
SEEDS = 10
MODELS = ("federated", "personalised", "alone")


@dataclass(frozen=True, slots=True)
class Case:
    """One institution of one seed: the task's first figure of three models on its own test rows. None of them saw these rows."""

    task: str
    metric: str
    seed: int
    institution: str
    penalty: float | None
    figures: dict[str, float]

    @property
    def best(self) -> str:
        """The model with the best figure, of equals the first."""
        found = "federated"
        for name in MODELS:
            if better(self.metric, self.figures[name], self.figures[found]):
                found = name
        return found


def cases(task: str, *, epsilon: float | None, seed: int) -> Iterator[Case]:
    """Every institution whose test rows have the figure. The seed decides the noise too, so that they can be repeated."""
    with tempfile.TemporaryDirectory(prefix="fedqueue-personalisation-") as temporary:
        folder = Path(temporary)
        prepare(task, institutions=None, seed=seed, folder=folder)
        spec, trainings, _ = read_folder(folder)
        updates = spec.training.updates
        options = Options(epsilon=epsilon, seed=seed, updates=updates, total=updates_in_all(len(trainings), updates))
        random = SecureRandom(hashlib.sha256(f"{task} {epsilon} {seed}".encode()).digest())
        model = simulate(spec, members_with_one_slow(trainings, updates=updates, seed=seed), options, random=random).parameters
        for institution, rows in trainings.items():
            test = load_dataset(spec, folder / "data" / institution / "test.csv", for_training=False, with_persons=False)
            mine = personalised(spec, rows, model)
            models = {"federated": model, "personalised": mine.parameters, "alone": of_own_rows(spec, rows).parameters}
            figures = {name: evaluate(spec, each, test)[spec.first_metric] for name, each in models.items()}
            known = {name: figure for name, figure in figures.items() if figure is not None}
            if len(known) == len(MODELS):
                yield Case(task, spec.first_metric, seed, institution, mine.penalty, known)


def row(found: Sequence[Case]) -> list[str]:
    """One task's cells: figure, cases, the mean of each model, how often personalised beats federated, and which is best."""
    metric = found[0].metric
    means = [f"{fmean(each.figures[name] for each in found):.3f}" for name in MODELS]
    ahead = sum(better(metric, each.figures["personalised"], each.figures["federated"]) for each in found)
    bests = [str(sum(each.best == name for each in found)) for name in MODELS]
    return [found[0].task, metric, str(len(found)), *means, str(ahead), *bests]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.personalisation", description=__doc__)
    parser.add_argument("--task", choices=TASKS, help="all unless given")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many, from 0")
    parser.add_argument("--epsilon", type=float, default=3.0, help="of each institution")
    parser.add_argument("--json", action="store_true", help="one line of JSON per institution and seed instead of a table")
    asked = parser.parse_args()
    head = ["task", "figure", "cases", *MODELS, "ahead", *(f"{name} best" for name in MODELS)]
    if not asked.json:
        print("".join(f"{cell:>19}" for cell in head))
    for task in [asked.task] if asked.task else TASKS:
        found: list[Case] = []
        for seed in range(asked.seeds):
            for case in cases(task, epsilon=asked.epsilon, seed=seed):
                found.append(case)
                if asked.json:
                    print(json.dumps(asdict(case) | {"best": case.best}), flush=True)
        if not asked.json:
            print("".join(f"{cell:>19}" for cell in row(found)), flush=True)


if __name__ == "__main__":
    main()
