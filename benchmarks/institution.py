"""`python -m benchmarks.institution FACTS`: the real client worker, with a training that costs nothing."""

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.federation import EXAMPLES, TASK_HASH, vector
from broker_config import logins as login_file
from broker_config.connection import connect
from broker_config.service import process_name, stop_on_signals
from client_worker.course import Course
from client_worker.ledger import Ledger
from client_worker.local_work import LocalData, LocalWork, Member
from client_worker.mechanism import LocalTraining
from client_worker.policy import Policy
from client_worker.worker import run
from shared.logs import configure
from shared.messages import pseudonym
from shared.parameters import Parameters

STEP = 0.001


def take_part(facts: Mapping[str, Any], stopping: threading.Event) -> None:
    """Sends updates of STEP in every parameter until asked to end."""
    folder, institution, run_id = Path(facts["folder"]), facts["institution"], facts["run_id"]
    delta = vector(int(facts["parameters"]), STEP)

    def train(_model: Parameters, _settings: LocalTraining, _course: Course) -> Parameters:
        stopping.wait(float(facts["training"]))
        return delta

    data = LocalData(
        task_hash=TASK_HASH,
        fingerprint="benchmark",
        num_examples=EXAMPLES,
        train=train,
        noise_multiplier=lambda plan: 0.0,
        epsilon=lambda charges, target_delta: 0.0,
    )
    policy = Policy(allow_no_privacy="yes, updates may leave without noise")
    member = Member(run_id, institution, 1, pseudonym(facts["run_secret"].encode(), institution), policy)
    ledger = Ledger(folder / institution / "ledger.sqlite", run_id=run_id, institution=institution, incarnation=1)
    settings = login_file.load(folder).settings(institution)
    work = LocalWork(member, data, ledger, stopping)
    run(lambda: connect(settings, name=process_name("benchmark", institution)), work, stopping)


def main() -> None:
    """`python -m benchmarks.institution`."""
    configure()
    take_part(json.loads(Path(sys.argv[1]).read_text()), stop_on_signals())


if __name__ == "__main__":
    main()
