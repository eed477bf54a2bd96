"""`fedqueue-client personalise`: what it makes, what it says, and that nothing of it leaves."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

from broker_config.connection import ConnectionSettings
from broker_config.streams import newest, publish_record
from broker_config.topology import LINEAGE, MODEL, update_queue
from client_worker import cli
from client_worker.data import load_dataset
from client_worker.ledger import Ledger
from shared import messages
from shared.broker import Message
from shared.chunks import split
from shared.errors import DataError, FederationError, SettingsError, TopologyError
from shared.messages import BlobName, Location, ManifestRecord
from shared.plan import Plan
from shared.tasks.metrics import evaluate
from tests import private_bank
from tests.builders import NAMES, RUN, a_manifest
from tests.conftest import MemoryServer, RabbitmqServer
from tests.private_bank import INPUTS, SPEC, START, TRAINING_FILE, VALIDATION_FILE, private_plan
from tests.recording import RecordingBroker
from tests.running import Server, begin, members_table

NOWHERE = ConnectionSettings(url="amqp://127.0.0.1:1/nowhere", user="bank-a", password="unused")
LEARNED = {"weight": np.array([[0.0, 1.0, 0.0, 0.0, 0.0, 0.0]], np.float32), "bias": np.zeros(1, np.float32)}
"""A global model that looks at the second column; what is overdue at this bank is told by the first."""
HEADER = ",".join([*(f"x{number}" for number in range(1, INPUTS + 1)), "overdue"])


def next_version(server: Server, plan: Plan, model=LEARNED, *, model_at=None, best_at=None, **changes) -> ManifestRecord:
    """A version after the head, as an aggregator publishes it."""
    aggregator = server.connect("aggregator")
    head, _ = newest(aggregator)
    content = messages.encode_model(RUN, model, plan.broadcast)
    blob = BlobName(hash=content.hash, size=content.size)
    aggregator.publish_all(MODEL, list(split(content, kind="model", run_id=RUN, identity=blob.hash, chunk_bytes=2**20)))
    version = head.manifest.version + 1
    fields = {"model": blob, "plan": plan, "plan_hash": plan.hash, "table": members_table(), **changes}
    manifest = a_manifest(version, previous=head.hash, **fields)
    record = messages.manifest_record(1, manifest, model_at or Location(offset=version, chunks=1), best_at=best_at)
    publish_record(aggregator, record)
    aggregator.close()
    return record


class Bank:
    """A bank's folder, a federation on the in-memory broker that it belongs to, and all that it published to it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = MemoryServer()
        self.sent: list[Message] = []
        self.config = private_bank.config(folder, NOWHERE)
        self.folder = folder
        monkeypatch.setattr(
            cli, "connect", lambda settings, name: RecordingBroker(self.server.connect(settings.user), self.sent.append)
        )

    def found(self, plan: Plan | None = None, *, versions: int = 1, members=NAMES) -> None:
        plan = plan or private_plan()
        begin(self.server, plan, members, model=START)
        for number in range(versions):
            next_version(self.server, plan, {**LEARNED, "bias": np.full(1, -number, np.float32)}, table=members_table(members))

    def run(self, *words: str | Path):
        return CliRunner().invoke(cli.app, ["personalise", "--config", str(self.config), *map(str, words)], terminal_width=100)

    def refusal(self, *words: str | Path) -> FederationError:
        """What the command ends with; nothing was written and nothing published."""
        before = sorted(self.folder.rglob("*"))
        error = self.run(*words).exception
        assert isinstance(error, FederationError)
        assert (sorted(self.folder.rglob("*")), self.sent) == (before, [])
        return error

    @property
    def figures(self) -> dict:
        return json.loads((self.folder / "state" / "personalised.json").read_text())


@pytest.fixture
def bank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bank:
    return Bank(tmp_path / "bank", monkeypatch)


def test_nothing_is_published_and_the_ledger_of_the_running_worker_is_left_alone(bank: Bank) -> None:
    bank.found()
    path = bank.folder / "state" / "ledger.sqlite"
    ledger = Ledger(path, run_id=RUN, institution="bank-a", incarnation=1)  # which is locked, as by the worker
    ledger.require_dataset({"fingerprint": "f" * 64, "unit": "record"})
    before = {file.name: file.read_bytes() for file in path.parent.glob("ledger*")}

    done = bank.run()

    assert done.exit_code == 0, done.output
    assert bank.sent == []
    assert bank.server.depth(update_queue("bank-a")) == 0
    assert {file.name: file.read_bytes() for file in path.parent.glob("ledger*")} == before
    ledger.close()


