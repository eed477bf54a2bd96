"""Attempts that end at the broker: what a login may not read, write, make, delete or ask for."""

import struct
from collections.abc import Callable
from typing import Any

import httpx
import pika

from tests.hostile.attempt import CONNECTION, Attempt, By, How
from tests.hostile.institution import HostileInstitution
from tests.hostile.world import HOSTILE, VICTIM

MIB = 1 << 20
REFUSED = "403 ACCESS_REFUSED"
MANY = 64


def asks(act: Callable[[Any], object]) -> How:
    """One request on a channel of its own."""
    return lambda hostile: hostile.answer_to(act)


def reads(tries: str, queue: str) -> Attempt:
    return _refused(tries, lambda channel: channel.basic_consume(queue, _ignored), f"access to queue '{queue}'")


def writes(tries: str, exchange: str, key: str = "") -> Attempt:
    named = exchange or "amq.default"
    return _refused(tries, lambda channel: channel.basic_publish(exchange, key, b"x"), f"access to exchange '{named}'")


def changes(tries: str, act: Callable[[Any], object], what: str) -> Attempt:
    return _refused(tries, act, f"access to {what}")


def _refused(tries: str, act: Callable[[Any], object], evidence: str) -> Attempt:
    return Attempt(tries, asks(act), REFUSED, "broker", evidence)


def _ignored(*_delivery: object) -> None:
    return


READING = (
    reads("consume another institution's update queue", f"fl.upd.{VICTIM}"),
    changes(
        "get a message of another institution's update queue",
        lambda channel: channel.basic_get(f"fl.upd.{VICTIM}"),
        f"queue 'fl.upd.{VICTIM}'",
    ),
    reads("consume its own update queue", f"fl.upd.{HOSTILE}"),
    reads("consume another institution's hints", f"fl.ctl.{VICTIM}"),
    reads("consume another institution's journal", f"fl.jrn.{VICTIM}"),
    reads("consume its own journal", f"fl.jrn.{HOSTILE}"),
    reads("consume the dead letters", "fl.dlq"),
    reads("consume the token of leadership", "fl.lead"),
    reads("consume the operator's orders", "fl.ops"),
    reads("consume the aggregators' state", "fl.state"),
    reads("consume a queue that does not exist", "fl.upd.nobody"),
    reads("consume the broker's own log exchange", "amq.rabbitmq.log"),
)

WRITING = (
    writes("publish to another institution's exchange", f"fl.upd.{VICTIM}"),
    writes("publish to another institution's queue through the default exchange", "", f"fl.upd.{VICTIM}"),
    writes("publish to its own queue through the default exchange", "", f"fl.upd.{HOSTILE}"),
    writes("publish a model", "fl.model.in"),
    writes("publish to the lineage", "fl.lineage.in"),
    writes("publish a state", "fl.state.in"),
    writes("publish an operator's order", "fl.ops.in"),
    writes("publish a token of leadership", "fl.lead.in"),
    writes("publish a dead letter", "fl.dlx"),
    writes("publish hints to another institution", f"fl.ctl.{VICTIM}.in"),
    writes("publish to amq.topic", "amq.topic", f"fl.upd.{VICTIM}"),
    writes("publish to amq.fanout", "amq.fanout"),
    Attempt(
        "publish under another login's user_id",
        lambda hostile: hostile.answer_to(lambda channel: _under(channel, VICTIM)),
        "406 PRECONDITION_FAILED",
        "broker",
        f"user_id property set to '{VICTIM}' but authenticated user was '{HOSTILE}'",
    ),
)


def _under(channel: Any, user: str) -> None:
    channel.basic_publish(f"fl.upd.{HOSTILE}", "", b"x", pika.BasicProperties(user_id=user))


