"""The set-up scripts: what they choose, what they say, and what clean-up ends and leaves."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
TOOLS = ["sh", "sed", "cat", "dirname", "basename", "id", "mkdir", "rm", "grep", "cksum", "flock", "tr", "sort", "sleep"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The set-up scripts in a folder of their own."""
    shutil.copytree(PROJECT / "setup", tmp_path / "setup")
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder for PATH with the plainest tools and neither Python nor apt-get."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in TOOLS:
        folder.joinpath(name).symlink_to(shutil.which(name))
    return folder


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a program that is ended with the test at the latest."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str | Path, **variables: str) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(command, env={**os.environ, **variables}))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()


def script(name: str, folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "TMPDIR": str(folder), **variables}
    command = [folder / "setup" / name, *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def fake_python(folder: Path, name: str, *, usable: bool) -> None:
    folder.joinpath(name).write_text(f"#!/bin/sh\nexit {0 if usable else 1}\n")
    folder.joinpath(name).chmod(0o755)


def test_the_newest_python_that_can_make_an_environment_is_chosen(clone: Path, bare_path: Path) -> None:
    for name, usable in [("python3.13", False), ("python3.12", True), ("python3.11", True), ("python3", True)]:
        fake_python(bare_path, name, usable=usable)

    assert script("python", clone, PATH=str(bare_path)).stdout == f"{bare_path}/python3.12\n"


def test_a_system_without_apt_gets_one_sentence_with_everything_that_is_missing(clone: Path, bare_path: Path) -> None:
    result = script("packages", clone, PATH=str(bare_path))

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert "no apt-get: install Python 3.11 or newer with venv" in result.stderr


def test_a_system_without_node_and_apt_gets_one_sentence(clone: Path, bare_path: Path) -> None:
    example = clone / "examples" / "node"
    example.mkdir(parents=True)
    shutil.copy(PROJECT / "examples" / "node" / "package-lock.json", example)
    result = script("node", clone, PATH=str(bare_path))

    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "set-up stopped: this system has no apt-get: install Node 18 or newer with npm, then run make test again.\n"
    )


def test_a_system_without_prometheus_and_apt_leaves_its_tests_out_unless_they_are_demanded(clone: Path, bare_path: Path) -> None:
    left_out = script("prometheus", clone, PATH=str(bare_path))
    demanded = script("prometheus", clone, PATH=str(bare_path), CI="true")

    assert (left_out.returncode, left_out.stderr) == (0, "")
    assert left_out.stdout == (
        "The tests of the monitoring with a real Prometheus are left out: "
        "they take prometheus and promtool, and this system has no apt-get.\n"
    )
    assert (demanded.returncode, demanded.stdout) == (1, "")
    assert demanded.stderr.startswith("set-up stopped: the tests of the monitoring are demanded, and they take prometheus")


def test_what_npm_is_to_install_has_one_exact_version_a_hash_and_no_address() -> None:
    lock = json.loads((PROJECT / "examples" / "node" / "package-lock.json").read_text())
    installed = {name: each for name, each in lock["packages"].items() if name}

    assert set(installed) == {"node_modules/@msgpack/msgpack", "node_modules/amqplib"}
    assert all(each["integrity"].startswith("sha512-") and "resolved" not in each for each in installed.values())


def test_no_rabbitmq_is_wanted_where_a_broker_is_named(clone: Path, bare_path: Path) -> None:
    fake_python(bare_path, "python3", usable=True)

    assert script("packages", clone, "--check", PATH=str(bare_path), AMQP_URL="amqp://a:b@host/").returncode == 0


def test_clean_ends_the_programs_of_this_clone_only_and_removes_what_was_made(
    clone: Path, start: Callable[..., subprocess.Popen[bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder in (clone, elsewhere):
        (folder / ".venv" / "bin").mkdir(parents=True)
        (folder / ".venv" / "bin" / "sleep").symlink_to(shutil.which("sleep"))
    for made in ("runs/1", "build", ".mypy_cache", "shared/__pycache__", "fedqueue.egg-info", "examples/node/node_modules"):
        (clone / made).mkdir(parents=True)
    (clone / "README.md").touch()
    ours, theirs = (start(folder / ".venv" / "bin" / "sleep", "100") for folder in (clone, elsewhere))

    assert script("clean", clone).stdout == "Nothing of fedqueue's commands is left.\n"

    assert ours.wait(timeout=10) == -signal.SIGTERM
    assert theirs.poll() is None
    assert sorted(path.name for path in clone.iterdir()) == ["README.md", "examples", "pyproject.toml", "setup", "shared"]
    assert list((clone / "examples" / "node").iterdir()) == []


def test_clean_ends_a_node_of_this_clone_whose_owner_was_killed(
    clone: Path, start: Callable[..., subprocess.Popen[bytes]]
) -> None:
    folder = clone / "runs" / "broker" / "n1"
    folder.mkdir(parents=True)
    (folder / "node.json").touch()
    node = start("sleep", "100", FEDQUEUE_NODE_FOLDER=str(folder))

    script("clean", clone)

    assert node.wait(timeout=10) == -signal.SIGKILL
    assert not folder.exists()


@pytest.mark.parametrize(("watched", "ended"), [(False, True), (True, False)])
def test_a_node_in_a_temporary_folder_is_ended_only_when_its_watcher_is_gone(
    clone: Path,
    start: Callable[..., subprocess.Popen[bytes]],
    tmp_path_factory: pytest.TempPathFactory,
    watched: bool,
    ended: bool,
) -> None:
    cluster = tmp_path_factory.mktemp("cluster")
    (cluster / "n1").mkdir()
    (cluster / "n1" / "node.json").touch()
    node = start("sleep", "100", FEDQUEUE_NODE_FOLDER=str(cluster / "n1"))
    if watched:
        watcher = start(sys.executable, "-c", "import time; time.sleep(100)", "broker_config.watch", cluster, "1")
        wait_until_named(watcher.pid, "broker_config.watch")

    script("clean", clone)

    assert (node.poll() is not None) == ended
    assert (cluster / "n1").exists() != ended


def wait_until_named(pid: int, word: str) -> None:
    deadline = time.monotonic() + 10
    while word.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
