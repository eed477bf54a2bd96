"""Every exit code that docs/services.md lists, from the real programs, and none that it does not list."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker_config.logins import load, save
from operator_console.init_command import init

PAGE = Path(__file__).parent.parent / "docs" / "services.md"
BIN = Path(sys.executable).parent


def ended(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(BIN / words[0]), *words[1:]], capture_output=True, text=True, cwd=folder, timeout=90, check=False)


def documented() -> set[int]:
    section = re.search(r"^## Exit codes\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert section is not None
    return {int(code) for code in re.findall(r"^\| (\d+) \|", section[1], re.MULTILINE)}


def test_the_page_lists_the_codes_that_are_tried_here() -> None:
    assert documented() == {0, 1, 2, 3, 4, 130}


def test_0_is_an_end_as_asked(tmp_path: Path) -> None:
    assert ended("fedqueue-client", "--version", folder=tmp_path).returncode == 0


@pytest.mark.long
@pytest.mark.rabbitmq
def test_1_is_a_finding_or_a_failure_2_a_setting_3_the_broker_and_4_the_checkpoint(broker_folder: Path) -> None:
    init(task="heart-disease", institution=["north"], folder=broker_folder)
    place, logins = broker_folder.parent, load(broker_folder)
    found = ended("fedqueue", "doctor", folder=place)
    assert (found.returncode, found.stderr) == (1, "")
    assert "no aggregator" in found.stdout

    checkpoint = broker_folder / "aggregator" / "checkpoint.safetensors"
    checkpoint.write_bytes(b"not a checkpoint")
    damaged = ended("fedqueue-aggregator", "--config", str(broker_folder / "aggregator.toml"), folder=place)
    assert damaged.returncode == 4, damaged.stderr
    checkpoint.unlink()

    save(logins.model_copy(update={"users": logins.users | {"operator": "another"}}), broker_folder)
    refused = ended("fedqueue", "lineage", "verify", folder=place)
    assert refused.returncode == 3, refused.stderr
    save(logins.model_copy(update={"amqp": "amqp://127.0.0.1:1/x"}), broker_folder)
    away = ended("fedqueue", "lineage", "verify", folder=place)
    assert away.returncode == 1, away.stderr
    save(logins, broker_folder)

    settings = broker_folder / "aggregator.toml"
    settings.write_text(settings.read_text() + "\nunknown_key = 1\n")
    wrong = ended("fedqueue-aggregator", "--config", str(settings), "--check", folder=place)
    assert wrong.returncode == 2, wrong.stderr
    assert ended("fedqueue", "status", "--wach", folder=place).returncode == 2


def test_130_is_a_command_that_was_interrupted(tmp_path: Path) -> None:
    pipe = tmp_path / "aggregator.log"
    os.mkfifo(pipe)
    reading = subprocess.Popen([str(BIN / "fedqueue"), "audit", "--log", str(pipe)], stdout=subprocess.DEVNULL)
    with pipe.open("wb"):  # returns once the command reads there
        reading.send_signal(signal.SIGINT)
        assert reading.wait(60) == 130