CHANGING = (
    changes(
        "bind the hints that it reads to another institution's exchange",
        lambda channel: channel.queue_bind(f"fl.ctl.{HOSTILE}", f"fl.upd.{VICTIM}"),
        f"queue 'fl.ctl.{HOSTILE}'",
    ),
    changes(
        "bind its own exchange to the model stream",
        lambda channel: channel.queue_bind("fl.model", f"fl.upd.{HOSTILE}"),
        "queue 'fl.model'",
    ),
    changes(
        "bind another's exchange to its own (exchange.bind)",
        lambda channel: channel.exchange_bind(f"fl.upd.{HOSTILE}", f"fl.upd.{VICTIM}"),
        f"exchange 'fl.upd.{VICTIM}'",
    ),
    changes(
        "bind its own exchange to another's (exchange.bind)",
        lambda channel: channel.exchange_bind(f"fl.upd.{VICTIM}", f"fl.upd.{HOSTILE}"),
        f"exchange 'fl.upd.{VICTIM}'",
    ),
    changes(
        "unbind its journal, so that nothing is kept of what it sent",
        lambda channel: channel.queue_unbind(f"fl.jrn.{HOSTILE}", f"fl.upd.{HOSTILE}"),
        f"queue 'fl.jrn.{HOSTILE}'",
    ),
    changes(
        "unbind another institution's queue",
        lambda channel: channel.queue_unbind(f"fl.upd.{VICTIM}", f"fl.upd.{VICTIM}"),
        f"queue 'fl.upd.{VICTIM}'",
    ),
    changes("declare a queue", lambda channel: channel.queue_declare("mine", durable=True), "queue 'mine'"),
    changes(
        "declare an exclusive queue of a name that the broker chooses",
        lambda channel: channel.queue_declare("", exclusive=True),
        "queue 'amq.gen-",
    ),
    changes("declare an exchange", lambda channel: channel.exchange_declare("mine", durable=True), "exchange 'mine'"),
    changes(
        "declare its own update queue with other arguments",
        lambda channel: channel.queue_declare(f"fl.upd.{HOSTILE}", durable=True),
        f"queue 'fl.upd.{HOSTILE}'",
    ),
    changes(
        "delete another institution's queue", lambda channel: channel.queue_delete(f"fl.upd.{VICTIM}"), f"queue 'fl.upd.{VICTIM}'"
    ),
    changes(
        "delete its own queue, and what waits there",
        lambda channel: channel.queue_delete(f"fl.upd.{HOSTILE}"),
        f"queue 'fl.upd.{HOSTILE}'",
    ),
    changes("delete the lineage", lambda channel: channel.queue_delete("fl.lineage"), "queue 'fl.lineage'"),
    changes("delete the model's exchange", lambda channel: channel.exchange_delete("fl.model.in"), "exchange 'fl.model.in'"),
    changes(
        "purge another institution's queue", lambda channel: channel.queue_purge(f"fl.upd.{VICTIM}"), f"queue 'fl.upd.{VICTIM}'"
    ),
    changes("purge its own update queue", lambda channel: channel.queue_purge(f"fl.upd.{HOSTILE}"), f"queue 'fl.upd.{HOSTILE}'"),
    changes("purge the dead letters", lambda channel: channel.queue_purge("fl.dlq"), "queue 'fl.dlq'"),
)


def _declares_passively(queue: str) -> How:
    return asks(lambda channel: channel.queue_declare(queue, passive=True))


ASKING = (
    Attempt(
        "passively declare another institution's queue",
        _declares_passively(f"fl.upd.{VICTIM}"),
        "allowed",
        "broker",
        CONNECTION,
        learns="how many messages and consumers it has, so when others send (until RabbitMQ 4.2)",
    ),
    Attempt(
        "passively declare the queue of an institution that may be a member",
        _declares_passively("fl.upd.nobody"),
        "404 NOT_FOUND",
        "broker",
        "no queue 'fl.upd.nobody'",
        learns="whether an institution whose id it guesses is a member",
    ),
    Attempt(
        "passively declare another institution's exchange",
        asks(lambda channel: channel.exchange_declare(f"fl.upd.{VICTIM}", passive=True)),
        "allowed",
        "broker",
        CONNECTION,
        learns="whether an institution whose id it guesses is a member",
    ),
    Attempt(
        "purge its own hints",
        asks(lambda channel: channel.queue_purge(f"fl.ctl.{HOSTILE}")),
        "allowed",
        "broker",
        CONNECTION,
        learns="how many hints waited for it, which it may read anyway",
    ),
)


STREAMS = (
    Attempt(
        "purge the model stream that it reads",
        asks(lambda channel: channel.queue_purge("fl.model")),
        "540 NOT_IMPLEMENTED",
        "broker",
        "purge",
    ),
    Attempt(
        "purge the lineage that it reads",
        asks(lambda channel: channel.queue_purge("fl.lineage")),
        "540 NOT_IMPLEMENTED",
        "broker",
        "purge",
    ),
    Attempt(
        "get a message of the model stream, and have it gone for the others",
        asks(lambda channel: channel.basic_get("fl.model", auto_ack=True)),
        "540 NOT_IMPLEMENTED",
        "broker",
        "basic.get",
    ),
    Attempt(
        "consume the model stream exclusively, and lock the others out",
        lambda hostile: _reads_alone(hostile),
        "allowed, the others read on",
        "broker",
        CONNECTION,
    ),
    Attempt(
        "reject what the lineage delivers, and have it gone for the others",
        asks(lambda channel: _rejects(channel, "fl.lineage")),
        By("540 NOT_IMPLEMENTED", "allowed"),
        "broker",
        CONNECTION,
    ),
)


def _consumes(channel: Any, stream: str, *, exclusive: bool = False) -> list[Any]:
    arrived: list[Any] = []
    channel._impl.basic_reject = _ignored  # pika's own, at a cancel: it would answer for the attempt
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(
        stream, lambda *delivery: arrived.append(delivery), exclusive=exclusive, arguments={"x-stream-offset": "first"}
    )
    while not arrived:
        channel.connection.process_data_events(1)
    return arrived


