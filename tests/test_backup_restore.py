"""The operator's side is lost, and brought back by the commands of docs/operations.md: real broker, aggregator and ledgers."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from aggregator_worker.genesis import found
from broker_config.connection import ConnectionSettings, connect
from broker_config.provision import administration, await_queues
from operator_console.credentials import found_credentials
from operator_console.federation_folder import Facts, FederationFolder, named
from shared.messages import Entry, ManifestRecord, pseudonym
from tests.builders import RUN, a_plan
from tests.conftest import LIMITS, RabbitmqServer
from tests.running import EXAMPLES, PATIENCE_SECONDS, ZERO, Watch, Worker, local_data, require_each_once

PAGE = Path(__file__).parent.parent / "docs/operations.md"
pytestmark = [pytest.mark.rabbitmq, pytest.mark.timeout(180)]
BANKS = ("bank-a", "bank-b")


class Federation:
    """A federation with signed messages; its operator's folder can be lost, the banks' folders are elsewhere."""

    def __init__(self, server: RabbitmqServer, tmp_path: Path) -> None:
        self.server, self.tmp_path = server, tmp_path
        self.folder = FederationFolder(tmp_path / "federation")
        self.folder.prepare("", server.logins.model_copy(update={"limits": LIMITS}))
        keys = found_credentials(self.folder, BANKS, sealed=True)
        self.names = {name: pseudonym(self.folder.run_secret(), name) for name in BANKS}
        table = {
            self.names[name]: Entry(
                incarnation=1, num_examples=EXAMPLES[name], signing_key=keys[name].signing, sealing_key=keys[name].sealing
            )
            for name in BANKS
        }
        operator = self.connect("operator")
        found(operator, run_id=RUN, plan=a_plan(), parameters=ZERO, table=table)
        operator.close()
        self.folder.keep(Facts(run_id=RUN, task="toy", title="toy", institutions=named(BANKS)))
        self.folder.write_aggregator(self.folder.logins())
        (self.folder.path / "institutions").rename(tmp_path / "banks")
        self.turns = {name: threading.Semaphore(0) for name in BANKS}

    def connect(self, user: str):
        """Who is a bank connects with its own keys, whatever has become of the operator's folder."""
        settings = self.server.logins.settings(user).model_dump(exclude_none=True)
        if user in BANKS:
            settings["keys_folder"] = self.tmp_path / "banks" / user / "keys"
        else:
            settings["keys_folder"] = self.folder.operator_keys
        return connect(ConnectionSettings.model_validate(settings), name=f"test/{user}")

    def bank(self, name: str) -> Worker:
        """A worker of a bank, which trains once for each turn that it is given."""

        def turn() -> None:
            self.turns[name].acquire(timeout=PATIENCE_SECONDS)

        return Worker(self, name, self.tmp_path / "banks", data=local_data(name, at_least=turn), pseudonym=self.names[name])

    def give(self, turns: int) -> None:
        for each in self.turns.values() if turns else ():
            each.release(turns)

    @contextmanager
    def aggregator(self) -> Iterator[subprocess.Popen]:
        """The program, as a service starts it; killed at the end."""
        command = [str(Path(sys.executable).with_name("fedqueue-aggregator")), "--config", str(self.folder.aggregator_file)]
        with (self.tmp_path / "aggregator.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()

    def watch(self, stack: ExitStack) -> Watch:
        return Watch(stack.enter_context(closing(self.connect("operator"))))

    def settled(self, watch: Watch, upto: int) -> bool:
        """Whether every bank's updates up to a number are settled."""
        return watch.until(
            lambda: all((watch.reader.lineage.table or {})[alias].watermark >= upto for alias in self.names.values())
        )

    def lose_broker(self) -> None:
        """Another broker at the same address, with nothing but its administrator."""
        with administration(self.server.logins) as management:
            management.delete_vhost()
            for user in self.server.logins.users.keys() - {self.server.logins.administrator}:
                management.delete_user(user)


def commands(heading: str) -> list[str]:
    """What docs/operations.md says to type below a heading."""
    _, _, below = PAGE.read_text().partition(f"# {heading}\n")
    block = below.partition("```console\n")[2].partition("```")[0]
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def type_in(folder: Path, *lines: str) -> str:
    """What the commands say in a shell; each must succeed."""
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = ""
    for line in lines:
        done = subprocess.run(
            line, shell=True, cwd=folder, env={**os.environ, **path}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        said += done.stdout
    return said


def come_back(federation: Federation, heading: str) -> str:
    """Types what the page says, but for the last line, which starts the aggregator; a test does that itself."""
    *lines, aggregator = commands(heading)
    assert aggregator == "fedqueue-aggregator --config federation/aggregator.toml"
    return type_in(federation.tmp_path, *lines)


@pytest.fixture
def federation(rabbitmq_server, tmp_path) -> Iterator[Federation]:
    made = Federation(rabbitmq_server, tmp_path)
    (tmp_path / "backups").mkdir()
    yield made
    made.give(10_000)


@pytest.mark.parametrize("checkpoint", ["older than the lineage", pytest.param("none", marks=pytest.mark.long)])
def test_the_operators_folder_is_lost_and_the_run_goes_on_from_the_broker(federation, tmp_path, checkpoint):
    with ExitStack() as stack:
        watch = federation.watch(stack)
        for name in BANKS:
            stack.enter_context(federation.bank(name))
        with federation.aggregator():
            federation.give(2)
            assert federation.settled(watch, 2)
            said = type_in(tmp_path, *commands("A backup"))
            assert "aggregator/checkpoint.safetensors" in said
            federation.give(20)
            assert federation.settled(watch, 22)
        shutil.rmtree(federation.folder.path)
        come_back(federation, "The operator's folder is lost")
        if checkpoint == "none":
            (federation.folder.aggregator / "checkpoint.safetensors").unlink()
        with federation.aggregator():
            federation.give(3)
            assert federation.settled(watch, 25)
        require_each_once(watch)
        federation.give(10_000)


@pytest.mark.parametrize("kept", [pytest.param("the newest checkpoint", marks=pytest.mark.long), "a backup's checkpoint"])
def test_the_broker_is_lost_too_and_the_lineage_goes_on_from_the_checkpoint(federation, tmp_path, kept):
    """An update that was on its way, and those that only the lost broker knew as settled, are sent again and count once."""
    behind = 3 if kept == "a backup's checkpoint" else 0
    before = run_until_all_is_lost(federation, behind)
    if behind:
        shutil.rmtree(federation.folder.path)
    said = come_back(federation, "Both are lost" if behind else "The broker is lost")
    with ExitStack() as stack:
        watch = federation.watch(stack)
        first = watch.head
        assert f"version {first.manifest.version} of run {RUN}" in said
        assert (first.hash == before.hash) is not bool(behind)
        stack.enter_context(federation.aggregator())
        for name in BANKS:
            stack.enter_context(federation.bank(name))
        federation.give(3)
        assert federation.settled(watch, 23 + behind)
        require_each_once_since(watch, first)
        federation.give(10_000)
    assert "every link holds" in type_in(tmp_path, "fedqueue lineage verify --dir federation")
    with pytest.raises(AssertionError, match="holds a run"):
        type_in(tmp_path, "fedqueue republish --dir federation")


def run_until_all_is_lost(federation: Federation, behind: int) -> ManifestRecord:
    """Twenty updates of each bank, a backup, some more; then the aggregator is killed, and the broker lost. The last head."""
    with ExitStack() as stack:
        watch = federation.watch(stack)
        for name in BANKS:
            stack.enter_context(federation.bank(name))
        with federation.aggregator():
            federation.give(20)
            assert federation.settled(watch, 20)
            type_in(federation.tmp_path, *commands("A backup"))
            federation.give(behind)
            assert federation.settled(watch, 20 + behind)
        federation.give(10_000)  # each has one more update, which nobody takes
    federation.turns = {name: threading.Semaphore(0) for name in BANKS}
    federation.lose_broker()
    await_queues(federation.server.logins)  # as `broker up` does, also on a broker that knows of nothing
    return watch.head


def require_each_once_since(watch: Watch, first: ManifestRecord) -> None:
    """After a record, every bank's numbers come one after another, and its counters count each of them once."""
    begun = {record.hash for record in watch.records[: watch.records.index(first) + 1]}
    later = [each for record in watch.records if record.hash not in begun for each in record.manifest.settled]
    for alias, entry in watch.reader.lineage.table.items():
        numbers = [each.sequence for each in later if each.institution == alias]
        assert numbers == list(range(entry.watermark - len(numbers) + 1, entry.watermark + 1))
        assert entry.counters.aggregated + entry.counters.stale + entry.counters.rejected == entry.watermark
