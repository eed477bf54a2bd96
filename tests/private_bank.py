"""A small bank with rows of its own on disk, and the real training on them: DP-SGD, its accounting and its reports."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from broker_config.connection import ConnectionSettings
from broker_config.service import read_settings
from client_worker.settings import ClientSettings
from shared.parameters import Parameters
from shared.plan import LocalPlan, Plan, PrivacyPlan
from shared.tasks.models import initial_parameters
from shared.tasks.spec import parse_task
from tests.builders import RUN, name_of

INPUTS = 6
TRAINING_ROWS, VALIDATION_ROWS = 61, 37
TRAINING_FILE, VALIDATION_FILE = "training-of-branch-7.csv", "validation-of-branch-7.csv"
NUM_EXAMPLES = 100
"""The public figure; it is neither of the true ones."""
TASK = f"""
name = "overdue"
kind = "binary"
[label]
column = "overdue"
positive = [1]
negative = [0]
[[numeric]]
columns = "x1..x{INPUTS}"
minimum = -10
maximum = 10
[model]
type = "logistic"
"""
SPEC = parse_task(TASK, source="task.toml")
START: Parameters = initial_parameters(SPEC, 0)


def private_plan(privacy: Mapping[str, Any] | None = None, *, local: Mapping[str, Any] | None = None, **rest: Any) -> Plan:
    """A plan for the bank's task, with epsilon 2 at 1e-5 for a hundred updates of two steps on all rows."""
    return Plan(
        task=SPEC.name,
        task_hash=SPEC.hash,
        privacy=PrivacyPlan(**{"epsilon": 2.0, **(privacy or {})}),
        local=LocalPlan(**{"updates": 100, "steps": 2, "sample_rate": 1.0, **(local or {})}),
        **rest,
    )


def rows(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Features of five digits each, so that a row is easily told from any other number, and the label last."""
    random = np.random.default_rng(seed)
    features = random.uniform(-10, 10, (count, INPUTS)).round(5)
    return np.column_stack([features, (features[:, 0] + random.normal(0, 3, count) > 0)])


def config(folder: Path, broker: ConnectionSettings, policy: str = "") -> Path:
    """The bank's folder: its rows, the task, and the settings that `fedqueue-client` reads; `policy` is TOML."""
    folder.mkdir(parents=True, exist_ok=True)
    header = ",".join([*(f"x{number}" for number in range(1, INPUTS + 1)), "overdue"])
    for name, count, seed in ((TRAINING_FILE, TRAINING_ROWS, 1), (VALIDATION_FILE, VALIDATION_ROWS, 2)):
        np.savetxt(folder / name, rows(count, seed), delimiter=",", header=header, comments="", fmt="%.5f")
    (folder / "task.toml").write_text(TASK)
    (folder / "client.toml").write_text(f"""
institution = "bank-a"
incarnation = 1
pseudonym = "{name_of("bank-a")}"
run_id = "{RUN}"
task_file = "task.toml"
training_file = "{TRAINING_FILE}"
validation_file = "{VALIDATION_FILE}"
num_examples = {NUM_EXAMPLES}
state_folder = "state"
device = "cpu"
log_level = "error"
[broker]
url = "{broker.url}"
user = "{broker.user}"
password = "{broker.secret()}"
{policy}
""")
    return folder / "client.toml"


def settings(folder: Path, broker: ConnectionSettings, policy: str = "") -> ClientSettings:
    """What the program makes of that folder."""
    return read_settings(ClientSettings, config(folder, broker, policy))
