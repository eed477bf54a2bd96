"""What a new user does with her own CSV files: a task file, a few commands, and real processes on a real broker."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker_config.connection import connect
from broker_config.logins import load
from operator_console.federation_folder import NO_NOISE, FederationFolder
from operator_console.history import History, fold_next, follow
from operator_console.init_command import init
from operator_console.observer import newest_model
from shared.errors import BrokerUnavailableError
from shared.tasks.features import encode
from shared.tasks.metrics import evaluate
from shared.tasks.models import initial_parameters
from shared.tasks.spec import parse_task
from shared.tasks.tables import read_columns
from tests.running import Watch

pytestmark = pytest.mark.long

FEATURES = """
[[numeric]]
columns = ["weight", "colour"]
minimum = 0
maximum = 10
[[categorical]]
columns = "orchard"
categories = ["hill", "valley"]
[training]
steps = 5
sample_rate = 0.5
learning_rate = 1.0
updates = 12
"""
# So a run cannot end before the slower to start has taken part, however busy the machine is.
MORE_THAN_ONE_CAN_GIVE = 14
RIPENESS = 'name = "ripeness"\nkind = "binary"\n[label]\ncolumn = "ripe"\npositive = ["yes"]\n' + FEATURES
PRICE = 'name = "price"\nkind = "regression"\n[label]\ncolumn = "price"\nminimum = 0\nmaximum = 50\n' + FEATURES
LOGISTIC = RIPENESS + '[model]\ntype = "logistic"\n'
# The squared error is steeper than the logistic loss: with learning rate 1 it diverges where no norm is clipped.
LINEAR = PRICE.replace("learning_rate = 1.0", "learning_rate = 0.1") + '[model]\ntype = "linear"\n'
OWN_NETWORK = RIPENESS + '[model]\ntype = "orchard_models:network"\n'
NETWORK = """
from torch import nn

def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))
"""
HEADER = "weight,colour,orchard,ripe,price\n"
NOWHERE = "amqp://127.0.0.1:1/nowhere"
WORKERS = ("aggregator", "north", "south")


def fruit(rows, seed):
    """A CSV file: what is heavy and red is ripe, and a price that follows from both."""
    rng = random.Random(seed)
    lines = [HEADER]
    for _ in range(rows):
        weight, colour, orchard = rng.uniform(0, 10), rng.uniform(0, 10), rng.choice(["hill", "valley"])
        ripe = "yes" if weight + colour > 10 else "no"
        lines.append(f"{weight:.3f},{colour:.3f},{orchard},{ripe},{2 * weight + 3 * colour:.2f}\n")
    return "".join(lines)


@dataclass
class Program:
    """A process of ours, and what it wrote."""

    process: subprocess.Popen
    log: Path

    @property
    def text(self):
        return self.log.read_text()

    def code(self, timeout_seconds=60):
        return self.process.wait(timeout_seconds)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    @property
    def sentence(self):
        """What it ended with: a plain sentence, or the reason in its last line of log."""
        last = self.text.strip().splitlines()[-1]
        return json.loads(last)["reason"] if last.startswith("{") else last


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts programs of `.venv/bin`; none outlives the module."""
    folder, programs = tmp_path_factory.mktemp("programs"), []

    def begin(name, *words, **environment):
        log = folder / f"{len(programs)}.log"
        with log.open("wb") as out:
            command = [str(Path(sys.executable).with_name(name)), *map(str, words)]
            variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=variables)
        programs.append(Program(process, log))
        return programs[-1]

    yield begin
    for program in programs:
        program.process.kill()
        program.process.wait()


def put_data(folder, institution, text, examples):
    """What the engineer at an institution does with the folder that the operator gave her."""
    kit = folder / "institutions" / institution
    (kit / "training.csv").write_text(text)
    settings = (kit / "client.toml").read_text()
    assert "# num_examples = 1000 " in settings
    (kit / "client.toml").write_text(settings.replace("# num_examples = 1000 ", f"num_examples = {examples} "))
    return kit / "client.toml"


def figures(task, parameters, rows_text, tmp_path):
    file = tmp_path / "unseen.csv"
    file.write_text(rows_text)
    spec = parse_task(task, source="the task")
    with file.open("rb") as opened:
        return evaluate(
            spec, parameters or initial_parameters(spec, 0), encode(spec, read_columns(opened, source="unseen"), "unseen")
        )


def as_operator(folder):
    return connect(load(folder).settings("operator"), name="test/operator")


def opened(folder, history):
    """A broker's ports are open before its virtual hosts and streams are: None until they can be read."""
    with ExitStack() as stack:
        try:
            broker = stack.enter_context(closing(as_operator(folder)))
            reader = follow(broker, history)
        except BrokerUnavailableError:
            return None
        stack.pop_all()
        return broker, reader


def history_to_the_end(folder, soon):
    """Every link of the chain once the run is finished."""
    history = History(FederationFolder(folder).names())
    broker, reader = soon(lambda: opened(folder, history), 60)

    def over():
        fold_next(broker, reader, timeout_seconds=0.2)
        return history.head.manifest.phase == "finished"

    with closing(broker):
        assert soon(over, 60)
    return history