def test_the_files_are_the_owners_alone_and_say_that_they_must_not_leave(bank: Bank) -> None:
    bank.found()
    (bank.folder / "state").mkdir()
    (bank.folder / "state" / "personalised.json").write_text("an older one that everybody can read")

    assert bank.run().exit_code == 0

    files = sorted((bank.folder / "state").iterdir())
    assert [file.name for file in files] == ["personalised.json", "personalised.safetensors"]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600, 0o600]
    assert "may leave" in bank.figures["note"]
    assert b"may leave" in files[1].read_bytes()


def test_the_three_models_are_measured_on_the_test_rows_and_the_best_is_named(bank: Bank) -> None:
    bank.found()

    said = bank.run().output

    test = load_dataset(SPEC, bank.folder / VALIDATION_FILE, for_training=False)
    kept = load_file(bank.folder / "state" / "personalised.safetensors")
    figures = bank.figures["figures"]
    assert figures["global"] == pytest.approx(evaluate(SPEC, LEARNED, test))
    assert figures["personalised"] == pytest.approx(evaluate(SPEC, kept, test))
    # The global model looks where nothing is to be seen; the bank's own 61 rows say where to look.
    assert figures["global"]["auc"] < 0.6
    assert min(figures["personalised"]["auc"], figures["alone"]["auc"]) > 0.8
    assert bank.figures["best"] == max(figures, key=lambda name: figures[name]["auc"])
    names = {"personalised": "the personalised model", "alone": "a model of these rows alone"}
    assert f"Best by auc: {names[bank.figures['best']]}, with" in said
    assert all(f"{each['auc']:.3f}" in said for each in figures.values())
    assert "neither the model nor these figures may leave" in " ".join(said.split())


def test_a_global_model_of_the_same_rows_is_left_as_it_is(bank: Bank) -> None:
    """Half of the rows say the opposite of the other half: nothing of them is better than a model that says nothing."""
    bank.found(versions=0)
    next_version(bank.server, private_plan(), {name: np.zeros_like(array) for name, array in LEARNED.items()})
    line = ",".join(["1"] * INPUTS)
    (bank.folder / TRAINING_FILE).write_text(HEADER + "\n" + f"{line},1\n{line},0\n" * 20)

    said = " ".join(bank.run().output.split())

    assert bank.figures["penalty"] is None
    assert "nothing did better than the global model itself" in said
    assert "Best by auc: the global model, with 0.500 against" in said
    assert "of the personalised model" not in said
    assert bank.figures["best"] != "personalised"  # of equals the global model is named


def test_an_earlier_version_can_be_begun_with(bank: Bank) -> None:
    bank.found(versions=3)

    assert bank.run("--version", "2").exit_code == 0

    assert bank.figures["version"] == 2
    test = load_dataset(SPEC, bank.folder / VALIDATION_FILE, for_training=False)
    second = {**LEARNED, "bias": np.full(1, -1, np.float32)}
    assert bank.figures["figures"]["global"] == pytest.approx(evaluate(SPEC, second, test))


def test_the_version_that_did_best_on_held_out_rows_can_be_begun_with(bank: Bank) -> None:
    bank.found(versions=2)
    best, _ = newest(bank.server.connect("operator"))
    name = best.manifest.model
    told = {"best_version": 2, "best_figure": (0.75).hex(), "best_model": name.hash, "best_size": name.size}
    next_version(bank.server, private_plan(), {**LEARNED, "bias": np.ones(1, np.float32)}, best_at=best.model_at, scalars=told)

    assert bank.run("--best").exit_code == 0

    assert (bank.figures["version"], bank.figures["global_model"]) == (2, name.hash)


def test_a_run_without_held_out_rows_has_no_best_version(bank: Bank) -> None:
    bank.found()

    assert "names no best version" in str(bank.refusal("--best"))
    assert bank.run("--best", "--version", "1").exit_code == 2


def test_a_model_that_the_stream_has_dropped_is_said_to_be_gone(bank: Bank) -> None:
    bank.found(versions=0)
    next_version(bank.server, private_plan(), model_at=Location(offset=7, chunks=1))

    error = bank.refusal()

    assert error.exit_code == 1
    assert "the model of version 1 is not on the broker, or no longer" in str(error)


def test_another_place_and_other_test_rows_can_be_named(bank: Bank, tmp_path: Path) -> None:
    bank.found()
    line = ",".join(["1"] * INPUTS)
    (tmp_path / "late.csv").write_text(f"{HEADER}\n{line},1\n{line},0\n{line},0\n")

    assert bank.run("--test", tmp_path / "late.csv", "--out", tmp_path / "mine.safetensors").exit_code == 0

    assert json.loads((tmp_path / "mine.json").read_text())["test_rows"] == 3
    assert load_file(tmp_path / "mine.safetensors").keys() == LEARNED.keys()
    assert not (bank.folder / "state").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        (HEADER + "\n", "has columns but no rows"),
        (HEADER + "\n" + "1,2,3,4,5,6,1\n" * 3, "'overdue' lacks a value among them"),
        (HEADER.replace("x3", "x9") + "\n1,2,3,4,5,6,1\n", "'x3' is missing"),
    ],
    ids=["an empty file", "a header alone", "one label only", "another column"],
)
def test_test_rows_that_cannot_judge_are_refused_before_anything_connects(bank: Bank, text: str, sentence: str) -> None:
    (bank.folder / VALIDATION_FILE).write_text(text)

    error = bank.refusal()

    assert isinstance(error, DataError)
    assert VALIDATION_FILE in str(error)
    assert sentence in str(error)


