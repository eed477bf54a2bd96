"""`fedqueue demo` as a stranger runs it: real processes, a real broker, real data."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.numpy import load_file

from broker_config.logins import load
from broker_config.node import SYSTEM, Installation, start_node
from broker_config.processes import processes_of
from client_worker.data import load_dataset
from operator_console.model_file import card_in
from shared.tasks.metrics import evaluate
from shared.tasks.spec import parse_task
from tests.conftest import eventually

pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(240)]

DEMO_SECONDS = 200
UPDATES_EACH = 4
SMALL = ["--task", "heart-disease", "--institutions", "3", "--updates", str(UPDATES_EACH)]
ENDLESS = [*SMALL[:-1], "100000", "--epsilon", "none"]  # it does not end before it is ended


def command(folder: Path, *options: str) -> list[str]:
    return [str(Path(sys.executable).with_name("fedqueue")), "demo", "--out", str(folder), *options]


@contextmanager
def running(folder: Path, *options: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command(folder, *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def has_committed(folder: Path) -> bool:
    log = folder / "logs" / "aggregator.log"
    return log.exists() and '"settled": 1' in log.read_text()


def settled(lines: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(update["institution"], update["sequence"]) for line in lines for update in line["updates"]]


@pytest.fixture(scope="module")
def system_rabbitmq(installation: Installation) -> None:
    """The demonstration starts the system's RabbitMQ, whichever one is under test."""
    if installation != SYSTEM:
        pytest.skip("these demonstrations start the system's RabbitMQ, not the unpacked one under test")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, system_rabbitmq: None) -> Path:
    """The folder of a small demonstration that ran to its end, every message sealed."""
    folder = tmp_path_factory.mktemp("demo") / "run"
    done = subprocess.run(
        command(folder, *SMALL, "--sealed", "--quiet"), capture_output=True, text=True, timeout=DEMO_SECONDS, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_a_demo_leaves_the_promised_files_and_no_process(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}

    assert {"broker.json", "summary.json", "report.html", "model.safetensors", "best.safetensors", "lineage.jsonl"} <= names
    assert stat.S_IMODE((finished / "broker.json").stat().st_mode) == 0o600
    assert (finished / "institutions" / "budapest" / "ledger.sqlite").exists()
    assert (finished / "logs" / "budapest.log").exists()
    assert processes_of(finished) == []
    assert not (finished / "broker").exists()


def test_the_summary_has_every_figure_of_the_contract(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())

    assert (summary["task"], summary["seed"]) == ("heart-disease", 0)
    assert [each["id"] for each in summary["institutions"]] == ["cleveland-clinic", "budapest", "zurich-basel"]
    assert summary["updates"]["aggregated"] == sum(each["updates"] for each in summary["institutions"])
    for each in summary["institutions"]:
        assert 1 <= each["updates"] <= UPDATES_EACH
        assert 0 < each["epsilon_spent"] <= 3.0
        assert each["target_delta"] == 1e-5
        assert {"auc", "log_loss", "accuracy", "recall", "f1"} <= each["alone"].keys() & each["federated"].keys()
        assert all(each["own"][model]["auc"] is not None for model in ("federated", "personalised", "alone"))
    assert 0.5 < summary["federated"]["auc"] < summary["pooled"]["auc"] + 0.1


def test_the_best_version_that_the_summary_names_is_in_its_file(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    lines = [json.loads(line) for line in (finished / "lineage.jsonl").read_text().splitlines()]
    measured = {line["version"]: line["metrics"]["auc"] for line in lines if "auc" in line["metrics"]}
    task = parse_task((finished / "task.toml").read_text(), source="task.toml")
    held_out = load_dataset(task, finished / "held_out.csv", for_training=False, with_persons=False)

    best = summary["best"]
    assert (best["metric"], best["figure"]) == ("auc", max(measured.values()))
    assert best["version"] == min(version for version, auc in measured.items() if auc == best["figure"])
    assert evaluate(task, load_file(finished / "best.safetensors"), held_out)["auc"] == best["figure"]
    card = card_in(finished / "best.safetensors")
    assert (card.version, card.metrics["auc"], card.task.hash) == (best["version"], best["figure"], task.hash)
    assert "| budapest |" in (finished / "model.md").read_text()
    assert re.fullmatch(r"(9|1\d) updates are aggregated|[23] institutions have given all they could", summary["phase_reason"])


def test_every_update_is_in_the_lineage_once_also_of_the_killed_hospital(finished: Path) -> None:
    lines = [json.loads(line) for line in (finished / "lineage.jsonl").read_text().splitlines()]
    killed = [event["institution"] for event in json.loads((finished / "events.json").read_text()) if event["kind"] == "killed"]

    summary = json.loads((finished / "summary.json").read_text())

    updates = settled(lines)
    assert len(killed) == 1
    assert len(updates) == len(set(updates))
    assert [line["version"] for line in lines] == list(range(len(lines)))
    assert Counter(name for name, _ in updates) == {each["id"]: each["updates"] for each in summary["institutions"]}
    assert {sequence for _, sequence in updates} <= set(range(1, UPDATES_EACH + 1))


def test_a_folder_that_is_not_empty_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("do not touch")

    done = subprocess.run(command(tmp_path, *SMALL), capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 2
    assert "is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.long
def test_ctrl_c_ends_everything_in_order(tmp_path: Path, system_rabbitmq: None) -> None:
    folder = tmp_path / "run"
    with running(folder, *ENDLESS) as demo:
        assert eventually(lambda: has_committed(folder), DEMO_SECONDS)
        demo.send_signal(signal.SIGINT)
        _, errors = demo.communicate(timeout=60)

    assert demo.returncode == 130
    assert "Traceback" not in errors
    assert processes_of(folder) == []
    assert not (folder / "broker").exists()


@pytest.mark.long
def test_a_demo_killed_with_9_takes_its_workers_and_its_broker_with_it(tmp_path: Path, system_rabbitmq: None) -> None:
    folder = tmp_path / "run"
    with running(folder, *ENDLESS) as demo:
        assert eventually(lambda: has_committed(folder), DEMO_SECONDS)
        assert processes_of(folder)
        demo.kill()
        demo.wait()

        assert eventually(lambda: not processes_of(folder), 60)


@pytest.mark.long
def test_two_demos_at_once_do_not_meet(tmp_path: Path, system_rabbitmq: None) -> None:
    with running(tmp_path / "one", *SMALL, "--seed", "1") as one, running(tmp_path / "two", *SMALL, "--seed", "2") as two:
        assert one.wait(DEMO_SECONDS) == 0
        assert two.wait(DEMO_SECONDS) == 0

    for name, seed in (("one", 1), ("two", 2)):
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["seed"] == seed
        assert summary["updates"]["aggregated"] == sum(each["updates"] for each in summary["institutions"])


@pytest.mark.long
def test_chaos_strikes_everything_that_takes_part_and_loses_nothing(tmp_path: Path, system_rabbitmq: None) -> None:
    folder = tmp_path / "run"
    options = [*SMALL[:-1], "12", "--epsilon", "none", "--chaos"]
    done = subprocess.run(command(folder, *options), capture_output=True, text=True, timeout=DEMO_SECONDS, check=False)

    assert (done.returncode, "5 blows, nothing lost" in done.stdout) == (0, True), done.stdout + done.stderr
    told = " ".join(event["text"] for event in json.loads((folder / "events.json").read_text()))
    assert re.search("aggregator was killed.*aggregator was started", told)
    assert re.search("RabbitMQ was stopped.*RabbitMQ was started", told)
    assert re.search("sent 900 bytes that are no update", told)
    assert re.search("stands still.*goes on where it stood", told)
    lines = [json.loads(line) for line in (folder / "lineage.jsonl").read_text().splitlines()]
    assert len(settled(lines)) == len(set(settled(lines)))
    assert {line["epoch"] for line in lines} >= {2, 3}


@pytest.mark.long
def test_a_demo_on_an_existing_broker_leaves_nothing_on_it(
    tmp_path: Path, installation: Installation, node_folder: Callable[[], Path]
) -> None:
    cluster = start_node(node_folder(), installation=installation)
    try:
        node = cluster.nodes[0]
        address = {
            "AMQP_URL": f"amqp://admin:{node.admin_password}@{node.amqp}/",
            "MANAGEMENT_URL": node.management_url,
        }
        folder = tmp_path / "run"
        with running(folder, *SMALL, **address) as demo:
            assert demo.wait(DEMO_SECONDS) == 0
        assert load(folder).amqp.startswith(f"amqp://{node.amqp}/fedqueue-")
        answer = httpx.get(f"{node.management_url}/api/vhosts", auth=("admin", node.admin_password))
        assert [vhost["name"] for vhost in answer.json()] == ["/"]
    finally:
        cluster.stop(remove=True)


@pytest.mark.long
def test_six_banks_at_epsilon_3_beat_every_bank_alone(tmp_path: Path, system_rabbitmq: None) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(command(folder, "--quiet"), capture_output=True, text=True, timeout=DEMO_SECONDS, check=False)

    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "summary.json").read_text())
    alone = {each["id"]: each["alone"]["auc"] for each in summary["institutions"]}
    assert len(alone) == 6
    assert max(alone.values()) < summary["federated"]["auc"]
    assert max(each["epsilon_spent"] for each in summary["institutions"]) <= 3.0
