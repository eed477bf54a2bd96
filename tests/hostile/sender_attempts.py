"""Attempts to speak as somebody else, or once more: forged names, replays, signatures and sealed bodies."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgpack

from broker_config.topology import journal_queue, update_queue
from operator_console.dead_letters import Letter
from shared.broker import Message
from shared.envelopes import ContentKey, key_id, sealed_about
from shared.keys import Identity
from shared.signatures import signature_of
from tests.builders import array
from tests.hostile.attempt import CONNECTION, Attempt, How
from tests.hostile.content_attempts import letter, sends
from tests.hostile.institution import HostileInstitution
from tests.hostile.world import HOSTILE, VICTIM

OWN = update_queue(HOSTILE)
BODY = {"version": 0, "model_hash": "a" * 64, "metrics": {"auc": 0.5}, "epsilon": 0.1}
STANDING = {"plan_hash": "e" * 64, "state": "plan_refused", "limit": "x", "reason": "x"}
NAMED = f"the message names '{VICTIM}', its author is '{HOSTILE}'"


def _names_nobody(hostile: HostileInstitution) -> str:
    return hostile.send(hostile.envelope(hostile.update()), user_id=None)


def _says_hello_with(**headers: Any) -> How:
    """An honest hello with headers that name another queue; whose queue it reached shows in the aggregator's log."""

    def tries(hostile: HostileInstitution) -> str:
        mark = hostile.world.logs["aggregator"].mark()
        (message,) = hostile.envelope(hostile.hello(nonce=hostile.world.next_nonce()), "hello", identity="hello")
        signed = hostile.world.signed(HOSTILE, message)
        answer = hostile.answer_to(lambda channel: hostile.put(channel, OWN, signed, headers={**signed.headers, **headers}))
        hostile.world.barrier()
        reached = {each.get("institution") for each in hostile.world.aggregator_events(mark) if each["event"] == "delivery"}
        return "reaches its own queue only" if (answer, reached) == ("allowed", {HOSTILE}) else f"{answer}, reached {reached}"

    return tries


def _asks_for_an_answer(hostile: HostileInstitution) -> str:
    arrived: list[object] = []

    def ask(channel: Any) -> None:
        channel.basic_consume("amq.rabbitmq.reply-to", lambda *delivery: arrived.append(delivery), auto_ack=True)
        (message,) = hostile.envelope(hostile.hello(nonce=hostile.world.next_nonce()), "hello", identity="hello")
        hostile.publish([message], channel=channel, reply_to="amq.rabbitmq.reply-to")
        hostile.world.barrier()
        channel.connection.process_data_events(0.2)

    return f"{hostile.answer_to(ask)}, {'an answer comes' if arrived else 'nothing comes'}"


def _lets_the_broker_put_it_aside(hostile: HostileInstitution) -> str:
    """With its queue full of what nobody has read yet, a message that expires goes to the dead letters with its own headers."""
    (message,) = hostile.envelope(b"x", author=VICTIM, refused="nothing is wrong with it", queue=update_queue(VICTIM))
    known = hostile.world.letters_drained()
    with hostile.world.aggregator_held_up():
        channel = hostile.channel()
        for _ in range(40):
            hostile.publish([message], channel=channel, expiration="1")
        found = hostile.world.wait_for_letter(known, lambda each: each.user_id == HOSTILE)
    if found is None:
        return "no letter"
    hostile.world.settle_down()
    listed = Letter(found, len(found.message.body), b"", "")
    return f"dead letter of {listed.author}: {listed.reason}"


def _renames_itself(hostile: HostileInstitution) -> str:
    """Figures that are named as the report's own fields are."""
    figures = {"institution": 1.0, "version": 2.0, "auc": math.nan}
    body = BODY | {"model_hash": hostile.world.model_hash(), "metrics": figures}
    hostile.publish(hostile.envelope(hostile.small("report", **body), "report", identity="report"))
    hostile.world.barrier()
    (kept,) = (hostile.world.folder / "state" / "reports.jsonl").read_text().splitlines()
    return f"kept as a report of {json.loads(kept)['institution']}"


