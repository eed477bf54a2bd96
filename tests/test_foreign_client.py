"""A client that was written from docs/wire-format.md takes part in a real federation, beside workers of ours."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pika
import pytest

from broker_config.connection import address
from shared.plan import PrivacyPlan
from tests.builders import a_plan, name_of, small_limits
from tests.conftest import RabbitmqServer
from tests.foreign_client import ForeignClient
from tests.running import Leader, Watch, begin, require_each_once

pytestmark = pytest.mark.rabbitmq

VALUES = 1000
"""Enough that a model and an update need four chunks of 1 KiB and a fifth."""


def parameters_of(server: RabbitmqServer, user: str) -> pika.ConnectionParameters:
    host, port, vhost = address(server.logins.amqp)
    return pika.ConnectionParameters(host, port, vhost, pika.PlainCredentials(user, server.logins.users[user]))


@pytest.fixture
def watch(rabbitmq_server: RabbitmqServer) -> Watch:
    plan = a_plan(privacy=PrivacyPlan(), limits=small_limits(chunk_bytes=1024))
    begin(rabbitmq_server, plan, model={"w": np.arange(VALUES, dtype=np.float32)})
    return Watch(rabbitmq_server.connect("operator"))


@pytest.fixture
def client(rabbitmq_server: RabbitmqServer, watch: Watch) -> Iterator[ForeignClient]:
    client = ForeignClient(parameters_of(rabbitmq_server, "bank-b"), "bank-b", name_of("bank-b"))
    yield client
    client.close()


def test_a_client_written_from_the_page_takes_part(
    rabbitmq_server: RabbitmqServer, watch: Watch, client: ForeignClient, tmp_path: Path
) -> None:
    with Leader(rabbitmq_server, tmp_path):
        client.say_hello(num_examples=300)
        assert client.model() == {"w": ([VALUES], tuple(range(VALUES)))}
        for sequence, step in ((1, 2.0), (2, -4.0)):
            content = client.update(sequence, {"w": ([VALUES], (step,) * VALUES)}, num_examples=300, epsilon_spent=0.5 * sequence)
            client.send(sequence, content)
            client.wait_until_settled(sequence)
        client.send(2, content)
        assert watch.until(lambda: watch.entry("bank-b").counters.duplicate)
        seen = client.model()

    # bank-b has 300 of 1,000 examples: 0.3 x 2 and 0.3 x -4, each added in float32
    share = np.float32(0.3)
    expected = np.arange(VALUES, dtype=np.float32) + share * np.float32(2) + share * np.float32(-4)
    assert seen["w"][1] == tuple(expected.tolist())
    assert watch.outcomes("bank-b") == [(1, "aggregated"), (2, "aggregated")]
    assert watch.entry("bank-b").epsilon_spent == 1.0
    assert client.entry["watermark"] == 2
    require_each_once(watch)
