"""`python -m campaigns.institution FACTS`: the real client worker, with a training that costs nothing and never comes out twice.

Half of the delta leads to the institution's target, the rest is drawn from the system's own randomness: a training that was done
again, or a retry that drew new noise, has other bytes.
"""

import json
import math
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from broker_config.connection import ConnectionSettings, connect
from broker_config.service import process_name, stop_on_signals
from client_worker.course import Course
from client_worker.ledger import Ledger
from client_worker.local_work import LocalData, LocalWork, Member
from client_worker.mechanism import LocalTraining
from client_worker.policy import Policy
from client_worker.worker import run
from shared.logs import configure
from shared.outermost import run_program
from shared.parameters import Parameters

UNSTATED_NOISE_STD = 0.01
"""Where the plan asks for none: no two trainings may come out alike."""
EPSILON_EACH = 0.001
NOISE_MULTIPLIER = 1.0


def noise_std(settings: LocalTraining) -> float:
    """Of one coordinate: what DP-SGD's steps add up to (Abadi et al. 2016, algorithm 1), so that the statement is true."""
    if settings.noise_multiplier is None:
        return UNSTATED_NOISE_STD
    each_step = settings.learning_rate * settings.noise_multiplier * settings.clipping_norm / settings.expected_rows
    return each_step * math.sqrt(settings.steps)


def local_data(facts: dict[str, Any]) -> LocalData:
    """The toy task's data and accountant."""
    target = np.float32(facts["target"])

    def train(model: Parameters, settings: LocalTraining, _course: Course) -> Parameters:
        random, std = np.random.default_rng(int.from_bytes(os.urandom(16))), noise_std(settings)
        drawn = {name: random.normal(0, std, array.shape).astype(np.float32) for name, array in model.items()}
        return {name: np.float32(0.5) * (target - array) + drawn[name] for name, array in model.items()}

    return LocalData(
        task_hash=facts["task_hash"],
        fingerprint="campaign",
        num_examples=facts["num_examples"],
        train=train,
        noise_multiplier=lambda plan: NOISE_MULTIPLIER,
        epsilon=lambda charges, target_delta: EPSILON_EACH * len(charges),
    )


def take_part(facts: dict[str, Any], stopping: threading.Event) -> None:
    """Sends updates until the run is finished or the process is asked to end."""
    institution = facts["institution"]
    policy = Policy(max_epsilon=1e9, max_steps=10**12, allow_no_privacy="yes, updates may leave without noise")
    member = Member(
        facts["run_id"],
        institution,
        1,
        facts["pseudonym"],
        policy,
        at_least_seconds=facts["training_seconds"],
        leave_when_finished=True,
    )
    ledger = Ledger(Path(facts["state_folder"]) / "ledger.sqlite", run_id=facts["run_id"], institution=institution, incarnation=1)
    settings = ConnectionSettings.model_validate(facts["broker"])
    work = LocalWork(member, local_data(facts), ledger, stopping)
    run(lambda: connect(settings, name=process_name("campaign", institution)), work, stopping)


def main() -> None:
    """`python -m campaigns.institution`."""
    configure()
    take_part(json.loads(Path(sys.argv[1]).read_text()), stop_on_signals())


if __name__ == "__main__":
    run_program(main)
