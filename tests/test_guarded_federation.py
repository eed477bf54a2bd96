"""A federation in which every message is signed, and one in which they are sealed too, with somebody who is not what he says."""

import secrets
from contextlib import ExitStack
from dataclasses import replace

import msgpack
import pytest

from broker_config.guarded import GuardedBroker
from broker_config.memory import MemoryRabbit
from broker_config.streams import publish_record
from broker_config.topology import DEAD_LETTERS, LINEAGE, MODEL, OPERATIONS, topology, update_queue
from operator_console.replay_command import rebuilt
from shared import messages
from shared.broker import Broker, Message
from shared.chunks import split
from shared.envelopes import key_id
from shared.errors import BrokerUnavailableError
from shared.keys import Identity
from shared.messages import Hello, Operation
from tests.builders import BY_PSEUDONYM, NAMES, RUN, a_plan, name_of
from tests.conftest import JOURNALLED
from tests.guarding import GuardedServer, Keyring
from tests.running import Leader, Watch, Worker, begin, give_order, require_each_once, require_replay, trained

CHUNK = 2**20


@pytest.fixture(params=[False, True], ids=["signed", "sealed"])
def keyring(request):
    return Keyring(sealed=request.param)


@pytest.fixture
def server(broker_server, keyring):
    return GuardedServer(broker_server, keyring)


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def started(server: GuardedServer, keyring: Keyring, members=NAMES) -> Watch:
    begin(server, a_plan({"buffer_size": 1}), table=keyring.table(members))
    return Watch(server.connect("operator"))


def leading(server: GuardedServer, folder) -> Leader:
    return Leader(server, folder / "aggregator", guard=server.guards["aggregator"])


def letters(server: GuardedServer) -> list[str]:
    """Why each dead letter is one."""
    broker = server.connect("operator")
    broker.consume(DEAD_LETTERS, prefetch=100)
    told = []
    while (delivery := broker.receive(0.5)) is not None:
        told.append(str(delivery.message.headers.get("refused")))
    broker.close()
    return told


def everything_in(broker: Broker, stream: str) -> list[Message]:
    return [delivery.message for delivery in broker.read(stream, "first", count=None, idle_seconds=0.5)]


def test_institutions_learn_together_and_every_update_counts_once(server, keyring, tmp_path, stack):
    watch = started(server, keyring)
    stack.enter_context(leading(server, tmp_path))
    for name in NAMES:
        stack.enter_context(Worker(server, name, tmp_path))
    assert watch.until(lambda: min(watch.entry(name).watermark for name in NAMES) >= 3)
    require_each_once(watch)
    require_replay(watch, trained)
    assert letters(server) == []


def test_the_operator_of_the_broker_reads_no_parameters_where_they_are_sealed(server, broker_server, keyring, tmp_path, stack):
    watch = started(server, keyring)
    stack.enter_context(leading(server, tmp_path))
    stack.enter_context(Worker(server, "bank-a", tmp_path))
    assert watch.until(lambda: watch.head.manifest.version >= 3)
    readable = messages.encode_model(RUN, watch.model()).joined()
    bodies = [message.body for message in everything_in(broker_server.connect("operator"), MODEL)]
    assert (readable in bodies) != keyring.trust.sealed
    assert any(readable[-12:] in body for body in bodies) != keyring.trust.sealed


def test_whoever_stole_a_password_but_not_the_keys_gets_nothing_in(server, keyring, tmp_path, stack):
    watch = started(server, keyring)
    stack.enter_context(leading(server, tmp_path))
    stack.enter_context(Worker(server, "bank-a", tmp_path))
    thief = server.impersonate("bank-b", Identity.create())
    hello = Hello(
        run_id=RUN, institution="bank-b", incarnation=1, head_sequence=0, head_hash="", nonce="f" * 16, num_examples=10**6
    )
    content = messages.encode("hello", hello)
    thief.publish_all(update_queue("bank-b"), split(content, kind="hello", run_id=RUN, identity="h", chunk_bytes=CHUNK))
    watermark = watch.entry("bank-a").watermark
    assert watch.until(lambda: watch.entry("bank-a").watermark > watermark + 1)
    assert watch.entry("bank-b").nonce == ""
    (reason,) = letters(server)
    assert reason == "its signature is not bank-b's for this place: altered, taken from elsewhere, or another's"


