"""`fedqueue-client --dry-run`: a real training of a real bank, of which nothing is sent, charged or kept."""

import re
import secrets
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker_config.connection import ConnectionSettings
from broker_config.definitions import Permission
from broker_config.provision import administration
from broker_config.topology import LINEAGE, MODEL, update_queue
from client_worker import cli
from client_worker.ledger import Ledger
from client_worker.mechanism import Charge
from client_worker.policy import PlanRefusedError
from client_worker.privacy import epsilon_after, planned_noise_multiplier
from shared.broker import Message
from shared.errors import PrivacyBudgetExhaustedError, TopologyError
from shared.plan import Plan
from tests import private_bank
from tests.builders import RUN
from tests.conftest import MemoryServer, RabbitmqServer
from tests.private_bank import NUM_EXAMPLES, START, TRAINING_ROWS, private_plan
from tests.recording import RecordingBroker
from tests.running import begin

NOWHERE = ConnectionSettings(url="amqp://127.0.0.1:1/nowhere", user="bank-a", password="unused")
PLAN = private_plan(local={"updates": 3, "steps": 2})


class OnlyReading(RecordingBroker):
    """A login's connection that takes nothing off a queue; a stream stays as it is when it is read."""

    def consume(self, queue: str, **how) -> None:
        assert queue in {LINEAGE, MODEL}
        self._broker.consume(queue, **how)


class Bank:
    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server, self.folder = MemoryServer(), folder
        self.sent: list[Message] = []
        self.state = folder / "state"
        monkeypatch.setattr(
            cli, "connect", lambda settings, name: OnlyReading(self.server.connect(settings.user), self.sent.append)
        )

    def run(self, plan: Plan = PLAN, settings: str = "") -> str:
        begin(self.server, plan, model=START)
        return dry_run(private_bank.config(self.folder, NOWHERE, settings))


def dry_run(config: Path) -> str:
    done = CliRunner().invoke(cli.app, ["--config", str(config), "--dry-run"], env={"COLUMNS": "300"}, catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.fixture
def bank(tmp_path, monkeypatch) -> Bank:
    return Bank(tmp_path / "bank", monkeypatch)


def spent_by(updates: int) -> float:
    """Of updates of two steps on all rows, at the noise that the plan needs."""
    return epsilon_after([Charge(planned_noise_multiplier(PLAN), 1.0, 2 * updates)], 1e-5)


def test_it_says_what_would_leave_and_what_it_would_cost(bank):
    said = bank.run(settings="[limits]\nupload_bytes_per_second = 40000")
    assert re.search(r"would leave +update 1, \d+ bytes in 1 message, in 0 s at 40,000 bytes a second", said)
    assert f"num_examples {NUM_EXAMPLES}; mechanism dp-sgd, unit record, clipping_norm 1" in said
    assert "bias 1, weight 1x6 as float32" in said
    assert f"epsilon {spent_by(1):.3g}, which would make {spent_by(1):.3g} of the plan's 2; your policy allows 3" in said
    assert re.search(
        r"the gradients of each record: they were [\d.]+ long on average .* after clipping at 1, \d+ % were cut", said
    )
    assert "nothing was sent, nothing was charged, and what was made is gone" in said


def test_nothing_is_sent_charged_or_kept(bank):
    bank.run()
    assert bank.sent == []
    assert [bank.server.depth(update_queue(name)) for name in bank.server.institutions] == [0, 0, 0]
    assert not bank.state.exists(), "not even an empty ledger"
    assert sorted(file.name for file in bank.folder.iterdir()) == sorted(
        ["client.toml", "task.toml", private_bank.TRAINING_FILE, private_bank.VALIDATION_FILE]
    )


def test_it_goes_on_from_what_is_spent_and_leaves_the_running_workers_ledger_as_it_is(bank):
    path = bank.state / "ledger.sqlite"
    ledger = Ledger(path, run_id=RUN, institution="bank-a", incarnation=1)  # locked, as by the worker
    sigma = planned_noise_multiplier(PLAN)
    charge = {"mechanism": "dp-sgd", "noise_multiplier": sigma, "sample_rate": 1.0, "steps": 2, "target_delta": 1e-5}
    ledger.reserve(charge, epsilon_spent=spent_by(1))
    before = {file.name: file.read_bytes() for file in bank.state.iterdir() if not file.name.endswith("-shm")}
    said = bank.run()
    after = {file.name: file.read_bytes() for file in bank.state.iterdir() if not file.name.endswith("-shm")}
    ledger.close()
    assert f"epsilon {spent_by(2) - spent_by(1):.3g}, which would make {spent_by(2):.3g} of the plan's 2" in said
    assert after == before


def test_where_no_number_is_public_the_true_one_is_used_and_not_released(bank):
    settings = private_bank.config(bank.folder, NOWHERE)
    text = settings.read_text().replace(f"num_examples = {NUM_EXAMPLES}", "count_epsilon = 0.1")
    begin(bank.server, PLAN, model=START)
    settings.write_text(text)
    assert f"num_examples {TRAINING_ROWS};" in dry_run(settings)
    assert not bank.state.exists()


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (private_plan({"epsilon": 9.0}), PlanRefusedError),
        (private_plan(local={"updates": 1, "steps": 2}), PrivacyBudgetExhaustedError),
    ],
)
def test_what_the_worker_would_not_train_is_not_rehearsed(bank, plan, error):
    ledger = Ledger(bank.state / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
    ledger.reserve({"mechanism": "dp-sgd", "noise_multiplier": 9.0, "sample_rate": 1.0, "steps": 2}, epsilon_spent=0.1)
    ledger.close()
    with pytest.raises(error):
        bank.run(plan)


@pytest.mark.rabbitmq
def test_it_needs_no_right_to_write(private_node, logins, tmp_path):
    vhost = f"rehearsal-{secrets.token_hex(4)}"
    server = RabbitmqServer(private_node, logins.model_copy(update={"vhost": vhost, "amqp": private_node.amqp_url(vhost)}))
    try:
        begin(server, PLAN, model=START)
        with administration(server.logins) as management:
            management.permit(Permission("bank-a", write="^$", read=r"^(fl\.lineage|fl\.model)$"))
        with pytest.raises(TopologyError):
            server.connect("bank-a").publish(update_queue("bank-a"), Message(b"", "hello", "1"))
        said = dry_run(private_bank.config(tmp_path / "bank", server.logins.settings("bank-a")))
        assert "nothing was sent" in said
        assert server.depth(update_queue("bank-a")) == 0
    finally:
        server.close()
