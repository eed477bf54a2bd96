"""Parts of different versions in one federation, as real processes: the programs of a copy of the tree with one number changed.

Whoever is of another version is refused in words; nothing is lost, the others go on, and in the right version
it takes part again.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from broker_config.connection import connect
from broker_config.logins import load
from operator_console.federation_folder import ClientOptions, FederationFolder, named
from operator_console.founding import Founding, found_federation
from operator_console.plan_options import PlanOptions, RoomOptions
from operator_console.worker_processes import WorkerProcess, entry_point
from shared.broker import Broker
from shared.plan import Ending
from tests.running import Watch, require_each_once
from tests.test_bring_your_own import LOGISTIC, fruit

pytestmark = [pytest.mark.rabbitmq, pytest.mark.long, pytest.mark.timeout(240)]

PROJECT = Path(__file__).parent.parent
BANKS = ("north", "south", "west")
ROOMS = ("shared", "broker_config", "monitoring", "aggregator_worker", "client_worker", "operator_console", "builtin_tasks")
CHANGES = {
    "messages": ("shared/codec.py", "SCHEMA_VERSION = 1", "SCHEMA_VERSION = 2"),
    "a key of the plan": ("shared/plan.py", "    server_learning_rate: Positive", "    rate_of_the_server: Positive"),
    "ledger": ("client_worker/ledger_file.py", "LAYOUT = 1", "LAYOUT = 2"),
}
REFUSALS = {
    "messages": (3, "was written by another version of fedqueue: schema version 1 is not 2"),
    "a key of the plan": (3, "holds no valid chain from its first record on (what could not be read last: "),
    "ledger": (4, "has the layout 1, and this version of fedqueue knows 2: run the version that wrote it"),
}


@pytest.fixture(params=CHANGES)
def other_version(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """Which part is of another version, and a tree of that version."""
    tree = tmp_path / "other version"
    for room in ROOMS:
        shutil.copytree(PROJECT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    file, old, new = CHANGES[request.param]
    text = (tree / file).read_text()
    assert text.count(old) == 1
    (tree / file).write_text(text.replace(old, new))
    return request.param, tree


@pytest.fixture
def parties(broker_folder: Path) -> Iterator[dict[str, WorkerProcess]]:
    """The aggregator and three institutions of a founded federation; none runs yet, and none outlives the test."""
    clients = {name: ClientOptions(num_examples=200, at_least_seconds=0.3) for name in BANKS}
    options = PlanOptions(epsilon=8.0, ending=Ending())
    founding = Founding(LOGISTIC, "the task", named(BANKS), options, RoomOptions(), clients=clients)
    found_federation(FederationFolder(broker_folder), load(broker_folder), founding)
    settings = {"aggregator": broker_folder / "aggregator.toml"}
    for seed, name in enumerate(BANKS):
        kit = broker_folder / "institutions" / name
        (kit / "training.csv").write_text(fruit(200, seed))
        settings[name] = kit / "client.toml"
    with ExitStack() as stack:
        workers = {name: worker(name, file) for name, file in settings.items()}
        for each in workers.values():
            stack.callback(each.kill)
        yield workers


class Followed(Watch):
    """The lineage, with the pseudonyms of a founded federation."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        super().__init__(broker)
        self.pseudonyms = {name: pseudonym for pseudonym, name in FederationFolder(folder).names().items()}


def given(watch: Followed, name: str) -> int:
    """How many updates of an institution are settled."""
    return (watch.reader.lineage.table or {})[watch.pseudonyms[name]].watermark


def worker(name: str, settings: Path) -> WorkerProcess:
    program = "fedqueue-aggregator" if name == "aggregator" else "fedqueue-client"
    return WorkerProcess(
        name, [entry_point(program), "--config", str(settings)], settings.parent / f"{name}.log", settings.parent
    )


def refused(each: WorkerProcess, tree: Path) -> tuple[int, str]:
    """The exit code and the last words of the same command, run from another tree."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(each.command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, json.loads(done.stderr.splitlines()[-1] if done.stderr.strip() else done.stdout.splitlines()[-1])[
        "reason"
    ]


def stopped(each: WorkerProcess) -> None:
    each.ask_to_end()
    assert each.wait() == 0


def test_an_institution_of_another_version_is_refused_in_words_and_takes_part_again(
    other_version: tuple[str, Path], parties: dict[str, WorkerProcess], broker_folder: Path
) -> None:
    part, tree = other_version
    with closing(connect(load(broker_folder).settings("operator"), name="test/operator")) as broker:
        watch = Followed(broker, broker_folder)
        for each in parties.values():
            each.start()
        assert watch.until(lambda: all(given(watch, name) >= 2 for name in BANKS), 60)
        stopped(parties["north"])
        code, words = REFUSALS[part]
        ledger = (broker_folder / "institutions" / "north" / "ledger.sqlite").read_bytes()

        found = refused(parties["north"], tree)

        assert found[0] == code
        assert words in found[1]
        assert (broker_folder / "institutions" / "north" / "ledger.sqlite").read_bytes() == ledger
        before = {name: given(watch, name) for name in BANKS}
        assert watch.until(lambda: given(watch, "south") >= before["south"] + 2, 60)
        parties["north"].start()
        assert watch.until(lambda: given(watch, "north") >= before["north"] + 2, 60)
        for each in parties.values():
            stopped(each)
        watch.until(lambda: False, 2)
        require_each_once(watch)


def test_an_aggregator_of_another_version_does_not_lead_and_acknowledges_nothing(
    other_version: tuple[str, Path], parties: dict[str, WorkerProcess], broker_folder: Path
) -> None:
    part, tree = other_version
    if part == "ledger":
        pytest.skip("an aggregator has no ledger")
    with closing(connect(load(broker_folder).settings("operator"), name="test/operator")) as broker:
        watch = Followed(broker, broker_folder)
        for each in parties.values():
            each.start()
        assert watch.until(lambda: all(given(watch, name) >= 2 for name in BANKS), 60)
        parties["aggregator"].kill()
        epoch = watch.head.epoch
        code, words = REFUSALS[part]

        found = refused(parties["aggregator"], tree)

        assert found[0] == code
        assert words in found[1]
        watch.until(lambda: False, 2)
        assert watch.head.epoch == epoch
        before = {name: given(watch, name) for name in BANKS}
        parties["aggregator"].start()
        assert watch.until(lambda: all(given(watch, name) >= before[name] + 2 for name in BANKS), 60)
        for each in parties.values():
            stopped(each)
        watch.until(lambda: False, 2)
        require_each_once(watch)
