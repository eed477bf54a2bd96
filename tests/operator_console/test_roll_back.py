"""`fedqueue roll-back`: what it rebuilds, shows and publishes; and that everybody trains on from it."""

import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from aggregator_worker.roll_back import RollBack, orders, rolled_back
from broker_config.connection import connect
from broker_config.logins import load, save
from broker_config.memory import MemoryRabbit
from broker_config.service import read_settings
from broker_config.streams import fetch_state
from broker_config.topology import MODEL, topology
from client_worker import worker as client_worker
from client_worker.cli import member
from client_worker.dataset_entry import dataset_facts, with_count
from client_worker.ledger import Ledger
from client_worker.local_data import open_data
from client_worker.local_work import LocalWork
from client_worker.settings import ClientSettings
from operator_console.cli import app
from operator_console.federation_folder import Facts, FederationFolder, named
from operator_console.init_command import init
from operator_console.institution_commands import quarantine
from operator_console.lineage_commands import NoSuchVersionError, verify
from operator_console.operation_commands import stop
from operator_console.replay_command import rebuilt, replay
from operator_console.roll_back_command import Request, compared, prospect_of, roll_back, told
from shared import messages
from shared.errors import SettingsError
from shared.messages import Entry
from tests.builders import BY_PSEUDONYM, NAMES, RUN, SECRET, a_plan, an_operation, an_update, name_of
from tests.conftest import JOURNALLED
from tests.leading import give, leading
from tests.running import Hand, Leader, Watch, begin, give_order
from tests.tasks import RIPENESS

PLAN = a_plan({"server_momentum": 0.5, "max_wait_seconds": 0.1}, broadcast="bfloat16")


@pytest.fixture
def federation(tmp_path):
    """The operator's folder, as far as a look needs it."""
    folder = FederationFolder(tmp_path)
    (tmp_path / "run.secret").write_text(SECRET.decode())
    (tmp_path / "run.secret").chmod(0o600)
    folder.keep(Facts(run_id=RUN, task="toy", title="Toy", institutions=named(NAMES)))
    return folder


class Run:
    """A federation with momentum, models in bfloat16 and journals, on the broker in memory; a version is made of each update."""

    def __init__(self, folder) -> None:
        self.rabbit = MemoryRabbit(topology(NAMES, JOURNALLED))
        begin(self.rabbit, PLAN)
        self.watch = Watch(self.rabbit.connect("operator"))
        self.hands = {name: Hand(self.rabbit, name) for name in NAMES}
        self.folder = folder
        self.given = dict.fromkeys(NAMES, 0)
        self.numbers = iter(range(1, 100))

    def fold(self, institution: str, *values: float) -> None:
        version, self.given[institution] = self.watch.head.manifest.version, self.given[institution] + 1
        self.hands[institution].send(self.watch.head, self.given[institution], *values)
        assert self.watch.until(lambda: self.watch.head.manifest.version == version + 1)

    def confine(self, institution: str) -> None:
        give_order(self.rabbit, an_operation("quarantine", next(self.numbers), institution=institution))
        assert self.watch.until(lambda: self.watch.entry(institution).quarantined)

    def roll_back(self, model, back: RollBack) -> None:
        head = self.watch.head
        identity = f"{next(self.numbers):032x}"
        replaces = head.manifest.model.hash
        for each in orders(model, back, run_id=RUN, operation_id=identity, replaces=replaces, chunk_bytes=64):
            give_order(self.rabbit, each)
        assert self.watch.until(lambda: self.watch.head.manifest.version == head.manifest.version + 1)
        assert rolled_back(self.watch.head.manifest) == back

    def wide(self):
        """The newest state, as the aggregator has it."""
        return fetch_state(self.watch.broker, self.watch.head)["model/w"]

    def rebuilt(self, **choices):
        return rebuilt(self.rabbit.connect("operator"), BY_PSEUDONYM, **choices)

    def prospect(self, federation, without=None, to=None, *, journals=True):
        return prospect_of(self.rabbit.connect("operator"), Request(federation, without, to), journals=journals)


@pytest.fixture
def run(tmp_path):
    """Versions 1 to 4: of bank-b, bank-a (poison), bank-c, bank-b."""
    run = Run(tmp_path / "aggregator")
    with Leader(run.rabbit, run.folder):
        run.fold("bank-b", 9, 0, 0)
        run.fold("bank-a", 900, 900, 900)
        run.fold("bank-c", 0, 9, 0)
        run.fold("bank-b", 0, 0, 9)
        yield run


