"""The import contracts of pyproject.toml hold, and can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
WORKERS = ["shared", "broker_config", "monitoring", "aggregator_worker", "client_worker"]
ROOMS = [*WORKERS, "simulator", "operator_console", "builtin_tasks", "benchmarks", "campaigns"]


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_every_room_keeps_the_import_contracts() -> None:
    result = contracts(PROJECT)

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("client_worker/session.py", "import aggregator_worker.intake", "the two workers never from each other"),
        ("shared/plan.py", "import operator_console", "A room imports only from the rooms below it"),
        ("aggregator_worker/worker.py", "import pika", "Only broker_config imports pika"),
        ("shared/codec.py", "import socket", "shared touches no network"),
        ("monitoring/vitals.py", "import numpy", "Asking a worker how it is"),
        ("aggregator_worker/aggregation.py", "import torch", "The aggregator's core"),
        ("campaigns/checker.py", "import shared.lineage", "What judges a campaign shares no code"),
    ],
)
def test_an_import_against_the_order_of_the_rooms_is_found(tmp_path: Path, module: str, line: str, broken: str) -> None:
    for room in ROOMS:
        shutil.copytree(PROJECT / room, tmp_path / room, ignore=shutil.ignore_patterns("*.csv*", "__pycache__"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as source:
        source.write(f"\n{line}\n")

    result = contracts(tmp_path)

    kept_or_broken = " ".join(result.stdout.split())
    assert result.returncode == 1
    assert f"{broken}" in kept_or_broken.partition("Broken contracts")[2]
