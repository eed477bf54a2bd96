"""P5 by every byte that a real institution publishes in a real DP training: what is there is on the list, and nothing private is.

The bank of these tests has rows on disk, trains with DP-SGD and sends reports. Its public number of examples is not its own.
"""

import csv
import hashlib
import secrets
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import msgpack
import numpy as np
import pytest
from sklearn.metrics import log_loss

from broker_config.connection import ConnectionSettings
from client_worker.course import Course
from client_worker.data import load_dataset
from client_worker.ledger_reading import read_ledger
from client_worker.local_data import open_data
from shared import messages
from shared.messages import Hello, PrivacyStatement, Report, Standing, Update
from shared.noise import noise_std
from shared.tasks.predictions import predict
from tests import private_bank
from tests.conftest import RabbitmqServer
from tests.private_bank import (
    NUM_EXAMPLES,
    SPEC,
    START,
    TRAINING_FILE,
    TRAINING_ROWS,
    VALIDATION_FILE,
    VALIDATION_ROWS,
    private_plan,
)
from tests.recording import RecordingServer
from tests.running import Leader, Watch, Worker, begin

pytestmark = pytest.mark.rabbitmq

MODELS = {"hello": Hello, "update": Update, "report": Report, "standing": Standing}
HEADERS = {"schema", "run", "id", "chunk", "chunks", "size", "sha256", "content", "envelope", "signature"}
ABOUT_AN_UPDATE = {"institution", "incarnation", "sequence"}
NOWHERE = ConnectionSettings(url="amqp://127.0.0.1:1/nowhere", user="bank-a", password="unused")
UPDATES, STEPS, REPORTS = 3, 2, 2
POLICY = f"[policy.reports]\nallowed = true\nepsilon_each = 0.2\nat_most = {REPORTS}"


class Published:
    """One run of the bank until its budget is spent: what it published, and what it knows and must not tell."""

    def __init__(self, server, folder):
        self.plan = private_plan(local={"updates": UPDATES, "steps": STEPS})
        self.folder = folder / "bank"
        settings = private_bank.settings(self.folder, NOWHERE, POLICY)
        self.data = open_data(settings)
        self.rows = load_dataset(SPEC, self.folder / TRAINING_FILE)
        self.reported, self.trained = [], []
        watched = replace(self.data, report=self._report, train=self._train)
        sent = RecordingServer(server)
        begin(server, self.plan, model=START)
        watch = Watch(server.connect("operator"))
        with (
            Leader(server, folder / "aggregator"),
            Worker(sent, "bank-a", folder, data=watched, policy=settings.policy) as worker,
        ):
            assert watch.until(lambda: watch.entry("bank-a").standing == "budget_spent")
        assert worker.failure is None
        assert [outcome for _, outcome in watch.outcomes("bank-a")] == ["aggregated"] * UPDATES
        self.messages = sent.sent
        self.ledger = read_ledger(folder / "bank-a" / "ledger.sqlite")
        self.bodies = [msgpack.unpackb(message.body) for message in sent.sent]

    def _report(self, model, epsilon):
        self.reported.append(self.data.report(model, 1e12))  # as good as without noise
        return self.data.report(model, epsilon)

    def _train(self, model, local, stop):
        self.trained.append(({name: array.copy() for name, array in model.items()}, local))
        return self.data.train(model, local, stop)

    def of(self, kind):
        """The messages of a kind that has no tensors."""
        return [messages.decode(MODELS[kind], kind, each.body, max_bytes=2**16) for each in self.messages if each.kind == kind]

    def updates(self):
        return [messages.decode_update(each.body, max_bytes=2**20) for each in self.messages if each.kind == "update"]


def values(node) -> Iterator[object]:
    """Every value at any depth of what was decoded without the code under test."""
    if isinstance(node, dict):
        node = [*node.keys(), *node.values()]
    if isinstance(node, list):
        for each in node:
            yield from values(each)
    else:
        yield node


def flat(tensors) -> np.ndarray:
    return np.concatenate([array.ravel() for _, array in sorted(tensors.items())]).astype(np.float64)


@pytest.fixture(scope="module")
def published(private_node, logins, tmp_path_factory):
    vhost = f"whitelist-{secrets.token_hex(4)}"
    server = RabbitmqServer(private_node, logins.model_copy(update={"vhost": vhost, "amqp": private_node.amqp_url(vhost)}))
    yield Published(server, tmp_path_factory.mktemp("published"))
    server.close()