def test_a_message_that_was_recorded_on_its_way_is_worth_nothing_elsewhere_or_altered(
    server, broker_server, keyring, tmp_path, stack
):
    """By somebody who can publish under every login, as the operator of the broker can."""
    watch = started(server, keyring)
    recorded: list[Message] = []
    a = server.guards["bank-a"]
    hello = Hello(run_id=RUN, institution="bank-a", incarnation=1, head_sequence=0, head_hash="", nonce="1" * 16, num_examples=5)
    for chunk in split(messages.encode("hello", hello), kind="hello", run_id=RUN, identity="h", chunk_bytes=CHUNK):
        recorded.append(a.protected(update_queue("bank-a"), chunk))
    (message,) = recorded
    broker_server.connect("bank-b").publish(update_queue("bank-b"), message)
    broker_server.connect("bank-a").publish(
        update_queue("bank-a"), replace(message, headers={**message.headers, "id": "another"})
    )
    broker_server.connect("bank-a").publish(update_queue("bank-a"), replace(message, body=message.body[:-1] + b"\x00"))
    stack.enter_context(leading(server, tmp_path))
    stack.enter_context(Worker(server, "bank-c", tmp_path))
    assert watch.until(lambda: watch.entry("bank-c").watermark >= 2)
    assert [watch.entry(name).nonce for name in ("bank-a", "bank-b")] == ["", ""]
    told = letters(server)
    assert len(told) == 3
    assert all("for this place: altered, taken from elsewhere, or another's" in reason for reason in told)


def test_a_hello_that_is_older_than_the_one_answered_last_is_a_replay(server, keyring, tmp_path, stack):
    watch = started(server, keyring)
    stack.enter_context(leading(server, tmp_path))
    bank = server.connect("bank-a")

    def say(nonce: str, number: int) -> None:
        hello = Hello(
            run_id=RUN, institution="bank-a", incarnation=1, head_sequence=0, head_hash="", nonce=nonce, num_examples=number
        )
        content = messages.encode("hello", hello)
        bank.publish_all(update_queue("bank-a"), split(content, kind="hello", run_id=RUN, identity=nonce, chunk_bytes=CHUNK))

    say("2" * 16, 70)
    assert watch.until(lambda: watch.entry("bank-a").nonce == "2" * 16)
    say("1" * 16, 999_999)
    say("3" * 16, 80)
    assert watch.until(lambda: watch.entry("bank-a").nonce == "3" * 16)
    assert watch.entry("bank-a").num_examples == 80
    assert letters(server) == ["its hello is older than the one that was answered last"]


@pytest.mark.long
@pytest.mark.both
def test_a_manifest_or_order_that_nobody_of_ours_signed_has_no_effect(server, broker_server, keyring, tmp_path, stack):
    watch = started(server, keyring)
    stack.enter_context(leading(server, tmp_path))
    forger = broker_server.connect("operator")
    stop = Operation(run_id=RUN, operation_id=secrets.token_hex(16), kind="stop")
    forger.publish(OPERATIONS, Message(messages.encode("operation", stop), "operation", stop.operation_id, {}))
    head = watch.head
    finished = head.manifest.model_copy(
        update={"version": head.manifest.version + 1, "previous": head.hash, "phase": "finished", "phase_reason": "forged"}
    )
    publish_record(forger, messages.manifest_record(head.epoch + 1, finished, head.model_at))
    bank = GuardedBroker(broker_server.connect("operator"), server.guards["bank-c"])
    publish_record(bank, messages.manifest_record(head.epoch + 1, finished, head.model_at))
    stack.enter_context(Worker(server, "bank-a", tmp_path))
    assert watch.until(lambda: watch.entry("bank-a").watermark >= 3)
    assert watch.head.manifest.phase == "running"
    assert len(everything_in(forger, LINEAGE)) > 3
    assert any("it is not signed, and the operator signs everything" in reason for reason in letters(server))