def test_the_model_without_an_institution_is_the_replays(run, federation):
    # shares .3 and .6, beta .5. Without bank-a: m = (2.7, 0, 0), then half of it (for nothing), then + (0, 5.4, 0), + (0, 0, 2.7)
    prospect = run.prospect(federation, "bank-a")
    assert prospect.model["w"].tolist() == pytest.approx([2.7 * 1.875, 5.4 * 1.5, 2.7], rel=1e-5)
    assert prospect.model["w"].tobytes() == run.rebuilt(without=name_of("bank-a")).replay.state.model["w"].tobytes()
    assert prospect.to_version == 4
    lines = list(told(prospect, Request(federation, "bank-a", None)))
    assert lines[0] == "newest: version 4; wanted: version 4 without bank-a"
    assert "version 4 without bank-a: 3 updates folded, 1 left out" in lines
    assert lines[-1] == f"held-out figures: none, {federation.aggregator_file} is not here to name held-out rows"


def test_an_earlier_version_is_taken_as_the_broker_holds_it_in_float32(run, federation):
    prospect = run.prospect(federation, to=1, journals=False)
    assert prospect.made == ("as the broker holds it",)
    assert prospect.model["w"].tobytes() == run.rebuilt(version=1).replay.state.model["w"].tobytes()
    lines = list(told(prospect, Request(federation, None, 1)))
    assert "Versions 2 to 4 no longer count in the model, whoever gave their updates." in lines


def test_an_earlier_version_without_an_institution_is_both(run, federation):
    # version 3: m = (2.7, 0, 0), half of it for bank-a's, then half of that and (0, 5.4, 0)
    prospect = run.prospect(federation, "bank-a", 3)
    assert prospect.model["w"].tolist() == pytest.approx([2.7 * 1.75, 5.4, 0], rel=1e-5)


@pytest.mark.parametrize(
    ("choices", "error", "sentence"),
    [
        ({"to": 4}, SettingsError, "version 4 is the newest: there is nothing to roll back"),
        ({"to": 9}, NoSuchVersionError, "holds the versions 0 to 4, not 9"),
        (
            {"without": "bank-a", "journals": False},
            SettingsError,
            r"this federation keeps none: `fedqueue init --journal SIZE` has them. What is left is --to VERSION",
        ),
    ],
)
def test_what_cannot_be_had_is_said_with_what_is_missing(run, federation, choices, error, sentence):
    with pytest.raises(error, match=sentence):
        run.prospect(federation, **choices)


def test_a_version_whose_model_the_broker_has_dropped_needs_journals(run, federation, monkeypatch):
    monkeypatch.setattr("operator_console.roll_back_command.oldest_kept", lambda _broker, _chain: [3, 4])
    with pytest.raises(SettingsError, match=rf"{MODEL} no longer has the model of version 1: its models begin with version 3"):
        run.prospect(federation, to=1, journals=False)
    assert run.prospect(federation, to=1).model["w"].tobytes() == run.rebuilt(version=1).replay.state.model["w"].tobytes()


def test_an_institution_of_which_nothing_was_folded_is_no_reason_to_roll_back(run, federation):
    run.confine("bank-a")
    run.roll_back(run.prospect(federation, "bank-a").model, RollBack(4, name_of("bank-a")))
    with pytest.raises(SettingsError, match="version 5 holds no update of bank-a that could be left out, nothing would change"):
        run.prospect(federation, "bank-a")


def test_versions_after_a_roll_back_are_replayed_from_it_to_the_bit(run, federation):
    run.confine("bank-a")
    run.roll_back(run.prospect(federation, "bank-a").model, RollBack(4, name_of("bank-a")))
    before = run.wide()
    run.fold("bank-c", 9, 9, 9)
    whole, less = run.rebuilt(), run.rebuilt(without=name_of("bank-a"))
    for each in (whole, less):  # what was published is what it would have been without bank-a, momentum begun anew
        assert each.replay.state.model["w"].tobytes() == run.wide().tobytes()
    assert (whole.replay.folded, less.replay.folded, less.replay.left_out) == (5, 4, 1)
    assert whole.roll_backs == less.roll_backs == {5: RollBack(4, name_of("bank-a"))}
    assert (whole.replay.off_rule, less.replay.off_rule) == (0, 0)
    # bank-c has 600 of the 900 examples that two institutions have: 1/3 x 2/3 x 2 of (9, 9, 9)
    assert (run.wide() - before).tolist() == pytest.approx([4, 4, 4], rel=1e-5)