def require_each_counted_once(folder, history):
    """Every settled number is the next one, and is the update that the institution has on its own disk."""
    for part in history.parts():
        settled = [settlement for _, settlement in part.settled]
        assert [each.sequence for each in settled] == list(range(1, part.entry.watermark + 1))
        ledger = folder / "institutions" / part.institution / "ledger.sqlite"
        with closing(sqlite3.connect(ledger)) as database:
            kept = dict(database.execute("SELECT sequence, hash FROM outbox"))
        both = [each for each in settled if each.sequence in kept]
        assert both
        assert [each.hash for each in both] == [kept[each.sequence] for each in both]


@pytest.mark.rabbitmq
@pytest.mark.timeout(240)
def test_her_own_federation_runs_to_its_end_though_the_broker_restarts(broker_folder, tmp_path, start, soon, private_node):
    """Default privacy; one institution's settings in the file, the other's partly in the environment."""
    (tmp_path / "ripeness.toml").write_text(LOGISTIC)
    (tmp_path / "held_out.csv").write_text(fruit(400, seed=3))
    options = ["--stop-after-updates", str(MORE_THAN_ONE_CAN_GIVE), "--held-out", tmp_path / "held_out.csv"]
    members = ["--institution", "north", "--institution", "south"]
    init_program = start("fedqueue", "init", "--dir", broker_folder, "--task", tmp_path / "ripeness.toml", *members, *options)
    assert init_program.code() == 0, init_program.text
    north = put_data(broker_folder, "north", fruit(300, seed=1), examples=300)
    south = broker_folder / "institutions/south/client.toml"
    (south.parent / "training.csv").write_text(fruit(200, seed=2))
    slower = {"FEDQUEUE_AT_LEAST_SECONDS": "0.5"}
    programs = {
        "aggregator": (["fedqueue-aggregator", "--config", broker_folder / "aggregator.toml"], {}),
        "north": (["fedqueue-client", "--config", north], slower),
        "south": (["fedqueue-client", "--config", south], slower | {"FEDQUEUE_NUM_EXAMPLES": "200"}),
    }
    checks = [start(*words, "--check", **variables) for words, variables in programs.values()]
    assert [each.code() for each in checks] == [0, 0, 0], [each.text for each in checks]
    assert [each.text.startswith("ok: ") for each in checks] == [True] * 3

    workers = [start(*words, **variables) for words, variables in programs.values()]
    with closing(as_operator(broker_folder)) as broker:
        watch = Watch(broker)
        assert watch.until(lambda: watch.head.manifest.version >= 2, 60), [each.text for each in workers]
    assert watch.head.manifest.phase == "running"
    private_node.restart()
    history = history_to_the_end(broker_folder, soon)
    for each in workers:
        each.terminate()
    assert [each.code() for each in workers] == [0, 0, 0]

    assert history.counters()["aggregated"] >= MORE_THAN_ONE_CAN_GIVE
    require_each_counted_once(broker_folder, history)
    assert [part.entry.num_examples for part in history.parts()] == [300, 200]
    assert all(0 < part.entry.epsilon_spent <= 3 for part in history.parts())
    assert history.head.manifest.metrics["auc"] > 0.8
    assert figures(LOGISTIC, None, fruit(400, seed=3), tmp_path)["auc"] == 0.5


@pytest.fixture
def her_module(tmp_path):
    """A module beside her task file, importable here and, by PYTHONPATH, in the programs."""
    (tmp_path / "orchard_models.py").write_text(NETWORK)
    sys.path.append(str(tmp_path))
    yield tmp_path
    sys.path.remove(str(tmp_path))


@pytest.mark.rabbitmq
@pytest.mark.parametrize(
    ("task", "metric"),
    [
        pytest.param(LINEAR, "rmse", id="linear", marks=pytest.mark.long),
        pytest.param(OWN_NETWORK, "log_loss", id="own-network"),
    ],
)
def test_regression_and_a_torch_model_of_her_own_learn_as_well(task, metric, broker_folder, start, soon, her_module):
    (her_module / "task.toml").write_text(task)
    init(
        task=str(her_module / "task.toml"),
        institution=["north", "south"],
        folder=broker_folder,
        epsilon="none",
        stop_after_updates=MORE_THAN_ONE_CAN_GIVE,
    )
    assert NO_NOISE in put_data(broker_folder, "north", fruit(300, seed=1), examples=300).read_text()
    put_data(broker_folder, "south", fruit(200, seed=2), examples=200)
    configs = [broker_folder / f"institutions/{name}/client.toml" for name in ("north", "south")]
    workers = [start("fedqueue-aggregator", "--config", broker_folder / "aggregator.toml")]
    workers += [start("fedqueue-client", "--config", config, PYTHONPATH=str(her_module)) for config in configs]
    history = history_to_the_end(broker_folder, soon)
    for each in workers:
        each.terminate()
    assert [each.code() for each in workers] == [0, 0, 0], [each.text for each in workers]
    require_each_counted_once(broker_folder, history)

    model = newest_model(lambda: as_operator(broker_folder))
    before, after = (figures(task, each, fruit(400, seed=3), her_module)[metric] for each in (None, model))
    assert after < 0.9 * before