def test_there_must_be_test_rows_and_they_must_not_be_those_of_the_training(bank: Bank) -> None:
    assert "rows that are trained on" in str(bank.refusal("--test", bank.folder / TRAINING_FILE))
    assert "cannot be read" in str(bank.refusal("--test", bank.folder / "nowhere.csv"))
    bank.config.write_text(bank.config.read_text().replace("validation_file", "# validation_file"))
    assert "name a file that is not trained on with --test" in str(bank.refusal())


def test_training_rows_of_one_label_are_refused(bank: Bank) -> None:
    (bank.folder / TRAINING_FILE).write_text(HEADER + "\n" + "1,2,3,4,5,6,1\n" * 3)

    error = bank.refusal()

    assert isinstance(error, DataError)
    assert "has the same value in all 3 rows" in str(error)


def test_a_name_that_is_no_models_is_refused(bank: Bank) -> None:
    error = bank.refusal("--out", bank.folder / "ledger.sqlite")

    assert isinstance(error, SettingsError)
    assert "must end in .safetensors" in str(error)


def test_a_run_that_has_not_begun_has_nothing_to_begin_with(bank: Bank) -> None:
    bank.found(versions=0)

    error = bank.refusal()

    assert error.exit_code == 1
    assert "nothing has been learned yet" in str(error)


def test_a_version_that_does_not_exist_is_named(bank: Bank) -> None:
    bank.found(versions=2)

    assert str(bank.refusal("--version", "9")) == "there is no version 9 yet; the newest is 2"


def test_the_model_of_another_task_is_refused(bank: Bank) -> None:
    bank.found(private_plan().model_copy(update={"task_hash": "9" * 64}))

    error = bank.refusal()

    assert isinstance(error, SettingsError)
    assert "the task file here is another one" in str(error)


def test_a_model_of_another_form_is_refused(bank: Bank) -> None:
    bank.found(versions=0)
    next_version(bank.server, private_plan(), {"weight": np.zeros((1, 2), np.float32), "bias": np.zeros(1, np.float32)})

    error = bank.refusal()

    assert isinstance(error, SettingsError)
    assert "the array 'weight' has shape (1, 2), the model has (1, 6)" in str(error)


def test_whoever_is_no_member_gets_nothing(bank: Bank) -> None:
    bank.found(members=("bank-b", "bank-c"))

    error = bank.refusal()

    assert isinstance(error, TopologyError)
    assert "bank-a is not a member" in str(error)


def test_without_a_federation_the_lineage_is_said_to_be_empty(bank: Bank) -> None:
    error = bank.refusal()

    assert error.exit_code == 3
    assert "fl.lineage is empty" in str(error)


@pytest.mark.parametrize("words", [[], ["--check"]])
def test_the_worker_itself_still_wants_its_settings(words: list[str]) -> None:
    done = CliRunner().invoke(cli.app, words)

    assert done.exit_code == 2
    assert "name the settings file" in done.output


@pytest.mark.rabbitmq
def test_on_a_real_broker_it_runs_beside_the_worker_and_a_wrong_password_is_refused(
    rabbitmq_server: RabbitmqServer, tmp_path: Path
) -> None:
    plan, own = private_plan(), rabbitmq_server.logins.settings("bank-a")
    begin(rabbitmq_server, plan, model=START)
    next_version(rabbitmq_server, plan)
    good = private_bank.config(tmp_path / "bank", own)
    wrong = private_bank.config(tmp_path / "other", ConnectionSettings(url=own.url, user="bank-a", password="a wrong one"))
    service = rabbitmq_server.connect("bank-a")  # the worker is connected all the while
    service.consume(LINEAGE, prefetch=1)
    command = [str(Path(sys.executable).with_name("fedqueue-client")), "personalise", "--config"]
    programs = [
        subprocess.Popen([*command, str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for config in (good, wrong)
    ]
    (said, errors), (nothing, refusal) = [program.communicate(timeout=100) for program in programs]

    assert [program.returncode for program in programs] == [0, 3], errors
    assert "Best by auc" in said
    assert nothing == ""
    assert "the broker refused the user, its password" in refusal
    assert len(refusal.splitlines()) == 1
    assert rabbitmq_server.depth(update_queue("bank-a")) == 0
    assert newest(rabbitmq_server.connect("operator"))[0].manifest.version == 1
