"""Everything a demonstration is compared with, trained beside it in a process of its own.

python -m simulator.comparison --folder DIR --seed 0 --updates 20: DIR as written by `operator_console.demo_data.prepare`;
leaves `comparison.json` (each institution alone, and pooled) and `epsilon.json` (what privacy costs) there.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from client_worker.data import load_dataset
from shared.outermost import run_program
from shared.tasks.features import Dataset
from shared.tasks.spec import TaskSpec
from simulator.baselines import alone, pooled
from simulator.epsilon_sweep import members_with_one_slow, read_folder, sweep
from simulator.federation import Options
from simulator.schedule import updates_in_all

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare(
    folder: Annotated[Path, typer.Option(help="Folder with task.toml, data/ and held_out.csv.")],
    seed: Annotated[int, typer.Option(help="Initialisation and schedule.")] = 0,
    updates: Annotated[int | None, typer.Option(help="Updates of each institution; the task's unless given.")] = None,
) -> None:
    """Trains what the federation is compared with."""
    spec, trainings, held_out = read_folder(folder)
    figures = baselines(spec, trainings, folder, held_out=held_out, seed=seed)
    (folder / "comparison.json").write_text(json.dumps(figures, indent=1) + "\n")
    each = updates or spec.training.updates
    options = Options(seed=seed, updates=each, total=updates_in_all(len(trainings), each))
    rows = sweep(spec, members_with_one_slow(trainings, updates=each, seed=seed), held_out, options)
    (folder / "epsilon.json").write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


def baselines(spec: TaskSpec, trainings: dict[str, Dataset], folder: Path, *, held_out: Dataset, seed: int) -> dict[str, Any]:
    """Figures of each institution's own model, on all test rows and on its own, and of the pooled one."""
    own_tests = {
        name: load_dataset(spec, folder / "data" / name / "test.csv", for_training=False, with_persons=False)
        for name in trainings
    }
    models = {name: alone(spec, rows, own_tests[name], held_out, seed=seed) for name, rows in trainings.items()}
    return {
        "alone": {name: model.union for name, model in models.items()},
        "own_alone": {name: model.own for name, model in models.items()},
        "pooled": pooled(spec, list(trainings.values()), held_out, seed=seed).union,
    }


if __name__ == "__main__":
    run_program(app)
