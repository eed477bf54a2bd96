import subprocess
import sys
from pathlib import Path

from client_worker.ledger import Ledger
from tests.builders import RUN

TASK = """
name = "t"
kind = "binary"
[label]
column = "y"
positive = [1]
[[numeric]]
columns = "a"
minimum = 0
maximum = 10
[model]
type = "logistic"
"""
SETTINGS = f"""
institution = "bank-a"
incarnation = 1
pseudonym = "{"12" * 8}"
run_id = "{RUN}"
task_file = "task.toml"
training_file = "training.csv"
num_examples = 2
state_folder = "state"
[broker]
url = "amqp://127.0.0.1:1/nowhere"
user = "bank-a"
password = "unused"
[policy]
allow_no_privacy = "yes, updates may leave without noise"
"""
PROGRAM = """
import os, signal, sys

class AskedToStop:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGTERM)

sys.meta_path.insert(0, AskedToStop())
from client_worker.cli import main
main()
"""


def test_a_worker_does_not_start_on_other_rows_than_its_ledger_was_kept_for(tmp_path: Path) -> None:
    for name, text in {"task.toml": TASK, "training.csv": "a,y\n10,1\n0,0\n", "client.toml": SETTINGS}.items():
        (tmp_path / name).write_text(text)
    ledger = Ledger(tmp_path / "state/ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
    ledger.require_dataset({"fingerprint": "f" * 64, "unit": "record"})
    ledger.close()
    program = [sys.executable, "-c", "from client_worker.cli import main; main()", "--config", str(tmp_path / "client.toml")]
    ended = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "fedqueue privacy ledger accept-dataset --config FILE" in ended.stderr


def test_a_worker_that_is_asked_to_stop_while_torch_is_imported_ends_as_asked(tmp_path: Path) -> None:
    for name, text in {"task.toml": TASK, "training.csv": "a,y\n10,1\n0,0\n", "client.toml": SETTINGS}.items():
        (tmp_path / name).write_text(text)
    command = [sys.executable, "-c", PROGRAM, "--config", str(tmp_path / "client.toml")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert '"reason": "asked to"' in ended.stdout + ended.stderr
