"""examples/node, written from docs/wire-format.md alone, takes part in a real federation beside a worker of ours."""

import json
import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation
from dp_accounting.rdp import RdpAccountant

from broker_config.authority import Authority
from broker_config.connection import ConnectionSettings
from broker_config.keyring import save_identity, save_trust
from broker_config.topology import DEAD_LETTERS
from shared.broker import Message
from shared.messages import Settlement
from shared.parameters import Parameters
from shared.plan import LocalPlan, Plan, PrivacyPlan
from tests.builders import RUN, a_plan, name_of, small_limits
from tests.conftest import RabbitmqServer
from tests.guarding import GuardedServer, Keyring
from tests.running import Leader, Watch, Worker, begin, require_each_once, require_replay, trained

pytestmark = pytest.mark.rabbitmq

FOLDER = Path(__file__).parent.parent / "examples" / "node"
INPUTS = 300
"""Enough that a model and an update need two chunks of 1 KiB."""
MODEL = {"weight": np.zeros((1, INPUTS), np.float32), "bias": np.zeros(1, np.float32)}
ROWS = [([float((3 * row + column) % 5 - 2) for column in range(INPUTS)], row % 2) for row in range(6)]
LOCAL = LocalPlan(steps=2, sample_rate=1.0, learning_rate=0.0625, updates=20)
WITHOUT_NOISE = 'allow_no_privacy = "yes, updates may leave without noise"'


@pytest.fixture(scope="session")
def node() -> str:
    """The program, with what `setup/node` installs; absent, a skip at a desk and a failure where it is demanded."""
    program = shutil.which("node") or shutil.which("nodejs")
    if program and (FOLDER / "node_modules" / "amqplib").is_dir():
        return program
    if os.environ.get("CI") or os.environ.get("FEDQUEUE_REQUIRE_RABBITMQ"):
        raise RuntimeError("the client in Node is not installed: setup/node installs it")
    pytest.skip("the client in Node is not installed: setup/node installs it")


def a_kit(folder: Path, connection: ConnectionSettings, *, keyring: Keyring, policy: str = "") -> Path:
    """What onboarding hands to bank-b, and its rows."""
    folder.mkdir()
    save_identity(keyring.identities["bank-b"], folder / "keys")
    save_trust(keyring.trust, folder / "keys")
    login = connection.model_dump(mode="json", include={"certificate_file", "key_file", "ca_file"}, exclude_none=True)
    if connection.password is not None:
        (folder / "password").write_text(connection.secret() + "\n")
        (folder / "password").chmod(0o600)
        login = {"password_file": "password"}
    settings = {"institution": "bank-b", "incarnation": 1, "pseudonym": name_of("bank-b"), "run_id": RUN, "num_examples": 300}
    broker = {"url": connection.url, "user": "bank-b", **login, "keys_folder": "keys"}
    lines = [*_toml(settings), "", "[broker]", *_toml(broker), "", "[policy]", policy]
    (folder / "client.toml").write_text("\n".join(lines) + "\n")
    (folder / "rows.csv").write_text("".join(",".join(map(str, [*inputs, label])) + "\n" for inputs, label in ROWS))
    return folder


def _toml(values: dict[str, Any]) -> list[str]:
    return [f"{name} = {json.dumps(value)}" for name, value in values.items()]