def test_a_second_offender_is_left_out_of_what_the_first_roll_back_kept_too(run, federation):
    run.confine("bank-a")
    run.roll_back(run.prospect(federation, "bank-a").model, RollBack(4, name_of("bank-a")))
    run.fold("bank-b", 9, 9, 9)
    # bank-b's alone are gone: version 3 is m = (0, 5.4, 0), 4 half of it; 6 nothing, for the momentum begins anew
    prospect = run.prospect(federation, "bank-b")
    assert prospect.model["w"].tolist() == pytest.approx([0, 5.4 * 1.5, 0], rel=1e-5)
    assert any("version 5 is a roll-back to version 4: the replay went on from there" in line for line in prospect.made)


def test_figures_are_shown_side_by_side():
    assert list(compared({"auc": 0.51239, "log_loss": None}, {"auc": 0.75, "log_loss": 0.5})) == [
        "held-out auc: 0.5124 now, 0.7500 after it",
        "held-out log_loss: - now, 0.5000 after it",
    ]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "say whom to do without, --without INSTITUTION, or where to go back to, --to VERSION"),
        (["--to", "3", "--quarantine"], "--quarantine needs --without, which says whom"),
    ],
)
def test_a_command_that_says_too_little_is_refused(words, sentence, tmp_path):
    refused = CliRunner().invoke(app, ["roll-back", *words, "--dir", str(tmp_path)])
    assert refused.exit_code == 2
    assert sentence in " ".join(refused.output.split())


# --- a real federation: two institutions train, a third poisons ---------------------------------------------------------------


def fruit(rows, seed):
    """What is heavy and red is ripe."""
    features = np.random.default_rng(seed).uniform(0, 10, (rows, 2))
    lines = [f"{weight:.3f},{colour:.3f},{'yes' if weight + colour > 10 else 'no'}\n" for weight, colour in features]
    return "weight,colour,ripe\n" + "".join(lines)


class Institution(threading.Thread):
    """What `fedqueue-client` runs, on a thread of this process, from the settings that `fedqueue init` wrote."""

    def __init__(self, folder, name: str, seed: int) -> None:
        super().__init__()
        kit = folder / "institutions" / name
        (kit / "training.csv").write_text(fruit(200, seed))
        text = (kit / "client.toml").read_text().replace("# num_examples = 1000 ", "num_examples = 200 ")
        (kit / "client.toml").write_text("at_least_seconds = 0.3\n" + text)
        self.settings = read_settings(ClientSettings, kit / "client.toml")
        self.stopping = threading.Event()

    def run(self) -> None:
        settings, data = self.settings, open_data(self.settings)
        ledger = Ledger(settings.ledger_file, run_id=settings.run_id, institution=settings.institution, incarnation=1)
        ledger.require_dataset(dataset_facts(settings, fingerprint=data.fingerprint, unit=data.unit))
        work = LocalWork(member(settings), with_count(settings, data, ledger), ledger, self.stopping)
        client_worker.run(lambda: connect(settings.broker, name="test/client"), work, self.stopping)

    def __enter__(self) -> "Institution":
        self.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.stopping.set()
        self.join(30)
        assert not self.is_alive()


@dataclass
class Federation:
    """north and south train; west poisons three times, and each time is folded."""

    folder: Path
    watch: Watch
    names: dict[str, str]

    def alias(self, name: str) -> str:
        return next(alias for alias, each in self.names.items() if each == name)

    def entry(self, name: str) -> Entry:
        return (self.watch.reader.lineage.table or {})[self.alias(name)]

    def until(self, look) -> None:
        assert self.watch.until(look)

    def poison(self) -> None:
        """A well formed update of west that drives the model the wrong way."""
        number = self.entry("west").watermark + 1
        delta = {name: np.full_like(each, -30 * number) for name, each in self.watch.model().items()}
        run_id = self.watch.head.manifest.run_id
        update = an_update("west", number, base=self.watch.head, run_id=run_id, num_examples=200)
        give(self.folder, update, delta)
        self.until(lambda: self.entry("west").watermark == number)

    def honest(self) -> int:
        return self.entry("north").counters.aggregated + self.entry("south").counters.aggregated

    def spoil(self) -> None:
        for _ in range(3):
            before = self.honest()
            self.until(lambda before=before: self.honest() >= before + 3)
            self.poison()
        assert self.entry("west").counters.aggregated == 3

    def require_trained_on(self, version: int) -> None:
        """Both honest institutions have sent what they trained on this version or a later one, and it was folded."""

        def authors():
            return {
                each.institution for each in self.watch.settled if each.base_version >= version and each.outcome == "aggregated"
            }

        self.until(lambda: authors() == {self.alias("north"), self.alias("south")})

    def take_rows(self, file: Path) -> None:
        """The operator has become suspicious, and holds rows of its own from now on."""
        file.write_text(fruit(300, seed=9))
        settings = self.folder / "aggregator.toml"
        settings.write_text(settings.read_text().replace('# held_out_file = "rows.csv"', f'held_out_file = "{file}"'))