def test_a_newcomer_reads_the_model_and_one_that_was_removed_reads_no_later_one(broker_server, keyring, tmp_path, stack):
    server = GuardedServer(broker_server, keyring, NAMES[:2])
    watch = started(server, keyring, NAMES[:2])
    stack.enter_context(leading(server, tmp_path))
    operator = server.connect("operator")

    def order(kind, **arguments) -> None:
        operation = Operation(run_id=RUN, operation_id=secrets.token_hex(16), kind=kind, arguments=arguments)
        operator.publish(OPERATIONS, Message(messages.encode("operation", operation), "operation", operation.operation_id, {}))

    order("admit", institution="bank-c", incarnation=1, **keyring.entry_keys("bank-c"))
    assert watch.until(lambda: name_of("bank-c") in (watch.reader.lineage.table or {}))
    with Worker(server, "bank-c", tmp_path):
        assert watch.until(lambda: watch.entry("bank-c").watermark >= 2), "nobody else is here to make a version"
    order("remove", institution="bank-a")
    assert watch.until(lambda: watch.entry("bank-a").removed)
    version = watch.head.manifest.version
    stack.enter_context(Worker(server, "bank-b", tmp_path))
    assert watch.until(lambda: watch.head.manifest.version >= version + 2)
    if keyring.trust.sealed:
        last = everything_in(broker_server.connect("operator"), MODEL)[-1]
        ids = set(msgpack.unpackb(last.body, strict_map_key=False)[0])
        parties = ("operator", "aggregator", "bank-b", "bank-c")
        assert ids == {key_id(keyring.public(name).sealing) for name in parties}
    assert letters(server) == []


def test_a_newcomer_reads_the_model_though_the_leader_was_lost_before_it_sealed_it_again(broker_server, tmp_path, stack):
    keyring = Keyring(sealed=True)
    server = GuardedServer(broker_server, keyring, NAMES[:2])
    watch = started(server, keyring, NAMES[:2])
    lost: list[str] = []

    def lose_the_connection(step: str) -> None:
        if step == "hints" and not lost:  # the first commit is that of the order
            lost.append(step)
            raise BrokerUnavailableError("lost between the commit and the sealing")

    stack.enter_context(
        Leader(server, tmp_path / "aggregator", guard=server.guards["aggregator"], after_step=lose_the_connection)
    )
    order = Operation(
        run_id=RUN,
        operation_id=secrets.token_hex(16),
        kind="admit",
        arguments={"institution": "bank-c", "incarnation": 1, **keyring.entry_keys("bank-c")},
    )
    give_order(server, order)
    assert watch.until(lambda: name_of("bank-c") in (watch.reader.lineage.table or {}))
    stack.enter_context(Worker(server, "bank-c", tmp_path))
    assert watch.until(lambda: watch.entry("bank-c").watermark >= 2)


def test_sealed_journals_are_read_by_the_operator_and_rebuild_every_version(keyring, tmp_path, stack):
    server = GuardedServer(MemoryRabbit(topology(NAMES, JOURNALLED)), keyring)
    watch = started(server, keyring)
    with leading(server, tmp_path), Worker(server, "bank-a", tmp_path), Worker(server, "bank-b", tmp_path):
        assert watch.until(lambda: min(watch.entry(name).watermark for name in NAMES[:2]) >= 2)
    result = rebuilt(server.connect("operator"), BY_PSEUDONYM)
    assert result.replay.folded >= 4
    assert result.start == 0
    assert result.version >= watch.head.manifest.version
