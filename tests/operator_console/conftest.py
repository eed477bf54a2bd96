"""A whole federation of three banks on the in-memory broker, run once: real records for everything the console shows."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from aggregator_worker import worker as aggregator
from aggregator_worker.genesis import found
from aggregator_worker.term import TermSettings
from broker_config.memory import MemoryRabbit
from broker_config.topology import topology
from client_worker import worker as client
from client_worker.ledger import Ledger
from client_worker.local_work import LocalData, LocalWork, Member
from client_worker.mechanism import LocalTraining
from client_worker.policy import Policy
from operator_console.history import History, follow
from shared.messages import Entry, Metrics, pseudonym
from shared.parameters import Parameters
from shared.plan import AggregationPlan, Ending, LocalPlan, Plan, PrivacyPlan

RUN = "ab" * 8
SECRET = b"a run secret"
EXAMPLES = {"bank-a": 1000, "bank-b": 1000, "bank-c": 2000}
EPSILON_EACH = 0.15
PLAN = Plan(
    task="toy",
    task_hash="0" * 64,
    aggregation=AggregationPlan(max_wait_seconds=0.3),
    privacy=PrivacyPlan(epsilon=3.0),
    ending=Ending(updates=30, updates_each=1),
    local=LocalPlan(updates=20),
)
NAMES = {pseudonym(SECRET, institution): institution for institution in EXAMPLES}


def accuracy(model: Parameters) -> Metrics:
    """Grows with the one parameter."""
    return {"auc": 0.5 + 0.3 * float(np.tanh(abs(model["w"]).sum())), "log_loss": None}


def data_of(institution: str) -> LocalData:
    """Every bank pulls the model its own way; bank-c is slow."""
    pull = {"bank-a": 0.2, "bank-b": 0.4, "bank-c": 0.9}[institution]
    pause = threading.Event()

    def train(model: Parameters, _settings: LocalTraining, _stop: object) -> Parameters:
        pause.wait(0.2 if institution == "bank-c" else 0.01)
        return {"w": np.full(3, pull, np.float32) - model["w"]}

    return LocalData(
        task_hash=PLAN.task_hash,
        fingerprint=f"rows of {institution}",
        num_examples=EXAMPLES[institution],
        train=train,
        noise_multiplier=lambda plan: 1.1,
        epsilon=lambda charges, target_delta: EPSILON_EACH * len(charges),
    )


@dataclass(frozen=True)
class Finished:
    """A run that reached its end; its broker still answers."""

    rabbit: MemoryRabbit
    history: History


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """Thirty updates of three banks."""
    folder: Path = tmp_path_factory.mktemp("federation")
    rabbit, stopping = MemoryRabbit(topology(EXAMPLES)), threading.Event()
    operator = rabbit.connect("operator")
    table = {alias: Entry(incarnation=1) for alias in NAMES}
    found(operator, run_id=RUN, plan=PLAN, parameters={"w": np.zeros(3, np.float32)}, table=table)
    settings = TermSettings(
        claimant="one",
        state_folder=folder / "aggregator",
        run_secret=SECRET,
        members=lambda: list(EXAMPLES),
        stopping=stopping.is_set,
        evaluate=accuracy,
    )
    leader = threading.Thread(target=aggregator.run, args=(lambda: rabbit.connect("aggregator"), settings, stopping))
    banks = [threading.Thread(target=_take_part, args=(rabbit, folder, institution)) for institution in EXAMPLES]
    for thread in (leader, *banks):
        thread.start()
    for thread in banks:
        thread.join(60)
    stopping.set()
    leader.join(30)
    assert not any(thread.is_alive() for thread in (leader, *banks))
    history = History(NAMES)
    follow(operator, history)
    yield Finished(rabbit, history)
    operator.close()


def _take_part(rabbit: MemoryRabbit, folder: Path, institution: str) -> None:
    ending = threading.Event()
    alias = pseudonym(SECRET, institution)
    ledger = Ledger(folder / institution / "ledger.sqlite", run_id=RUN, institution=institution, incarnation=1)
    member = Member(RUN, institution, 1, alias, Policy(max_epsilon=3.0), leave_when_finished=True)
    client.run(lambda: rabbit.connect(institution), LocalWork(member, data_of(institution), ledger, ending), ending)