def _reads_alone(hostile: HostileInstitution) -> str:
    answer = hostile.answer_to(lambda channel: _consumes(channel, "fl.model", exclusive=True))
    reader = hostile.world.guarded.connect(VICTIM)
    others = len(list(reader.read("fl.model", "first", count=1, idle_seconds=5)))
    reader.close()
    return f"{answer}, the others {'read on' if others else 'are locked out'}"


def _rejects(channel: Any, stream: str) -> None:
    (_, method, _, _) = _consumes(channel, stream)[0]
    send = pika.spec.Basic.Reject(method.delivery_tag, requeue=False)
    channel._impl._send_method(send)
    channel.connection.process_data_events(1)


def _opens_a_vhost(vhost: str) -> How:
    def tries(hostile: HostileInstitution) -> str:
        return hostile.login_answer(virtual_host=vhost)

    return tries


def _calls(method: str, path: str, body: object = None) -> How:
    """The management API, by its name and without a password that anybody gave it."""

    def tries(hostile: HostileInstitution) -> str:
        url = hostile.world.server.logins.management
        with httpx.Client(base_url=url, auth=(HOSTILE, ""), trust_env=False) as client:
            return f"HTTP {client.request(method, path, json=body).status_code}"

    return tries


def _calls_for(tries: str, method: str, path: str, body: object = None) -> Attempt:
    return Attempt(tries, _calls(method, path, body), "HTTP 401", "broker", f"HTTP access denied: user '{HOSTILE}'")


ELSEWHERE = (
    Attempt(
        "connect to the virtual host /",
        _opens_a_vhost("/"),
        "530 NOT_ALLOWED",
        "broker",
        f"access to vhost '/' refused for user '{HOSTILE}'",
    ),
    Attempt(
        "connect to a virtual host that does not exist",
        _opens_a_vhost("other"),
        "530 NOT_ALLOWED",
        "broker",
        "vhost other not found",
    ),
    _calls_for("read all queues by the management API", "GET", "/api/queues"),
    _calls_for("read all password hashes by the management API", "GET", "/api/definitions"),
    _calls_for(
        "make itself an administrator by the management API",
        "PUT",
        f"/api/users/{HOSTILE}",
        {"password": "x", "tags": "administrator"},
    ),
    _calls_for("publish a model by the management API", "POST", "/api/exchanges/%2F/fl.model.in/publish", {}),
    _calls_for("close the others' connections by the management API", "DELETE", "/api/connections/x"),
)


def _opens_until_refused(hostile: HostileInstitution) -> str:
    with hostile.world.limited_as_a_member("max-connections"):
        answers = (hostile.login_answer() for _ in range(MANY))
        return next((answer for answer in answers if answer != "allowed"), f"{MANY} connections")


def _channels_until_refused(hostile: HostileInstitution) -> str:
    def open_many(channel: Any) -> None:
        for _ in range(MANY):
            channel.connection.channel()

    with hostile.world.limited_as_a_member("max-channels"):
        return hostile.answer_to(open_many)


def _fills_its_queue(hostile: HostileInstitution) -> str:
    def fill(channel: Any) -> None:
        for _ in range(MANY):
            channel.basic_publish(f"fl.upd.{HOSTILE}", "", bytes(MIB), pika.BasicProperties(user_id=HOSTILE))

    with hostile.world.aggregator_held_up():
        answer = hostile.answer_to(fill)
    hostile.world.settle_down()
    return answer


def _sends_a_large_message(hostile: HostileInstitution) -> str:
    properties = pika.BasicProperties(user_id=HOSTILE)
    return hostile.answer_to(lambda channel: channel.basic_publish(f"fl.upd.{HOSTILE}", "", bytes(16 * MIB + 1), properties))


def _sends_a_large_frame(hostile: HostileInstitution) -> str:
    def oversized(channel: Any) -> None:
        impl = channel.connection._impl
        impl._output_marshaled_frames([struct.pack(">BHI", 3, 1, MIB) + bytes(MIB) + b"\xce"])
        channel.connection.process_data_events(2)
        channel.connection.process_data_events(2)

    return hostile.answer_to(oversized)


LIMITS = (
    Attempt("open more connections than it may", _opens_until_refused, "530 NOT_ALLOWED", "broker", "connection limit"),
    Attempt("open more channels than it may", _channels_until_refused, "530 NOT_ALLOWED", "broker", "channels"),
    Attempt(
        "send a message of more than 16 MiB",
        _sends_a_large_message,
        "406 PRECONDITION_FAILED",
        "broker",
        "is larger than configured max size",
    ),
    Attempt("send a frame larger than was agreed on", _sends_a_large_frame, "501 FRAME_ERROR", "broker", "frame_too_large"),
    Attempt(
        "fill its queue beyond its bytes while the aggregator is busy",
        _fills_its_queue,
        "basic.nack",
        "broker",
        CONNECTION,
        learns="that its own queue is full",
    ),
)

ATTEMPTS = (*READING, *WRITING, *CHANGING, *ASKING, *STREAMS, *ELSEWHERE, *LIMITS)
