"""`python -m benchmarks.stragglers_institution FACTS`: the real client worker, training on digits and sleeping in every round."""

import json
import sys
import threading
from pathlib import Path
from typing import Any

from benchmarks import stragglers_work as work_of
from benchmarks.federation import TASK_HASH
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


def local_data(facts: dict[str, Any], stopping: threading.Event) -> LocalData:
    """The institution's rows, from the file beside its facts, and SGD without noise on them."""
    rows = work_of.Rows.load(Path(facts["rows"]))
    trained = work_of.trainer(rows, seed=facts["seed"])

    def train(model: Parameters, _settings: LocalTraining, _course: Course) -> Parameters:
        stopping.wait(facts["sleep_seconds"])
        return trained(model)

    def warm_up() -> None:
        work_of.trainer(work_of.zeros(1), seed=0)(work_of.model_of_zeros())

    return LocalData(
        task_hash=TASK_HASH,
        fingerprint="benchmark",
        num_examples=len(rows),
        train=train,
        noise_multiplier=lambda plan: 0.0,
        epsilon=lambda charges, target_delta: 0.0,
        warm_up=warm_up,
    )


def take_part(facts: dict[str, Any], stopping: threading.Event) -> None:
    """Sends updates until asked to end."""
    folder, institution, run_id = Path(facts["folder"]), facts["institution"], facts["run_id"]
    policy = Policy(allow_no_privacy="yes, updates may leave without noise")
    member = Member(run_id, institution, 1, pseudonym(facts["run_secret"].encode(), institution), policy)
    ledger = Ledger(folder / institution / "ledger.sqlite", run_id=run_id, institution=institution, incarnation=1)
    settings = login_file.load(folder).settings(institution)
    work = LocalWork(member, local_data(facts, stopping), ledger, stopping)
    run(lambda: connect(settings, name=process_name("benchmark", institution)), work, stopping)


def main() -> None:
    """`python -m benchmarks.stragglers_institution`."""
    configure()
    take_part(json.loads(Path(sys.argv[1]).read_text()), stop_on_signals())


if __name__ == "__main__":
    main()