def test_nothing_leaves_but_hello_update_report_and_standing(published):
    kinds = [message.kind for message in published.messages]
    assert Counter(kinds) == {"hello": 1, "update": UPDATES, "report": REPORTS, "standing": 1}


def test_each_message_has_the_fields_of_its_kind_and_no_other(published):
    for message, (schema, kind, fields, tensors) in zip(published.messages, published.bodies, strict=True):
        assert (schema, kind) == (1, message.kind)
        assert fields.keys() == MODELS[kind].model_fields.keys()
        if kind == "update":
            assert fields["privacy"].keys() == PrivacyStatement.model_fields.keys()
            shapes = [(name, tuple(shape)) for name, _dtype, shape, *_ in tensors]
            assert shapes == [(name, START[name].shape) for name in sorted(START)]
        else:
            assert tensors == []
        assert message.headers.keys() == HEADERS | (ABOUT_AN_UPDATE if kind == "update" else set())
    assert all(report.metrics.keys() == {"accuracy", "log_loss"} for report in published.of("report"))


def numbers_that_left(published) -> list[float]:
    left = [*values(published.bodies), *values([dict(message.headers) for message in published.messages])]
    return [each for each in left if isinstance(each, int | float) and not isinstance(each, bool)]


def test_the_number_of_examples_that_leaves_is_the_public_one(published):
    left = numbers_that_left(published)
    assert NUM_EXAMPLES in left
    assert not {TRAINING_ROWS, VALIDATION_ROWS, TRAINING_ROWS + VALIDATION_ROWS} & {*left}


def test_no_figure_leaves_as_it_was_before_the_noise(published):
    assert len(published.reported) == REPORTS
    true = [figure for report in published.reported for figure in report.values()]
    for base, _ in published.trained:
        predictions = predict(SPEC, base, published.rows.features)
        true.append(float(log_loss(published.rows.labels, predictions, labels=[0, 1])))
    left = np.array(numbers_that_left(published), dtype=np.float64)
    assert np.abs(left[:, None] - np.array(true)).min() > 1e-6


def test_the_delta_that_leaves_is_as_far_from_the_true_one_as_the_noise_says(published):
    far, (updates, deltas) = [], zip(*published.updates(), strict=True)
    for (base, local), delta in zip(published.trained, deltas, strict=True):
        true = published.data.train(base, replace(local, noise_multiplier=1e-9), Course())
        far.append(flat(delta) - flat(true))
    std = noise_std(updates[0].privacy, published.plan, NUM_EXAMPLES)
    assert std is not None
    # 21 numbers: their spread is within a factor of two of it but once in ten million runs
    assert 0.5 * std < np.concatenate(far).std() < 2.0 * std


def test_no_length_from_before_the_noise_leaves(published):
    kept = [msgpack.unpackb(packed) for packed in published.ledger.private.values()]
    assert [(each["of"], each["count"]) for each in kept] == [("gradients", TRAINING_ROWS * STEPS)] * UPDATES
    lengths = [each[name] for each in kept for name in ("before", "after", "largest")]
    left = np.array(numbers_that_left(published), dtype=np.float64)
    assert np.abs(left[:, None] - np.array(lengths)).min() > 1e-9
    assert not any(struct.pack(">d", length) in everything(published) for length in lengths)


def everything(published) -> bytes:
    """All that left, as bytes."""
    told = [
        message.body + repr((message.kind, message.message_id, dict(message.headers))).encode() for message in published.messages
    ]
    return b"\n".join(told)


def test_no_value_of_a_row_leaves(published):
    left, columns = everything(published), range(private_bank.INPUTS)
    for name in (TRAINING_FILE, VALIDATION_FILE):
        with (published.folder / name).open() as file:
            table = [row for row in csv.reader(file) if not row[0].startswith("x")]
        for text in (row[column] for row in table for column in columns):
            assert text.encode() not in left
            for form in ("<d", ">d", "<f", ">f"):
                assert struct.pack(form, float(text)) not in left
    for value in published.rows.features.ravel():
        assert struct.pack("<f", value) not in left
        assert struct.pack(">d", value) not in left


def test_no_name_of_a_file_column_or_host_leaves_nor_what_the_rows_hash_to(published):
    left = everything(published)
    digest = hashlib.sha256((published.folder / TRAINING_FILE).read_bytes()).hexdigest()
    assert published.data.fingerprint == digest
    for secret in (TRAINING_FILE, VALIDATION_FILE, "branch-7", str(published.folder), "overdue", socket.gethostname(), digest):
        assert secret.encode() not in left
