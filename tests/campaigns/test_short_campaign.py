"""Campaigns as `make faults` and `make soak` run them, only shorter."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from broker_config.node import SYSTEM, Installation

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def system_rabbitmq(installation: Installation) -> None:
    if installation != SYSTEM:
        pytest.skip("campaigns start the system's RabbitMQ, which is tried without this one too")


def run(*words: str, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
    """One of the programs, in a process of its own: it gives itself mounts of its own."""
    command = [sys.executable, "-m", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_seconds, check=False)


def require_clean(result: subprocess.CompletedProcess[str], faults: int, seed: int) -> None:
    last = result.stdout.strip().splitlines()[-1]
    assert last == f"{faults} faults, {faults} recoveries, 0 lost, 0 doubled, 0 forked, seed {seed}", (
        result.stdout + result.stderr
    )
    assert result.returncode == 0


@pytest.mark.long
@pytest.mark.both
@pytest.mark.rabbitmq
@pytest.mark.timeout(240)
def test_fifteen_faults_on_one_node_lose_double_and_fork_nothing(tmp_path):
    file = tmp_path / "result.json"
    words = ("campaigns.faults", "--seed", "7", "--faults", "15", "--nodes", "1", "--json", str(file))
    require_clean(run(*words, timeout_seconds=230), 15, 7)
    written = json.loads(file.read_text())
    assert written["figures"]["versions replayed to the bit"] > 10
    assert len({fault["kind"] for fault in written["faults"]}) >= 10


@pytest.mark.rabbitmq
def test_a_kind_of_fault_that_does_not_exist_is_said_to_be_none():
    result = run("campaigns.faults", "--only", "earthquake", timeout_seconds=60)
    assert result.returncode == 2
    assert "no fault is called 'earthquake'" in result.stderr


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.timeout(900)
def test_eighty_faults_on_three_nodes_lose_double_and_fork_nothing():
    require_clean(run("campaigns.faults", "--seed", "11", "--faults", "80", timeout_seconds=880), 80, 11)


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.timeout(240)
def test_nothing_grows_while_a_federation_runs():
    result = run("campaigns.soak", "--minutes", "1", timeout_seconds=220)
    last = result.stdout.strip().splitlines()[-1]
    assert re.fullmatch(r"soak: 1 minutes, \d+ updates, memory [+-]\d+\.\d MiB at most in the second half, ok", last), (
        result.stdout
    )
    assert result.returncode == 0
