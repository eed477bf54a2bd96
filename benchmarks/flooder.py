"""`python -m benchmarks.flooder FACTS`: one institution with a login of its own that harms as much as it can until it is ended.

Floods go out through pika as it comes, without confirms. Good updates wait for theirs: a missing number would spoil the next.
"""

import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pika
from pika import exceptions

from benchmarks.federation import EXAMPLES, vector
from benchmarks.institution import STEP
from broker_config import logins as login_file
from broker_config.connection import connect
from broker_config.service import stop_on_signals
from broker_config.streams import newest
from shared import messages
from shared.chunks import split
from shared.codec import SCHEMA_VERSION
from shared.messages import Hello, PrivacyStatement, Update

MIB = 2**20
Facts = Mapping[str, Any]
Letter = tuple[str, bytes, Mapping[str, Any]]
"""Kind, body and headers of one message."""


def tiny(_facts: Facts) -> Iterator[Letter]:
    """Empty messages, as many as there can be."""
    return itertools.repeat(("update", b"", {}))


def large(_facts: Facts) -> Iterator[Letter]:
    """The largest messages that the broker takes, without sense."""
    return itertools.repeat(("update", bytes(16 * MIB), {}))


def garbage(facts: Facts) -> Iterator[Letter]:
    """Whole uploads under the next number, with the right hash, that nobody can decode: each uses up its number."""
    body = os.urandom(64 * 1024)
    for number in itertools.count(1):
        (message,) = split(
            body, kind="update", run_id=facts["run_id"], identity=f"{facts['institution']}/1/{number}", chunk_bytes=MIB
        )
        yield message.kind, message.body, message.headers


def partial(facts: Facts) -> Iterator[Letter]:
    """First chunks of uploads that never go on, each of another one."""
    half = bytes(MIB // 2)
    whole = {"size": MIB, "chunks": 2, "sha256": hashlib.sha256(half + half).hexdigest()}
    for number in itertools.count():
        headers = {"schema": SCHEMA_VERSION, "run": facts["run_id"], "id": f"{facts['institution']}/1/{number}", "chunk": 0}
        yield "update", half, {**headers, **whole, "content": whole["sha256"], "envelope": "plain", "signature": ""}


def hellos(facts: Facts) -> Iterator[Letter]:
    """Greetings as a worker sends them: each has to be answered by a manifest."""
    for number in itertools.count():
        hello = Hello(
            run_id=facts["run_id"],
            institution=facts["institution"],
            incarnation=1,
            head_sequence=0,
            head_hash="",
            nonce=f"{number:016x}",
            num_examples=EXAMPLES,
        )
        body = messages.encode("hello", hello)
        (message,) = split(body, kind="hello", run_id=facts["run_id"], identity=f"hello/{number}", chunk_bytes=MIB)
        yield message.kind, message.body, message.headers


def updates(facts: Facts) -> Iterator[Letter]:
    """Good updates under its next numbers, all made of the same model, as fast as they can be written."""
    broker = connect(login_file.load(Path(facts["folder"])).settings(facts["institution"]), name="benchmark/flooder")
    base = newest(broker)[0].manifest
    broker.close()
    for number in itertools.count(1):
        update = Update(
            run_id=facts["run_id"],
            institution=facts["institution"],
            incarnation=1,
            sequence=number,
            base_version=base.version,
            base_hash=base.model.hash,
            plan_hash=base.plan_hash,
            num_examples=EXAMPLES,
            privacy=PrivacyStatement(mechanism="none"),
        )
        content = messages.encode_parts("update", update, vector(int(facts["parameters"]), STEP))
        identity = f"{facts['institution']}/1/{number}"
        for message in split(content, kind="update", run_id=facts["run_id"], identity=identity, chunk_bytes=4 * MIB):
            yield message.kind, message.body, message.headers


def churn(facts: Facts, ended: Callable[[], bool]) -> int:
    """Connections that are opened and closed at once; returns how many."""
    opened = 0
    while not ended():
        with suppress(exceptions.AMQPError):
            connection = _connection(facts)
            connection.channel()
            connection.close()
            opened += 1
    return opened


UPDATES = "updates"
FLOODS: Mapping[str, Callable[[Facts], Iterator[Letter]]] = {
    "tiny messages": tiny,
    "16 MiB messages": large,
    "garbage": garbage,
    "endless uploads": partial,
    "greetings": hellos,
    UPDATES: updates,
}
CHURN = "connection churn"
ATTACKS = (*FLOODS, CHURN)


def flood(facts: Facts, ended: Callable[[], bool]) -> int:
    """Publishes to its own exchange until it is ended; returns how many messages the connection took."""
    sent, exchange = 0, f"fl.upd.{facts['institution']}"
    connection = _connection(facts)
    channel = connection.channel()
    if facts["attack"] == UPDATES:
        channel.confirm_delivery()
    for kind, body, headers in FLOODS[facts["attack"]](facts):
        if ended():
            break
        properties = pika.BasicProperties(
            type=kind, message_id="x", headers=dict(headers), user_id=facts["user"], delivery_mode=2
        )
        sent += _published(channel, exchange, body, properties, ended)
    with suppress(exceptions.AMQPError):
        connection.close()
    return sent


def _published(channel: Any, exchange: str, body: bytes, properties: Any, ended: Callable[[], bool]) -> int:
    """How many messages it took: with confirms, one that the full queue refuses is sent again until it is taken."""
    for sent in itertools.count(1):
        with suppress(exceptions.NackError):
            channel.basic_publish(exchange, "", body, properties)
            return sent
        if ended():
            return sent
    return 0


def _connection(facts: Facts) -> Any:
    credentials = pika.PlainCredentials(facts["user"], facts["password"])
    return pika.BlockingConnection(pika.ConnectionParameters(facts["host"], facts["port"], facts["vhost"], credentials))


def main() -> None:
    """`python -m benchmarks.flooder`."""
    facts, stopping = json.loads(Path(sys.argv[1]).read_text()), stop_on_signals()
    count = (churn if facts["attack"] == CHURN else flood)(facts, stopping.is_set)
    Path(facts["result"]).write_text(json.dumps({"sent": count}))


if __name__ == "__main__":
    main()
