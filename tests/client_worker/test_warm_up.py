"""The first training of a process makes torch load much; a client worker has that done before it says hello."""

import subprocess
import sys
import threading

import numpy as np
import pytest

from client_worker.ledger import Ledger
from client_worker.local_work import LocalWork
from client_worker.training import LocalTrainer, no_data
from client_worker.worker import run
from shared.broker import Broker
from shared.errors import BrokerUnavailableError
from shared.tasks.spec import parse_task
from tests.builders import RUN
from tests.client_worker.test_cli import SETTINGS, TASK
from tests.client_worker.trainings import PERCEPTRON, local, rows, task, zeros
from tests.running import local_data, member

OTHER_KINDS = {
    "multiclass": 'classes = ["a", "b", "c"]',
    "regression": "minimum = 0\nmaximum = 9",
}
FIRST_TRAINING = """
import sys
from pathlib import Path
import numpy as np
from client_worker.course import Course
from client_worker.local_data import open_data
from client_worker.mechanism import LocalTraining
from client_worker.settings import ClientSettings
from shared.settings import load

folder, noise = Path(sys.argv[1]), float(sys.argv[2]) or None
data = open_data(load(ClientSettings, (folder / "client.toml").read_text(), path=folder / "client.toml"))
data.warm_up()
before = set(sys.modules)
settings = LocalTraining(
    mechanism="dp-sgd" if noise else "none", steps=1, sample_rate=1.0, expected_rows=2.0, learning_rate=1.0, clipping_norm=1.0,
    noise_multiplier=noise,
)
data.train({"weight": np.zeros((1, 1), np.float32), "bias": np.zeros(1, np.float32)}, settings, Course())
print(sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("noise", [0.0, 1.0], ids=["without noise", "with noise"])
def test_after_the_warm_up_of_fedqueue_client_a_first_training_loads_nothing_more(tmp_path, noise):
    settings = SETTINGS.partition("[policy]")[0] if noise else SETTINGS
    for name, text in {"task.toml": TASK, "training.csv": "a,y\n10,1\n0,0\n", "client.toml": settings}.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", FIRST_TRAINING, str(tmp_path), str(noise)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert ended.stdout == "[]\n", ended.stderr


@pytest.mark.parametrize("private", [False, True], ids=["without noise", "with noise"])
def test_a_warm_up_leaves_the_next_update_as_it_would_have_been(private):
    spec, settings = task(3, PERCEPTRON), local(20.0)
    cold, warm = (LocalTrainer(spec, device="cpu", private=private) for _ in range(2))
    warm.warm_up()
    base = {name: array + np.float32(0.1) for name, array in zeros(spec).items()}
    for name, array in cold.local_update(base, rows(20, 3), settings).items():
        np.testing.assert_array_equal(warm.local_update(base, rows(20, 3), settings)[name], array)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_every_kind_of_task_can_warm_up(kind):
    label = f'[label]\ncolumn = "y"\n{OTHER_KINDS[kind]}\n'
    model = "linear" if kind == "regression" else "logistic"
    text = f'name = "t"\nkind = "{kind}"\n{label}[[numeric]]\ncolumns = "x1..x2"\nminimum = 0\nmaximum = 1\n'
    LocalTrainer(parse_task(f'{text}[model]\ntype = "{model}"\n', source="task.toml"), device="cpu").warm_up()


def test_a_task_of_persons_warms_up_on_two_persons_of_no_data():
    spec = task(2, person="patient")
    persons = no_data(spec).persons
    assert persons is not None
    assert persons.tolist() == [0, 1]
    LocalTrainer(spec, device="cpu").warm_up()


def test_a_worker_warms_up_before_it_connects_and_nothing_is_charged_for_it(tmp_path):
    done: list[str] = []
    ledger = Ledger(tmp_path / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
    stopping = threading.Event()
    work = LocalWork(member("bank-a"), local_data("bank-a", warm_up=lambda: done.append("warm")), ledger, stopping)

    def connect() -> Broker:
        done.append(f"connect after {ledger.totals.reservations} charges, {ledger.head[0]} updates")
        stopping.set()
        raise BrokerUnavailableError("not today")

    run(connect, work, stopping)
    assert done == ["warm", "connect after 0 charges, 0 updates"]


def test_a_worker_that_is_asked_to_end_does_not_warm_up_first(tmp_path):
    done: list[str] = []
    ledger = Ledger(tmp_path / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
    stopping = threading.Event()
    stopping.set()

    def connect() -> Broker:
        raise BrokerUnavailableError("not today")

    run(
        connect,
        LocalWork(member("bank-a"), local_data("bank-a", warm_up=lambda: done.append("warm")), ledger, stopping),
        stopping,
    )
    assert done == []
