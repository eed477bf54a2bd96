from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client_worker.check import doubtful_count
from client_worker.dataset_entry import dataset_facts, noised_count, with_count
from client_worker.ledger import Ledger
from client_worker.local_data import open_data
from client_worker.settings import ClientSettings
from shared.errors import SettingsError
from shared.plan import LocalPlan, PrivacyPlan
from shared.settings import load
from tests.builders import RUN, a_plan
from tests.client_worker.test_cli import SETTINGS, TASK

ROWS = "a,y\n10,1\n0,0\n3,1\n"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "state" / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
    yield ledger
    ledger.close()


def settings(folder: Path, number: str = "num_examples = 2") -> ClientSettings:
    for name, text in {"task.toml": TASK, "training.csv": ROWS}.items():
        (folder / name).write_text(text)
    return load(ClientSettings, SETTINGS.replace("num_examples = 2", number), path=folder / "client.toml")


def test_a_public_number_is_what_updates_state_and_costs_nothing(tmp_path, ledger):
    chosen = settings(tmp_path)
    data = with_count(chosen, open_data(chosen), ledger)
    assert (data.num_examples, data.units, ledger.totals.counted, ledger.totals.set_aside) == (2, 3, None, 0.0)


def test_without_a_public_number_the_true_one_is_released_once_and_charged(tmp_path, ledger):
    chosen = settings(tmp_path, "count_epsilon = 0.25")
    first = with_count(chosen, open_data(chosen), ledger)
    assert first.num_examples >= 1
    assert ledger.totals.set_aside == 0.25
    for _ in range(20):  # each would be another number with a chance above one half
        assert with_count(chosen, open_data(chosen), ledger).num_examples == first.num_examples
    assert ledger.totals.set_aside == 0.25


def test_the_count_is_of_what_is_in_the_file(tmp_path, ledger):
    chosen = settings(tmp_path, "count_epsilon = 60")  # another number than 3 has a chance of 1e-26
    assert with_count(chosen, open_data(chosen), ledger).num_examples == 3


@pytest.mark.parametrize("number", ["", "num_examples = 2\ncount_epsilon = 0.1"], ids=["neither", "both"])
def test_the_number_has_one_source(tmp_path, number):
    with pytest.raises(SettingsError, match="either num_examples, a figure that is public, or count_epsilon"):
        settings(tmp_path, number)


def test_the_count_is_out_by_laplace_noise_of_its_epsilon_and_never_below_one():
    off = np.array([noised_count(10_000, 0.5) - 10_000 for _ in range(4000)])
    # the mean deviation of whole Laplace noise is 2 p / (1 - p^2) with p = exp(-epsilon) (Ghosh et al. 2012); 6 standard errors
    p = np.exp(-0.5)
    assert abs(np.abs(off).mean() - 2 * p / (1 - p**2)) < 6 * np.sqrt(2 * p / (1 - p) ** 2 / 4000)
    assert abs(off.mean()) < 6 * np.sqrt(2 * p / (1 - p) ** 2 / 4000)
    assert min(noised_count(1, 0.05) for _ in range(200)) == 1


def test_what_the_count_costs_is_taken_from_the_trainings_budget(tmp_path):
    plan = a_plan(privacy=PrivacyPlan(epsilon=3.0), local=LocalPlan(updates=5, steps=4, sample_rate=1.0))
    whole, rest = (open_data(settings(tmp_path, number)) for number in ("num_examples = 2", "count_epsilon = 1.0"))
    assert whole.epsilon([(whole.noise_multiplier(plan), 1.0, 20)], 1e-5) == pytest.approx(3.0, rel=0.01)
    assert rest.epsilon([(rest.noise_multiplier(plan), 1.0, 20)], 1e-5) == pytest.approx(2.0, rel=0.01)


def test_a_count_cannot_hide_what_a_plan_for_whole_institutions_protects(tmp_path):
    plan = a_plan(privacy=PrivacyPlan(mechanism="update-gaussian", epsilon=3.0))
    with pytest.raises(SettingsError, match="protects the institution as a whole"):
        open_data(settings(tmp_path, "count_epsilon = 1.0")).noise_multiplier(plan)


def facts(folder: Path, number: str = "num_examples = 2") -> Mapping[str, Any]:
    chosen = settings(folder, number)
    data = open_data(chosen)
    return dataset_facts(chosen, fingerprint=data.fingerprint, unit=data.unit)


def test_the_ledger_says_of_what_and_how_epsilon_is_counted(tmp_path):
    of_dataset = facts(tmp_path)
    assert {key: of_dataset[key] for key in ("unit", "neighbouring", "num_examples", "accountant")} == {
        "unit": "record",
        "neighbouring": "add-or-remove",
        "num_examples": 2,
        "accountant": "dp-accounting 0.6.0 PLD",
    }
    assert facts(tmp_path, "count_epsilon = 0.1")["num_examples"] is None


@pytest.mark.parametrize(
    ("stated", "units", "doubted"),
    [(500, 1000, False), (2000, 1000, False), (499, 1000, True), (2001, 1000, True), (None, 1000, False)],
)
def test_a_public_number_that_is_out_by_more_than_a_factor_of_two_is_doubted(stated, units, doubted):
    assert (doubtful_count(stated, units) is not None) == doubted
