import io
import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from aggregator_worker.genesis import found
from broker_config.logins import Logins, create
from operator_console.federation_folder import Facts, FederationFolder, InstitutionFacts
from operator_console.history import History
from operator_console.status import best_text, screen, status_object, waiting_text
from operator_console.view_state import Shown, view_of
from shared.messages import Entry
from tests.conftest import RabbitmqServer
from tests.operator_console.conftest import PLAN, RUN, Finished
from tests.operator_console.test_summary import BINARY

DEPTHS = {"fl.upd.bank-a": 2, "fl.upd.bank-b": 0, "fl.upd.bank-c": 1, "fl.dlq": 4, "fl.lineage": 40}


def object_of(history: History, depths: dict[str, int] | None) -> dict[str, object]:
    view = view_of(history, Shown("Toy", "auc"), now_ms=history.links[-1].at_ms)
    return json.loads(json.dumps(status_object(history, view, depths), allow_nan=False))  # type: ignore[no-any-return]


def test_the_object_tells_where_the_run_stands(finished: Finished):
    found = object_of(finished.history, DEPTHS)
    assert (found["schema"], found["run_id"], found["task"], found["phase"]) == (2, RUN, "toy", "finished")
    assert found["version"] == finished.history.links[-1].manifest.version
    assert found["updates"]["aggregated"] >= 30  # type: ignore[index]
    assert found["target_updates"] == 30
    assert found["best"] is None
    rows = {row["id"]: row for row in found["institutions"]}  # type: ignore[attr-defined]
    assert rows["bank-a"]["waiting_messages"] == 2
    assert rows["bank-c"]["updates"] < rows["bank-a"]["updates"]
    assert {row["state"] for row in rows.values()} == {"finished"}


def test_the_best_version_is_one_line_of_the_screen():
    best = {"version": 25, "metric": "auc", "figure": 0.91557, "figure_of_last": 0.9}
    assert best_text(best) == "best so far: version 25, AUC 0.916 on held-out rows"


def test_the_object_tells_why_an_institution_gives_no_more(finished: Finished):
    view = view_of(finished.history, Shown("Toy", "auc"), now_ms=0)
    worst = replace(view.rows[0], standing="refuses the plan: max_epsilon", strikes=1.5)
    refusing = replace(view, rows=(worst, *view.rows[1:]))
    rows = status_object(finished.history, refusing, None)["institutions"]
    assert [row["standing"] for row in rows] == ["refuses the plan: max_epsilon", None, None]
    assert [row["strikes"] for row in rows] == [1.5, 0.0, 0.0]


def test_the_object_has_the_same_keys_without_the_management_api(finished: Finished):
    with_queues, without = object_of(finished.history, DEPTHS), object_of(finished.history, None)
    assert with_queues.keys() == without.keys()
    assert without["queues"] is None
    assert [row["waiting_messages"] for row in without["institutions"]] == [None, None, None]  # type: ignore[attr-defined]


def test_the_screen_begins_with_what_needs_attention(finished: Finished):
    view = view_of(finished.history, Shown("Toy", "auc"), now_ms=finished.history.links[-1].at_ms)
    console = Console(file=io.StringIO(), width=100)
    console.print(screen(view, DEPTHS))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "4 messages lie in fl.dlq" in lines[0]
    assert lines[-1].strip() == "messages waiting for the aggregator: 2 from bank-a, 1 from bank-c; dead letters: 4"


def test_silence_of_the_management_api_is_said():
    assert waiting_text(None) == "queues: the management API does not answer"


def a_folder(path: Path, logins: Logins) -> FederationFolder:
    """What `fedqueue init` would have written for two banks."""
    folder = FederationFolder(path / "federation")
    institutions = [InstitutionFacts(id=each, title=each.upper()) for each in ("bank-a", "bank-b")]
    folder.prepare(BINARY, logins)
    folder.keep(Facts(run_id=RUN, task="toy", title="Toy", institutions=institutions))
    return folder


def said_by(folder: FederationFolder, *options: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("fedqueue"), "status", "--dir", str(folder.path), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.rabbitmq
def test_the_command_answers_from_a_real_broker(rabbitmq_server: RabbitmqServer, tmp_path: Path):
    folder = a_folder(tmp_path, rabbitmq_server.logins)
    table = {alias: Entry(incarnation=1) for alias in folder.names()}
    found(rabbitmq_server.connect("operator"), run_id=RUN, plan=PLAN, parameters={"w": np.zeros(3, np.float32)}, table=table)
    answer = said_by(folder, "--json")
    assert answer.returncode == 0, answer.stderr
    status = json.loads(answer.stdout)
    assert (status["version"], status["run_id"]) == (0, RUN)
    assert [(row["id"], row["state"]) for row in status["institutions"]] == [("bank-a", "waiting"), ("bank-b", "waiting")]
    assert "fl.dlq" in status["queues"]
    shown = said_by(folder)
    assert not any(word in shown.stdout for word in rabbitmq_server.logins.users.values())
    assert shown.stdout.splitlines()[0].strip() == "! bank-a has not said hello yet; is its worker running? (1 more like it)."


def test_without_a_broker_the_command_says_so_in_one_line(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    closed = f"127.0.0.1:{port}"
    answer = said_by(a_folder(tmp_path, create(node=closed, management=f"http://{closed}", admin_password="x")))
    assert answer.returncode == 1
    assert closed in answer.stderr
    assert len(answer.stderr.strip().splitlines()) == 1


def test_a_folder_without_a_federation_is_named(tmp_path: Path):
    answer = said_by(FederationFolder(tmp_path))
    assert answer.returncode == 2
    assert "broker.json" in answer.stderr