def run_client(node: str, kit: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [node, FOLDER / "client.js", "--config", kit / "client.toml", "--data", kit / "rows.csv", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def founded(server: GuardedServer, keyring: Keyring, plan: Plan) -> Watch:
    begin(server, plan, model=MODEL, table=keyring.table(("bank-a", "bank-b")))
    return Watch(server.connect("operator"))


def logistic(base: Parameters) -> Parameters:
    """Two steps of gradient descent on ROWS, number by number in float64: the delta as the Node client must find it."""
    start = [*base["weight"].ravel().tolist(), *base["bias"].tolist()]
    model = list(start)
    for _ in range(LOCAL.steps):
        slope = [0.0] * len(model)
        for inputs, label in ROWS:
            score = model[-1]
            for place, each in enumerate(inputs):
                score += each * model[place]
            error = 1 / (1 + math.exp(-score)) - label
            for place, each in enumerate([*inputs, 1.0]):
                slope[place] += error * each
        model = [each - LOCAL.learning_rate * down / len(ROWS) for each, down in zip(model, slope, strict=True)]
    delta = np.array([after - before for after, before in zip(model, start, strict=True)], np.float32)
    return {"weight": delta[:-1].reshape(1, INPUTS), "bias": delta[-1:]}


def delta_of(settlement: Settlement, base: Parameters) -> Parameters:
    return logistic(base) if settlement.institution == name_of("bank-b") else trained(settlement, base)


def test_an_institution_in_node_reads_sealed_models_and_gives_sealed_updates(
    node: str, rabbitmq_server: RabbitmqServer, tmp_path: Path
) -> None:
    keyring = Keyring(sealed=True)
    server = GuardedServer(rabbitmq_server, keyring)
    watch = founded(server, keyring, a_plan({"buffer_size": 1}, local=LOCAL, limits=small_limits(chunk_bytes=1024)))
    kit = a_kit(tmp_path / "kit", rabbitmq_server.logins.settings("bank-b"), keyring=keyring, policy=WITHOUT_NOISE)
    with Leader(server, tmp_path / "aggregator", guard=server.guards["aggregator"]), Worker(server, "bank-a", tmp_path):
        first = run_client(node, kit, "--updates", "2")
        assert watch.until(lambda: watch.entry("bank-b").watermark == 2)
        nonce = watch.entry("bank-b").nonce
        second = run_client(node, kit, "--updates", "1")
        assert watch.until(lambda: watch.entry("bank-b").watermark >= 3 and watch.entry("bank-a").watermark)

    assert (first.stderr, second.stderr) == ("", "")
    assert watch.entry("bank-b").nonce > nonce
    told = [line.partition(" in version")[0] for line in (first.stdout + second.stdout).splitlines() if line.startswith("update")]
    assert told == [f"update {number}: aggregated" for number in (1, 2, 3)]
    assert watch.outcomes("bank-b") == [(1, "aggregated"), (2, "aggregated"), (3, "aggregated")]
    require_each_once(watch)
    require_replay(watch, delta_of, MODEL)
    assert rabbitmq_server.depth(DEAD_LETTERS) == 0


def test_an_update_of_the_client_that_another_key_signed_is_put_aside_and_counts_once_it_is_signed_right(
    node: str, rabbitmq_server: RabbitmqServer, tmp_path: Path
) -> None:
    keyring = Keyring(sealed=True)
    server = GuardedServer(rabbitmq_server, keyring)
    watch = founded(server, keyring, a_plan({"buffer_size": 1}, local=LOCAL, limits=small_limits(chunk_bytes=1024)))
    kit = a_kit(tmp_path / "kit", rabbitmq_server.logins.settings("bank-b"), keyring=keyring, policy=WITHOUT_NOISE)
    script = [node, Path(__file__).parent / "foreign_key.mjs", kit / "client.toml", kit / "rows.csv"]
    with Leader(server, tmp_path / "aggregator", guard=server.guards["aggregator"]):
        with subprocess.Popen(script) as impostor:
            letters = the_letters(server, 2)
            impostor.kill()
        before = watch.until(lambda: watch.entry("bank-b").nonce) and watch.entry("bank-b").watermark
        assert run_client(node, kit, "--updates", "0").returncode == 0
        assert watch.until(lambda: watch.entry("bank-b").watermark)

    assert [letter.kind for letter in letters] == ["update", "update"]
    assert {letter.headers["fault"] for letter in letters} == {"ForgedMessageError"}
    assert before == 0
    assert watch.outcomes("bank-b") == [(1, "aggregated")]
    require_replay(watch, delta_of, MODEL)


def the_letters(server: GuardedServer, count: int) -> list[Message]:
    """So many dead letters, within the patience of a broker."""
    broker = server.connect("operator")
    broker.consume(DEAD_LETTERS, prefetch=count)
    arrived = [broker.receive(20) for _ in range(count)]
    broker.close()
    return [delivery.message for delivery in arrived if delivery is not None]


def test_the_client_checks_itself_against_the_rfcs_and_the_page(node: str) -> None:
    result = subprocess.run([node, "--test"], cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False)

    assert result.returncode == 0, result.stdout


def test_over_tls_with_a_certificate_the_client_adds_noise_and_spends_its_budget_to_the_end(
    node: str, tls_server: RabbitmqServer, tmp_path: Path
) -> None:
    keyring = Keyring(sealed=True)
    server = GuardedServer(tls_server, keyring)
    asked = PrivacyPlan(mechanism="update-gaussian", epsilon=3.0, target_delta=1e-5, clipping_norm=0.5)
    local = LOCAL.model_copy(update={"updates": 3})
    watch = founded(server, keyring, a_plan({"buffer_size": 1}, local=local, limits=small_limits(), privacy=asked))
    kit = a_kit(tmp_path / "kit", tls_server.logins.settings("bank-b"), keyring=keyring)
    with Leader(server, tmp_path / "aggregator", guard=server.guards["aggregator"]), Worker(server, "bank-a", tmp_path):
        result = run_client(node, kit)
        assert watch.until(lambda: watch.entry("bank-b").standing)

    assert (result.returncode, result.stderr) == (0, "")
    assert watch.outcomes("bank-b") == [(1, "aggregated"), (2, "aggregated"), (3, "aggregated")]
    entry = watch.entry("bank-b")
    assert (entry.mechanism, entry.target_delta, entry.standing) == ("update-gaussian", 1e-5, "budget_spent")
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(GaussianDpEvent(entry.noise_multiplier), 3)
    assert accountant.get_epsilon(1e-5) == pytest.approx(entry.epsilon_spent, rel=0.01)
    assert 2.99 < entry.epsilon_spent <= 3.0


def test_the_client_talks_to_no_broker_that_another_authority_vouches_for(
    node: str, tls_server: RabbitmqServer, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "ca", name="another federation")
    (tmp_path / "ca.pem").write_bytes(other.certificate)
    settings = tls_server.logins.settings("bank-b").model_copy(update={"ca_file": tmp_path / "ca.pem"})
    result = run_client(node, a_kit(tmp_path / "kit", settings, keyring=Keyring()))

    assert result.returncode == 1
    assert re.search(
        "stopped: no connection to amqps://.* as bank-b: .*(self-signed|unable to (get|verify)|signature)", result.stderr
    )


def test_a_client_that_is_cut_off_ends_with_one_sentence(node: str, rabbitmq_server: RabbitmqServer, tmp_path: Path) -> None:
    keyring = Keyring()
    founded(GuardedServer(rabbitmq_server, keyring), keyring, a_plan())
    kit = a_kit(tmp_path / "kit", rabbitmq_server.logins.settings("bank-b"), keyring=keyring)
    command = [node, FOLDER / "client.js", "--config", kit / "client.toml", "--data", kit / "rows.csv"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as client:
        rabbitmq_server.drop("bank-b")
        _, told = client.communicate(timeout=60)

    assert client.returncode == 1
    assert told.startswith("stopped: ")
    assert told.count("\n") == 1