KIT = f"""
institution = "north"
incarnation = 1
pseudonym = "{"ab" * 8}"
run_id = "{"cd" * 8}"
task_file = "task.toml"
training_file = "training.csv"
num_examples = 100
state_folder = "."
[broker]
url = "{NOWHERE}"
user = "north"
password = "word"
"""
GOOD = "5,5,hill,yes,25\n6,5,hill,no,27\n"
WRONG = {
    "an empty file": ("", {}, ["training.csv", "is empty", "write a header line"]),
    "a missing column": (HEADER.replace("colour", "color") + GOOD, {}, ["training.csv", "'colour' is missing", "add it"]),
    "text among numbers": (
        HEADER + GOOD + "heavy,5,hill,yes,1\n",
        {},
        ["training.csv", "'weight', row 4 is 'heavy'", "correct it"],
    ),
    "a constant label": (HEADER + "1,2,hill,yes,1\n" * 3, {}, ["training.csv", "'ripe' has the same value", "add rows"]),
    "an unknown key": (
        HEADER + GOOD,
        {"toml": 'flavour = "sweet"\n' + KIT},
        ["client.toml", "unknown key 'flavour'", "remove it"],
    ),
    "a wrong variable": (
        HEADER + GOOD,
        {"FEDQUEUE_AT_LEAST_SECONDS": "-1"},
        ["'at_least_seconds'", "greater than or equal to 0"],
    ),
}


def a_kit(folder, *, data=HEADER + GOOD, toml=KIT):
    folder.mkdir(parents=True)
    for name, text in {"task.toml": LOGISTIC, "training.csv": data, "client.toml": toml}.items():
        (folder / name).write_text(text)
    return folder / "client.toml"


@pytest.fixture(scope="module")
def refused(start, tmp_path_factory):
    """One client for each wrong kit, all started at once."""
    folder = tmp_path_factory.mktemp("wrong")
    programs = {}
    for number, (name, (data, change, _)) in enumerate(WRONG.items()):
        variables = {key: value for key, value in change.items() if key != "toml"}
        config = a_kit(folder / str(number), data=data, toml=change.get("toml", KIT))
        programs[name] = start("fedqueue-client", "--config", config, "--check", **variables)
    return programs


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_or_setting_ends_with_code_2_and_one_sentence(name, refused):
    program = refused[name]
    assert program.code() == 2
    assert "Traceback" not in program.text
    assert len(program.text.strip().splitlines()) == 1
    assert [part for part in WRONG[name][2] if part not in program.sentence] == []


def test_without_a_broker_workers_wait_and_end_with_code_0_when_asked(start, soon, tmp_path):
    config = a_kit(tmp_path / "north")
    (tmp_path / "run.secret").write_text("secret")
    (tmp_path / "run.secret").chmod(0o600)
    (tmp_path / "members.txt").write_text("north\n")
    files = 'state_folder = "state"\nrun_secret_file = "run.secret"\nmembers_file = "members.txt"\n'
    (tmp_path / "aggregator.toml").write_text(f'{files}[broker]\nurl = "{NOWHERE}"\nuser = "aggregator"\npassword = "word"\n')
    waiting = [
        start("fedqueue-client", "--config", config),
        start("fedqueue-aggregator", "--config", tmp_path / "aggregator.toml"),
    ]
    assert soon(lambda: all("not ready, trying again" in each.text for each in waiting), 40), [each.text for each in waiting]
    assert all("127.0.0.1:1" in each.text for each in waiting)
    twin = start("fedqueue-client", "--config", config)
    assert twin.code() == 2
    assert "this institution's worker runs already" in twin.sentence
    for each in waiting:
        assert each.process.poll() is None
        each.terminate()
    assert [each.code() for each in waiting] == [0, 0]


@pytest.mark.rabbitmq
def test_a_wrong_password_and_a_plan_beyond_the_policy_are_refused(broker_folder, tmp_path, start):
    (tmp_path / "task.toml").write_text(LOGISTIC)
    init(task=str(tmp_path / "task.toml"), institution=["north", "south"], folder=broker_folder, epsilon="2")
    north = put_data(broker_folder, "north", fruit(30, seed=1), examples=30)
    south = put_data(broker_folder, "south", fruit(30, seed=2), examples=30)
    (north.parent / "password").write_text("a wrong one\n")
    wrong_password = start("fedqueue-client", "--config", north)
    too_much = start("fedqueue-client", "--config", south, "--check", FEDQUEUE_POLICY__MAX_EPSILON="1.5")
    assert wrong_password.code() == 3
    assert "as north" in wrong_password.sentence
    assert "the broker refused the user, its password" in wrong_password.sentence
    assert too_much.code() == 2
    assert too_much.sentence == "the plan asks for epsilon 2.0, this institution's policy allows 1.5"
