"""Secrets stay in their files: not on a command line, in no child's environment, in no log, table, error or report."""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path, PurePath

import pytest

from aggregator_worker.intake import Upload
from aggregator_worker.settings import AggregatorSettings
from broker_config.connection import ConnectionSettings
from broker_config.logins import create, load, logins_from_environment, save
from broker_config.node import PrivateNode
from broker_config.secret_files import without_secrets
from operator_console.machine_checks import secret_files
from operator_console.worker_processes import WorkerProcess, entry_point
from shared import settings
from shared.chunks import ChunkHead
from shared.errors import SettingsError
from tests.conftest import eventually

REPOSITORY = Path(__file__).parent.parent
ADMIN_URL = "amqp://admin:{marked}@127.0.0.1:1/f"


def marked() -> str:
    """A secret that stands nowhere else."""
    return f"marked-{secrets.token_hex(12)}"


def program(name: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """One of our programs, to its end."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [entry_point(name), *map(str, words)]
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=90)


class Processes(threading.Thread):
    """Looks at every process of this machine again and again, and notes those that show a secret."""

    def __init__(self, words: list[str]) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self._words = [word.encode() for word in words]
        self._over = threading.Event()
        self.looks = 0

    def run(self) -> None:
        while not self._over.is_set():
            for process in Path("/proc").iterdir():
                if process.name.isdecimal() and int(process.name) != os.getpid():
                    self._look(process)
            self.looks += 1

    def _look(self, process: Path) -> None:
        with contextlib.suppress(OSError):
            command, variables = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
            name = command.replace(b"\0", b" ").decode(errors="replace")
            if any(word in command for word in self._words):
                self.found.add(("command line", name))
            if any(word in variables for word in self._words):
                self.found.add(("environment", name))

    def __enter__(self) -> "Processes":
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._over.set()
        self.join()


@pytest.fixture
def founded(broker_folder, tmp_path) -> Path:
    """A federation with a real broker, of two institutions."""
    task = 'name = "t"\nkind = "binary"\n[label]\ncolumn = "y"\npositive = ["1"]\nnegative = ["0"]\nbase_rate = 0.5\n'
    task += '[[numeric]]\ncolumns = "x"\nminimum = 0\nmaximum = 1\n[model]\ntype = "logistic"\n'
    (tmp_path / "task.toml").write_text(task)
    members = ["--institution", "north", "--institution", "south"]
    done = program("fedqueue", "init", "--dir", broker_folder, "--task", tmp_path / "task.toml", *members)
    assert done.returncode == 0, done.stderr
    rows = "x,y\n" + "0.1,0\n0.9,1\n" * 50
    for each in ("north", "south"):
        place = broker_folder / "institutions" / each
        (place / "training.csv").write_text(rows)
        text = (place / "client.toml").read_text()
        (place / "client.toml").write_text(re.sub(r"(?m)^# num_examples = \d+", "num_examples = 100", text))
    return broker_folder


def secrets_of(folder: Path) -> list[str]:
    """Everything in a federation's folder that only its owner may know: passwords, the run's secret, private keys."""
    logins = load(folder)
    words = [word for word in logins.users.values() if word] + [(folder / "run.secret").read_text().strip()]
    for pem in folder.rglob("*.pem"):
        if "PRIVATE" in pem.read_text():
            words.append(pem.read_text().splitlines()[1])
    return words


@pytest.mark.rabbitmq
@pytest.mark.timeout(240)
def test_workers_and_commands_show_no_secret_to_who_looks_at_processes_logs_and_output(founded, tmp_path):
    words = secrets_of(founded)
    assert len(words) > 8
    admin = marked()
    environment = {"AMQP_URL": ADMIN_URL.format(marked=admin), "MANAGEMENT_URL": "http://127.0.0.1:1"}
    logs = tmp_path / "logs"
    debug = {"FEDQUEUE_LOG_LEVEL": "debug"}
    workers = {
        "aggregator": [entry_point("fedqueue-aggregator"), "--config", str(founded / "aggregator.toml")],
        "north": [entry_point("fedqueue-client"), "--config", str(founded / "institutions/north/client.toml")],
        "south": [entry_point("fedqueue-client"), "--config", str(founded / "institutions/south/client.toml")],
    }
    running = [WorkerProcess(name, command, logs / f"{name}.log", tmp_path) for name, command in workers.items()]
    output = ""
    with pytest.MonkeyPatch.context() as patch, Processes([*words, admin]) as looked:
        for name, value in {**environment, **debug}.items():
            patch.setenv(name, value)
        for worker in running:
            worker.start()
        try:
            assert eventually(lambda: '"committed"' in (logs / "aggregator.log").read_text(), 60)
            commands = (["status"], ["doctor"], ["broker", "check"], ["institution", "list"], ["lineage", "verify"], ["pause"])
            for command in commands:
                done = program("fedqueue", *command, "--dir", founded, AMQP_URL="", MANAGEMENT_URL="", **debug)
                output += done.stdout + done.stderr
            done = program("fedqueue", "backup", tmp_path / "kept", "--dir", founded, AMQP_URL="", MANAGEMENT_URL="")
            output += done.stdout + done.stderr
        finally:
            for worker in running:
                worker.ask_to_end()
            assert [worker.wait() for worker in running] == [0, 0, 0]
    assert looked.looks > 2
    assert looked.found == set()
    told = output + "".join(each.read_text() for each in logs.iterdir())
    assert "every link holds" in told
    shown = [word for word in [*words, admin] if word in told and word != load(founded).users["viewer"]]
    assert shown == []


@pytest.mark.rabbitmq
def test_a_private_node_and_its_helpers_show_no_password_to_who_looks_at_processes(private_node: PrivateNode):
    cookie = (private_node.folder / "home/.erlang.cookie").read_text()
    with Processes([private_node.admin_password, cookie]) as looked:
        private_node.control("status")
        eventually(lambda: looked.looks > 1)
    assert looked.found == set()


WRONG = {
    "password twice": 'password = "{word}"\npassword_file = "word"\n',
    "a password in the url": 'password = "{word}"\n',
    "a password in a url that is none": 'password = "{word}"\n',
    "a variable that is no JSON": 'password = "{word}"\n',
    "an unknown key": 'password = "{word}"\npasswort = "{word}"\n',
    "a list for a password": 'password = ["{word}"]\n',
    "a table for a password": 'password = {{ is = "{word}" }}\n',
    "a password that is no text": "password = {word}\n",
    "a number that is none": 'password = "{word}"\nheartbeat_seconds = "{word}"\n',
}


@pytest.mark.parametrize("how", WRONG)
def test_wrong_settings_are_named_without_their_values(tmp_path, how):
    word = marked()
    (tmp_path / "word").write_text(word)
    urls = {
        "a password in the url": f"amqp://someone:{word}@127.0.0.1/f",
        "a password in a url that is none": f"amqp:/a:{word}@[::",
    }
    url = urls.get(how, "amqp://127.0.0.1:1/f")
    variables = {"FEDQUEUE_BROKER": f"{{{word}"} if "variable" in how else {}
    text = 'state_folder = "."\nrun_secret_file = "s"\nmembers_file = "m"\n[broker]\nuser = "north"\n'
    text += f'url = "{url}"\n' + WRONG[how].format(word=word)
    (tmp_path / "aggregator.toml").write_text(text)
    done = program("fedqueue-aggregator", "--config", tmp_path / "aggregator.toml", FEDQUEUE_LOG_LEVEL="debug", **variables)
    assert done.returncode == 2, done.stderr
    assert word not in done.stdout + done.stderr


@pytest.mark.rabbitmq
def test_a_login_that_is_refused_is_told_without_its_password(founded, tmp_path):
    word = marked()
    for worker, config in (("aggregator", founded / "aggregator.toml"), ("client", founded / "institutions/north/client.toml")):
        (config.parent / ("aggregator/password" if worker == "aggregator" else "password")).write_text(word)
        done = program(f"fedqueue-{worker}", "--config", config, "--check", FEDQUEUE_LOG_LEVEL="debug")
        assert done.returncode == 3, done.stderr
        assert "refused" in done.stderr
        assert word not in done.stdout + done.stderr


def test_settings_and_logins_show_stars():
    word = marked()
    text = 'state_folder = "."\nrun_secret_file = "s"\nmembers_file = "m"\n'
    text += f'[broker]\nurl = "amqp://127.0.0.1/f"\nuser = "north"\npassword = "{word}"'
    shown = [
        ConnectionSettings.model_validate({"url": "amqp://127.0.0.1/f", "user": "north", "password": word}),
        settings.load(AggregatorSettings, text, path=PurePath("aggregator.toml")),
        create(node="127.0.0.1:1", management="http://127.0.0.1:2", admin_password=word),
        logins_from_environment({"AMQP_URL": ADMIN_URL.format(marked=word), "MANAGEMENT_URL": "http://127.0.0.1:2"}),
    ]
    for each in shown:
        assert word not in f"{each!r} {each!s} {[each]}"
    assert "**********" in repr(shown[0])
    for url in (f"http://admin:{word}@127.0.0.1", f"amqp://admin:{word}@[::1/f", f"amqp:/admin:{word}@127.0.0.1"):
        with pytest.raises(SettingsError) as refused:
            logins_from_environment({"AMQP_URL": url, "MANAGEMENT_URL": "http://127.0.0.1"})
        assert word not in str(refused.value)


def test_a_child_that_tries_a_suspect_update_or_works_for_the_demo_has_no_login_in_its_environment(monkeypatch, tmp_path):
    word = marked()
    monkeypatch.setenv("FEDQUEUE_BROKER__PASSWORD", word)
    monkeypatch.setenv("AMQP_URL", ADMIN_URL.format(marked=word))
    show = [sys.executable, "-c", "import os, sys; sys.exit(any(sys.argv[1] in value for value in os.environ.values()))", word]
    head = ChunkHead.__new__(ChunkHead)
    assert Upload(head, [], b"").survives_trial(show)
    child = WorkerProcess("child", show, tmp_path / "child.log", tmp_path)
    child.start()
    assert child.wait() == 0
    assert without_secrets({"PATH": "/bin", "FEDQUEUE_LOG_LEVEL": "debug", "FEDQUEUE_BROKER__PASSWORD": word}) == {
        "PATH": "/bin",
        "FEDQUEUE_LOG_LEVEL": "debug",
    }


OPEN_TO_OTHERS = (
    *("broker.json", "run.secret", "ca/ca.key", "tls/operator/key.pem", "keys/operator/signing.pem", "keys/operator/sealing.pem"),
    *("aggregator/password", "aggregator/key.pem", "aggregator/keys/signing.pem", "institutions/north/keys/sealing.pem"),
    *("institutions/north/key.pem", "institutions/north/password", "institutions/north/ledger.sqlite", "kits/north.tar.gz"),
    *("broker/n1/rabbitmq.conf", "broker/n1/node.json"),
)


@pytest.mark.parametrize("name", OPEN_TO_OTHERS)
def test_the_doctor_finds_each_secret_that_others_can_read(tmp_path, name):
    for each in (*OPEN_TO_OTHERS, "ca/ca.pem", "task.toml", "tls/operator/certificate.pem"):
        tmp_path.joinpath(each).parent.mkdir(parents=True, exist_ok=True)
        tmp_path.joinpath(each).touch(mode=0o600)
    (tmp_path / "ca/ca.pem").chmod(0o644)
    assert [each.ok for each in secret_files(tmp_path)] == [True]
    (tmp_path / name).chmod(0o640)
    (finding,) = secret_files(tmp_path)
    assert finding.remedy == f"chmod 600 {tmp_path / name}"


def test_a_file_of_logins_that_others_can_read_is_refused(tmp_path):
    save(create(node="127.0.0.1:1", management="http://127.0.0.1:2", admin_password=marked()), tmp_path)
    load(tmp_path)
    (tmp_path / "broker.json").chmod(0o604)
    with pytest.raises(SettingsError, match=r"chmod 600 .*broker\.json"):
        load(tmp_path)


def tracked() -> Iterator[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a clone: there is no list of files")
    for name in done.stdout.splitlines():
        if (REPOSITORY / name).is_file():
            yield REPOSITORY / name


ASSIGNED = re.compile(r"(?i)\b[\w.-]*(?:passw(?:or)?d|default_pass|secret|erlang_cookie)[\w-]*\s*[:=]\s*[\"']?([^\s\"',}{]{3,})")
HARMLESS = re.compile(r"^(\$|/(run/|grafana-)?secrets|grafana:$|password(_file)?$|run\.secret|aggregator/|kit/|\{|%|<|marked)")


def test_no_configuration_in_the_tree_has_a_password_and_guest_is_nowhere():
    endings = (".yml", ".yaml", ".conf", ".toml", ".j2", ".json", ".service", ".env", ".sh", ".config")
    configurations = [each for each in tracked() if each.name.endswith(endings) or each.name in ("Dockerfile", "Makefile")]
    configurations = [each for each in configurations if not each.name.endswith((".lock", "-lock.json", ".md.j2"))]
    assert len(configurations) > 10
    for each in configurations:
        text = "".join(line for line in each.read_text().splitlines(keepends=True) if not line.lstrip().startswith("#"))
        words = [word for word in ASSIGNED.findall(text) if not HARMLESS.match(word)]
        assert words == [], each
        assert not re.search(r"(?i)\bguest\b\s*[:/=]|default_user\s*=\s*guest|guest:guest", text), each
    keys = [each for each in tracked() if each.suffix in (".pem", ".key", ".p12", ".jks")]
    assert [each for each in keys if "PRIVATE" in each.read_text(errors="replace")] == []


@pytest.mark.rabbitmq
def test_a_private_node_has_no_guest(private_node: PrivateNode):
    users = json.loads(private_node.control("list_users", "--formatter", "json"))
    assert "guest" not in {each["user"] for each in users}