IDENTITY = (
    letter("name another institution in an update", sends(lambda hostile: hostile.update(institution=VICTIM)), NAMED),
    letter("say hello for another institution", sends(lambda hostile: hostile.hello(institution=VICTIM), "hello"), NAMED),
    letter(
        "report for another institution",
        sends(lambda hostile: hostile.small("report", **BODY | {"institution": VICTIM}), "report"),
        NAMED,
    ),
    Attempt(
        "name figures of its report as the report's own fields",
        _renames_itself,
        f"kept as a report of {HOSTILE}",
        "aggregator",
        '"kind": "report"',
    ),
    letter(
        "refuse the plan for another institution",
        sends(lambda hostile: hostile.small("standing", **STANDING | {"institution": VICTIM}), "standing"),
        NAMED,
    ),
    letter(
        "use up another institution's number: its name in the headers of what cannot be read",
        sends(lambda _: b"x", identity=f"{VICTIM}/1/2"),
        "not a msgpack body: …",
    ),
    letter("leave out user_id", _names_nobody, f"the broker-validated user is None, the queue belongs to '{HOSTILE}'"),
    Attempt(
        "name another institution's queue in a CC header",
        _says_hello_with(CC=[update_queue(VICTIM)]),
        "reaches its own queue only",
        "aggregator",
        '"kind": "hello"',
    ),
    Attempt(
        "name another institution's queue in a BCC header",
        _says_hello_with(BCC=[update_queue(VICTIM)]),
        "reaches its own queue only",
        "aggregator",
        '"kind": "hello"',
    ),
    Attempt(
        "name the model's queue in a CC header",
        _says_hello_with(CC=["fl.model", "fl.model.in"]),
        "reaches its own queue only",
        "aggregator",
        '"kind": "hello"',
    ),
    Attempt("ask for a direct reply", _asks_for_an_answer, "allowed, nothing comes", "aggregator", '"kind": "hello"'),
    Attempt(
        "have the broker put a message aside that names another as its author",
        _lets_the_broker_put_it_aside,
        f"dead letter of {HOSTILE}: expired",
        "broker",
        CONNECTION,
    ),
)


def _replays(institution: str) -> How:
    """The bytes of an institution's first update, as they came over the wire, on its own exchange."""

    def tries(hostile: HostileInstitution) -> str:
        return hostile.send_as_it_is([hostile.world.recorded(journal_queue(institution), "update")])

    return tries


def _replays_its_hello(hostile: HostileInstitution) -> str:
    (message,) = hostile.envelope(hostile.hello(nonce="0" * 15 + "1"), "hello", identity="hello")
    return hostile.send([message])


def _peels(hostile: HostileInstitution) -> str:
    """Another's sealed update under its own signature."""
    stolen = hostile.world.recorded(journal_queue(VICTIM), "update")
    return hostile.send_as_it_is([signed_by_itself(hostile, stolen)])


def signed_by_itself(hostile: HostileInstitution, message: Message) -> Message:
    """Whatever it is, under the hostile institution's own signature."""
    key = hostile.world.keyring.identities[HOSTILE].signing
    return replace(message, headers={**message.headers, "signature": signature_of(OWN, message, key)})


def _takes_elsewhere(queue: str, kind: str) -> How:
    """What an aggregator signed for somewhere else."""

    def tries(hostile: HostileInstitution) -> str:
        return hostile.send_as_it_is([hostile.world.recorded(queue, kind)])

    return tries


FORGED = f"its signature is not {HOSTILE}'s for this place: …"
REPLAYS = (
    Attempt(
        "replay its own first update, byte for byte",
        _replays(HOSTILE),
        "duplicate, dropped",
        "aggregator",
        '"outcome": "duplicate"',
    ),
    Attempt(
        "send another update under an old number",
        sends(lambda hostile: hostile.update({"w": array(9, 9, 9)}, sequence=1)),
        "duplicate, dropped",
        "aggregator",
        '"outcome": "duplicate"',
    ),
    letter(
        "send another update under its last number",
        sends(lambda hostile: hostile.update({"w": array(9, 9, 9)}, sequence=hostile.next_sequence - 1)),
        "update 1/… came again with another content",
    ),
    letter("replay an old hello", _replays_its_hello, "its hello is older than the one that was answered last"),
    letter("replay another institution's update, stolen byte for byte", _replays(VICTIM), FORGED),
    letter("sign another institution's sealed update itself", _peels, "its sealed body was altered, or sealed for another place"),
    letter("send on what an aggregator signed for the lineage", _takes_elsewhere("fl.lineage", "manifest"), FORGED),
    letter(
        "send the chunks of an update in another order",
        lambda hostile: hostile.send(hostile.envelope(bytes(40_000))[::-1][:1]),
        "chunk 2 came where 0 was expected",
    ),
)


def alters(tries: str, reason: str, change: Callable[[Message], Message]) -> Attempt:
    """An honest update that is changed after it was sealed and signed."""

    def how(hostile: HostileInstitution) -> str:
        (message,) = hostile.envelope(hostile.update())
        return hostile.send_as_it_is([change(hostile.world.signed(HOSTILE, message))])

    return letter(tries, how, reason)


def _header(name: str, value: object) -> Callable[[Message], Message]:
    return lambda message: replace(message, headers={**message.headers, name: value})


