"""`--ready` and the address, through the programs that a service calls."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from operator_console.worker_processes import entry_point
from tests.ports import free_address

NOWHERE = "amqp://127.0.0.1:1/nowhere"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An aggregator whose broker is not there."""
    (tmp_path / "run.secret").write_text("secret")
    (tmp_path / "run.secret").chmod(0o600)
    (tmp_path / "members.txt").write_text("north\n")
    files = 'state_folder = "state"\nrun_secret_file = "run.secret"\nmembers_file = "members.txt"\n'
    file = tmp_path / "aggregator.toml"
    file.write_text(f'{files}[broker]\nurl = "{NOWHERE}"\nuser = "aggregator"\npassword = "word"\n')
    return file


def listening_on(config: Path, address: str) -> Path:
    config.write_text(f'{config.read_text()}[monitoring]\nlisten = "{address}"\n')
    return config


def said(*words: str | Path) -> tuple[int, str]:
    """The exit code of a program and what it said."""
    command = [entry_point("fedqueue-aggregator"), *words]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return result.returncode, (result.stdout + result.stderr).strip()


def test_a_port_that_is_taken_ends_a_worker_at_its_start_with_code_2_and_a_sentence(config: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, text = said("--config", listening_on(config, address))

    assert code == 2
    assert f"nothing can listen on {address} (Address already in use)" in text
    assert "Traceback" not in text


def test_a_wrong_address_is_found_in_the_settings(config: Path) -> None:
    code, text = said("--config", listening_on(config, "localhost"), "--check")

    assert code == 2
    assert "'monitoring.listen'" in text
    assert "is no address with a port" in text


def test_where_no_worker_runs_ready_says_so_with_code_1(config: Path) -> None:
    address = free_address()

    code, text = said("--ready", "--config", listening_on(config, address))

    assert code == 1
    assert text.startswith(f"no worker answers at {address}")


def test_ready_needs_an_address(config: Path) -> None:
    assert said("--ready", "--config", config)[0] == 2


@pytest.mark.parametrize("program", ["aggregator_worker", "client_worker"])
def test_ready_imports_no_torch(program: str) -> None:
    words = f"import sys, {program}.cli; print([each for each in ('torch', 'opacus', 'scipy') if each in sys.modules])"

    asked = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)

    assert asked.stdout.strip() == "[]"