@pytest.fixture
def spoiled(broker_folder, tmp_path):
    """A founded federation with journals while it runs."""
    (tmp_path / "task.toml").write_text(RIPENESS)
    choices = {"epsilon": "none", "journal": "20MiB", "rule": "fedbuff", "server_learning_rate": 0.5}
    init(task=str(tmp_path / "task.toml"), institution=["north", "south", "west"], folder=broker_folder, **choices)
    with ExitStack() as stack:
        operator = stack.enter_context(closing(connect(load(broker_folder).settings("operator"), name="test/operator")))
        federation = Federation(broker_folder, Watch(operator), FederationFolder(broker_folder).names())
        stack.enter_context(leading(broker_folder))
        for number, name in enumerate(("north", "south"), start=1):
            stack.enter_context(Institution(broker_folder, name, seed=number))
        federation.spoil()
        yield federation


def require_published_again(federation, out) -> None:
    """Nothing of west is in the newest model: with it or without it, the journals give what was published."""
    for without in (None, "west"):
        replay(version=None, without=without, out=out, folder=federation.folder)
        head = federation.watch.head.manifest
        assert messages.encode_model(head.run_id, load_file(out)).hash == head.model.hash


@pytest.mark.rabbitmq
@pytest.mark.timeout(180)
def test_a_poisoned_model_is_rolled_back_without_the_poisoner_and_the_others_train_on(spoiled, tmp_path, capsys):
    folder, watch = spoiled.folder, spoiled.watch
    spoiled.take_rows(tmp_path / "held_out.csv")
    roll_back(without="west", folder=folder, dry_run=True)
    shown = capsys.readouterr().out
    assert "3 left out" in shown
    (auc,) = [line.split() for line in shown.splitlines() if line.startswith("held-out auc:")]
    assert (auc[3], auc[5:]) == ("now,", ["after", "it"])
    assert float(auc[4]) > 0.9  # what it is now depends on how far the others have mended it
    with pytest.raises(SettingsError, match=r"west still takes part, .*: first `fedqueue institution quarantine west`, or add"):
        roll_back(without="west", folder=folder, yes=True)
    quarantine("west", reason="drives the model away", folder=folder)
    roll_back(without="west", folder=folder, yes=True)
    said = capsys.readouterr().out

    spoiled.until(lambda: any(rolled_back(record.manifest) for record in watch.records))
    (made,) = [record.manifest for record in watch.records if rolled_back(record.manifest)]
    assert (rolled_back(made), made.settled) == (RollBack(made.version - 1, spoiled.alias("west")), [])
    assert f"version {made.version} is published: version {made.version - 1} without west" in said
    spoiled.require_trained_on(made.version)
    spoiled.poison()
    assert spoiled.entry("west").counters.aggregated == 3
    less = rebuilt(watch.broker, spoiled.names, version=made.version - 1, without=spoiled.alias("west")).replay.state.model
    assert messages.encode_model(made.run_id, less).hash == made.model.hash

    stop(folder)
    spoiled.until(lambda: watch.head.manifest.phase == "finished")
    require_published_again(spoiled, tmp_path / "model.safetensors")
    roll_back(to=made.version, folder=folder, yes=True)  # a finished run's model can still be another one
    assert f"is published: version {made.version}; the run stays finished" in capsys.readouterr().out
    verify(folder)
    assert f"to version {made.version - 1} without west" in " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.timeout(180)
def test_without_journals_an_earlier_version_is_gone_back_to_and_nobody_is_left_out(spoiled, capsys):
    folder, watch = spoiled.folder, spoiled.watch
    logins = load(folder)
    save(logins.model_copy(update={"limits": replace(logins.limits, journal_stream_bytes=None)}), folder)
    west = spoiled.alias("west")
    first = next(record for record in watch.records if any(each.institution == west for each in record.manifest.settled))
    with pytest.raises(SettingsError, match="this federation keeps none"):
        roll_back(without="west", folder=folder, yes=True, quarantine=True)
    roll_back(to=first.manifest.version - 1, folder=folder, yes=True)
    assert "no longer count in the model, whoever gave their updates" in capsys.readouterr().out
    spoiled.until(lambda: any(rolled_back(record.manifest) for record in watch.records))
    (made,) = [record.manifest for record in watch.records if rolled_back(record.manifest)]
    before = next(record.manifest for record in watch.records if record.manifest.version == first.manifest.version - 1)
    assert (rolled_back(made), made.model) == (RollBack(before.version), before.model)
    assert watch.records[[record.manifest for record in watch.records].index(made) - 1].manifest.phase == "paused"
    spoiled.require_trained_on(made.version)