def _by(identity: Identity) -> Callable[[Message], Message]:
    return lambda message: _header("signature", signature_of(OWN, message, identity.signing))(message)


def _for(exchange: str) -> How:
    """Signed, with its own key, for another place."""

    def tries(hostile: HostileInstitution) -> str:
        (message,) = hostile.envelope(hostile.update())
        key = hostile.world.keyring.identities[HOSTILE].signing
        signed = hostile.world.signed(HOSTILE, message)
        return hostile.send_as_it_is([_header("signature", signature_of(exchange, signed, key))(signed)])

    return tries


SIGNATURES = (
    alters("leave out the signature", f"it is not signed, and {HOSTILE} signs everything", _header("signature", "")),
    alters(
        "sign with what is not base64", f"its signature is not base64, so it is not {HOSTILE}'s", _header("signature", "?" * 88)
    ),
    alters("sign with another key", FORGED, _by(Identity.create())),
    letter("sign for another exchange", _for(update_queue(VICTIM)), FORGED),
    alters("change the body after it was signed", FORGED, lambda message: replace(message, body=message.body[:-1] + b"x")),
    alters("change the run in the headers after they were signed", FORGED, _header("run", "cd" * 8)),
    alters("add a header after they were signed", FORGED, _header("priority", "high")),
    alters("change the kind of a message after it was signed", FORGED, lambda message: replace(message, kind="hello")),
    alters("change the message's id after it was signed", FORGED, lambda message: replace(message, message_id="bank-a/1/1#0")),
)


def seals(tries: str, reason: str, make: Callable[[HostileInstitution, Message], tuple[bytes, Mapping[str, str]]]) -> Attempt:
    """An update whose seal is another than it must be, under an honest signature."""

    def how(hostile: HostileInstitution) -> str:
        (message,) = hostile.envelope(hostile.update())
        body, headers = make(hostile, message)
        return hostile.send_as_it_is(
            [signed_by_itself(hostile, replace(message, body=body, headers={**message.headers, **headers}))]
        )

    return letter(tries, how, reason)


def _sealed_for(message: Message, *readers: str) -> bytes:
    return ContentKey.fresh(readers).seal(message.body, sealed_about(OWN, message.kind, message.message_id))


def raw_seal(tries: str, reason: str, body: Callable[[bytes], bytes]) -> Attempt:
    """A sealed body of such bytes; they get the id of the aggregator's key."""
    return seals(tries, reason, lambda hostile, _: (body(key_id(hostile.world.keyring.public("aggregator").sealing)), SEALED))


SEALED = {"envelope": "hpke-1"}
NO_SEAL = "it is no sealed body"
PARTS = "a part of the sealed body has another form or length than it must have"
ALTERED = "its sealed body was altered, or sealed for another place"
SEALS = (
    seals(
        "send an update that is not sealed",
        f"it is not sealed, and in this federation {HOSTILE} seals it",
        lambda _, message: (message.body, {}),
    ),
    seals(
        "name an envelope that does not exist",
        f"it is not sealed, and in this federation {HOSTILE} seals it",
        lambda _, message: (message.body, {"envelope": "zip"}),
    ),
    seals(
        "seal an update for itself only",
        "it was sealed for others: …",
        lambda hostile, message: (_sealed_for(message, hostile.world.keyring.public(HOSTILE).sealing), SEALED),
    ),
    seals(
        "change a sealed body before signing it",
        ALTERED,
        lambda hostile, message: (_sealed_for(message, hostile.world.keyring.public("aggregator").sealing)[:-1] + b"x", SEALED),
    ),
    seals("say that a plain body is sealed", NO_SEAL, lambda _, message: (message.body, SEALED)),
    raw_seal("seal to a point of low order", ALTERED, lambda key: msgpack.packb([{key: bytes(80)}, bytes(12), bytes(40)])),
    raw_seal("seal with a key of no bytes", PARTS, lambda key: msgpack.packb([{key: b""}, bytes(12), bytes(40)])),
    raw_seal("seal with a nonce of no bytes", PARTS, lambda key: msgpack.packb([{key: bytes(80)}, b"", bytes(40)])),
    raw_seal("announce 2^32 - 1 recipients", NO_SEAL, lambda _: b"\x93\xdf\xff\xff\xff\xff"),
    raw_seal("seal arrays 100,000 deep", NO_SEAL, lambda _: b"\x91" * 100_000),
    raw_seal(
        "name 100,000 recipients",
        NO_SEAL,
        lambda _: msgpack.packb([{i.to_bytes(8, "big"): b"" for i in range(100_000)}, bytes(12), b""]),
    ),
)

ATTEMPTS = (*IDENTITY, *REPLAYS, *SIGNATURES, *SEALS)
