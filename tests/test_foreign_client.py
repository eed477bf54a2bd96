"""A client that was written from docs/wire-format.md takes part in a real federation, beside workers of ours."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def founded(
    server: RabbitmqServer, values: np.ndarray[Any, Any], aggregation: Mapping[str, Any] | None = None, **rest: Any
) -> Watch:
    plan = a_plan(aggregation, privacy=PrivacyPlan(), limits=small_limits(chunk_bytes=1024), **rest)
    begin(server, plan, model={"w": values})
    return Watch(server.connect("operator"))


@contextmanager
def joining(server: RabbitmqServer) -> Iterator[ForeignClient]:
    client = ForeignClient(parameters_of(server, "bank-b"), "bank-b", name_of("bank-b"))
    yield client
    client.close()


def give(client: ForeignClient, sequence: int, step: float) -> bytes:
    content = client.update(sequence, {"w": ([VALUES], (step,) * VALUES)}, num_examples=300, epsilon_spent=0.5 * sequence)
    client.send(sequence, content)
    client.wait_until_settled(sequence)
    return content


def test_a_client_written_from_the_page_takes_part(rabbitmq_server: RabbitmqServer, tmp_path: Path) -> None:
    watch = founded(rabbitmq_server, np.arange(VALUES, dtype=np.float32))
    with joining(rabbitmq_server) as client, Leader(rabbitmq_server, tmp_path):
        client.say_hello(num_examples=300)
        assert client.model() == {"w": ([VALUES], tuple(range(VALUES)))}
        give(client, 1, 2.0)
        client.send(2, give(client, 2, -4.0))
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


def test_a_client_written_from_the_page_reads_a_rounded_model_whose_aggregator_forgets_nothing(
    rabbitmq_server: RabbitmqServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # from 256 on bfloat16 numbers are 2 apart, so 257 is told as 256. Version 1 gains 0.3 x 2, version 2 half of that once more
    # (beta is 0.5) and 0.3 x 1: 256.6 is told as 256, 257.2 as 258. Without the state blob it would be 256.3, 256.6 or 256.9
    watch = founded(rabbitmq_server, np.full(VALUES, 257, np.float32), {"server_momentum": 0.5}, broadcast="bfloat16")
    told = []
    with joining(rabbitmq_server) as client:
        with Leader(rabbitmq_server, tmp_path):
            client.say_hello(num_examples=300)
            told.append(client.model())
            give(client, 1, 2.0)
            told.append(client.model())
        with Leader(rabbitmq_server, tmp_path_factory.mktemp("successor")):
            give(client, 2, 1.0)
            told.append(client.model())

    assert told == [{"w": ([VALUES], (value,) * VALUES)} for value in (256.0, 256.0, 258.0)]
    assert watch.until(lambda: watch.outcomes("bank-b") == [(1, "aggregated"), (2, "aggregated")])
    require_each_once(watch)
