from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from client_worker.data import load_dataset
from operator_console.demo_data import prepare
from shared.tasks.features import Dataset
from shared.tasks.metrics import evaluate
from shared.tasks.spec import TaskSpec, parse_task
from simulator.baselines import union
from simulator.federation import Member, Options, simulate

SEEDS = 20
NINE_COLUMNS = """
name = "heart-disease-nine-columns" # those that all four hospitals record; Zurich and Basel have no cholesterol
kind = "binary"
metric = "auc"
[label]
column = "num"
positive = [1, 2, 3, 4]
negative = [0]
[[numeric]]
columns = "age"
minimum = 28
maximum = 77
[[numeric]]
columns = "trestbps"
minimum = 0
maximum = 200
[[numeric]]
columns = "thalch"
minimum = 60
maximum = 202
[[numeric]]
columns = "oldpeak"
minimum = -2.6
maximum = 6.2
[[categorical]]
columns = "sex"
categories = ["Male"]
other = false
[[categorical]]
columns = ["fbs", "exang"]
categories = [true]
other = false
[[categorical]]
columns = "cp"
categories = ["asymptomatic", "non-anginal", "atypical angina", "typical angina"]
other = false
[[categorical]]
columns = "restecg"
categories = ["normal", "lv hypertrophy", "st-t abnormality"]
other = false
[model]
type = "logistic"
[training]
steps = 1
sample_rate = 1.0
learning_rate = 0.3
updates = 20
"""
SAID = {"pooled": 0.873, "federated": 0.875}
"""Mean AUC of twenty splits on the test rows of all four hospitals."""
HOSPITALS = ("cleveland-clinic", "budapest", "zurich-basel", "va-long-beach")
WORST_ALONE, BEST_ALONE = 0.807, 0.867


def auc(spec: TaskSpec, members: Sequence[Member], tests: Dataset, seed: int) -> float:
    run = simulate(spec, members, Options(epsilon=None, seed=seed))
    return evaluate(spec, run.parameters, tests)["auc"] or 0.0


def figures(folder: Path, seed: int) -> dict[str, float]:
    """All through the aggregator's core under the default rule; pooled and alone are federations of one."""
    folder.mkdir()
    prepare("heart-disease", institutions=None, seed=seed, folder=folder)
    spec = parse_task(NINE_COLUMNS, source="task.toml")
    trainings = {name: load_dataset(spec, folder / "data" / name / "training.csv") for name in HOSPITALS}
    tests = load_dataset(spec, folder / "held_out.csv", for_training=False)
    found = {name: auc(spec, [Member(name, rows)], tests, seed) for name, rows in trainings.items()}
    found["pooled"] = auc(spec, [Member("all", union(list(trainings.values())))], tests, seed)
    found["federated"] = auc(spec, [Member(name, rows) for name, rows in trainings.items()], tests, seed)
    return found


@pytest.mark.long
def test_four_hospitals_together_do_as_well_as_all_rows_in_one_place_and_better_than_each_alone(tmp_path: Path) -> None:
    found = [figures(tmp_path / f"{seed}", seed) for seed in range(SEEDS)]
    means = {name: fmean(each[name] for each in found) for name in found[0]}

    assert {name: means[name] for name in SAID} == pytest.approx(SAID, abs=0.01)
    alone = [means[name] for name in HOSPITALS]
    assert all(WORST_ALONE - 0.01 <= each <= BEST_ALONE + 0.01 for each in alone)
    assert max(alone) < means["federated"]
