"""One institution sends what nobody should; a real leader refuses each with its reason and goes on with the others."""

import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import msgpack
import pytest

from broker_config.topology import DEAD_LETTERS, update_queue
from shared import messages
from shared.broker import Message
from shared.chunks import split
from shared.errors import PublishRefusedError
from shared.messages import ManifestRecord, PrivacyStatement
from shared.plan import Defence, PrivacyPlan
from tests.builders import NAMES, RUN, a_hello, a_plan, a_statement, an_update, array, as_messages, small_limits
from tests.running import Hand, Leader, Watch, begin, deltas_of, require_each_once, require_replay

PLAN = a_plan(limits=small_limits(useless_per_minute=None), defence=Defence(strikes=None))
"""Without quarantine and pauses, so that every bad message is judged by itself."""
MEBIBYTE = 2**20


class Scene:
    """A leader under way, bank-a as the hostile one, bank-b as the honest one."""

    def __init__(self, server):
        self.server = server
        begin(server, PLAN)
        self.watch = Watch(server.connect("operator"))
        self.start = self.watch.records[0]
        self.hostile, self.honest = Hand(server, "bank-a"), Hand(server, "bank-b")
        self.letters = server.connect("operator")
        self.letters.consume(DEAD_LETTERS, prefetch=100)

    def letter(self) -> Message:
        delivery = self.letters.receive(20)
        assert delivery is not None
        self.letters.ack(delivery)
        return delivery.message

    def refusal(self) -> str:
        return str(self.letter().headers["refused"])

    def refusal_of_a_whole(self) -> str:
        """As `refusal`, of an upload whose headers are honest: its chunks become as many letters."""
        letter = self.letter()
        while int(letter.headers["chunk"]) < int(letter.headers["chunks"]) - 1:
            letter = self.letter()
        return str(letter.headers["refused"])

    def require_the_others_to_go_on(self) -> None:
        sequence = self.watch.entry("bank-b").watermark + 1
        self.honest.send(self.start, sequence, 1, -sequence, 0.5)
        assert self.watch.until(lambda: self.watch.entry("bank-b").watermark == sequence)
        assert self.watch.entry("bank-b").counters.aggregated == sequence


@pytest.fixture
def scene(broker_server, tmp_path):
    scene = Scene(broker_server)
    with Leader(broker_server, tmp_path):
        yield scene
        scene.require_the_others_to_go_on()
        assert scene.watch.until(lambda: [broker_server.depth(update_queue(name)) for name in NAMES] == [0, 0, 0])
        require_each_once(scene.watch)
        require_replay(scene.watch, deltas_of({"bank-a": scene.hostile, "bank-b": scene.honest}))


def an_honest_message(base: ManifestRecord, **changes: object) -> Message:
    return as_messages(an_update(base=base, **changes), {"w": array(1, 2, 3)})[0]


def honestly_enveloped(body: bytes, kind: str = "update") -> Message:
    return next(split(body, kind=kind, run_id=RUN, identity="bank-a/1/1", chunk_bytes=MEBIBYTE))


def with_tensor(base: ManifestRecord, *tensor: object) -> Message:
    return honestly_enveloped(msgpack.packb([1, "update", an_update(base=base).model_dump(), [list(tensor)]]))


def never_a_message(base: ManifestRecord) -> Iterator[tuple[Message, str]]:
    """What can never be used, and the reason that the operator is to read."""
    honest = an_honest_message(base)
    yield replace(honest, body=os.urandom(len(honest.body))), "the bytes do not have the announced SHA-256"
    yield honestly_enveloped(os.urandom(1000)), "body"
    yield honestly_enveloped(b"\x80\x04\x95\x1f\x8c\x05posix\x8c\x06system\x93."), "not a msgpack body"
    yield an_honest_message(base, institution="bank-b"), "the message names 'bank-b', its author is 'bank-a'"
    yield an_honest_message(base, run_id="cd" * 8), f"the message belongs to run '{'cd' * 8}', this is '{RUN}'"
    yield an_honest_message(base, sequence=10**9), "number 1000000000 is more than 64 ahead of"
    yield an_honest_message(base, incarnation=7, sequence=1), "incarnation 7 was never issued, 1 is the newest"
    for dtype in ("float64", ["float32"], {"float32": 1}, None):
        yield with_tensor(base, "w", dtype, [3], "raw", None, bytes(12)), "the tensor 'w' has an unknown dtype or encoding"
    yield with_tensor(base, "w", "float32", [0, 2**60, 2**60], "raw", None, b""), "the tensor 'w' has an impossible shape"
    yield with_tensor(base, "w", "float32", [3], "raw", None, [{}] * 50_000), "the tensor 'w' does not hold as many bytes"
    many_fields = messages.encode("hello", a_hello(), {"w": array(*range(50_000))})
    yield honestly_enveloped(many_fields, "hello"), f"{len(many_fields)} bytes are more than the 65536 allowed here"
    yield honestly_enveloped(b"x", "manifest"), "a message of kind 'manifest' on an update queue"


def test_what_can_never_be_used_is_refused_with_its_reason(scene):
    for message, reason in never_a_message(scene.start):
        scene.hostile.publish(message)
        assert reason in scene.refusal_of_a_whole()
    # the first one that was whole and could not be read used up the number in its id
    assert scene.watch.until(lambda: scene.watch.outcomes("bank-a") == [(1, "rejected")])
    assert scene.watch.entry("bank-b").counters.duplicate == 0


def absurd_headers(honest: Message) -> Iterator[tuple[dict[str, object], str]]:
    yield {"chunks": 2**40}, "chunk index, count and size do not agree"
    yield {"size": 2**40, "chunks": 2**40}, f"{2**40} bytes are announced, {256 * 1024} are allowed here"
    yield {"size": 256 * 1024 + 1}, f"{256 * 1024 + 1} bytes are announced, {256 * 1024} are allowed here"
    yield {"chunk": -1}, "the header 'chunk' must be a whole number"
    yield {"schema": 99}, "schema header '99' is not 1"
    yield dict.fromkeys(honest.headers, ""), "schema header '' is not 1"


def test_absurd_headers_are_refused_before_anything_is_kept(scene):
    honest = an_honest_message(scene.start)
    for headers, reason in absurd_headers(honest):
        for _ in range(10):
            scene.hostile.publish(replace(honest, headers={**honest.headers, **headers}))
        assert {scene.refusal() for _ in range(10)} == {reason}


def test_a_megabyte_of_random_bytes_is_refused(scene):
    body = os.urandom(MEBIBYTE)
    scene.hostile.publish(Message(body, "update", "x"))
    letter = scene.letter()
    assert letter.body == body
    assert "schema header" in str(letter.headers["refused"])
    assert (letter.headers["author"], letter.headers["queue"]) == ("bank-a", "fl.upd.bank-a")


def test_a_delta_that_cannot_be_folded_is_settled_as_rejected(scene):
    not_finite, nan, inf = "a value is not finite", float("nan"), float("inf")
    # two updates that are aggregated take one strike back: what is rejected here is never three strikes
    good, bad = (1, 2, 3), [(1, nan, 3), (1, inf, 3), (3e38, 3e38, 3e38), (1, 2), ()]
    for sequence, values in enumerate((each for wrong in bad for each in (wrong, good, good)), start=1):
        scene.hostile.send(scene.start, sequence, *values)
    assert scene.watch.until(lambda: len(scene.watch.outcomes("bank-a")) == 15)
    rejected = [each for each in scene.watch.settled if each.outcome == "rejected"]
    shape = "the array 'w' has shape ({},), the model has (3,)"
    assert [each.reason for each in rejected] == [not_finite] * 3 + [shape.format(2), shape.format(0)]
    assert {each.weight for each in rejected} == {"0x0.0p+0"}
    assert scene.watch.outcomes("bank-a")[14] == (15, "aggregated")


def test_an_update_on_what_never_was_is_settled_as_stale(scene):
    never = [{"base_hash": "e" * 64}, {"base_version": 10**6}, {"plan_hash": "e" * 64}]
    for sequence, changes in enumerate(never, start=1):
        scene.hostile.send(scene.start, sequence, 1, 2, 3, **changes)
    assert scene.watch.until(lambda: len(scene.watch.outcomes("bank-a")) == 3)
    reasons = [each.reason for each in scene.watch.settled if each.outcome == "stale"]
    assert reasons[0] == "its base is not in the lineage"
    assert reasons[1].startswith("staleness -")
    assert reasons[2] == "made under another plan"


def test_an_update_of_more_examples_than_the_world_has_weighs_no_more_than_one(scene):
    scene.hostile.send(scene.start, 1, 1, 1, 1, num_examples=2**63)
    assert scene.watch.until(lambda: scene.watch.outcomes("bank-a"))
    assert max(float.fromhex(each.weight) for each in scene.watch.settled) <= 1.0


def test_an_id_that_comes_again_with_another_content_is_refused(scene):
    scene.hostile.send(scene.start, 1, 3, 2, 1)
    scene.hostile.publish(an_honest_message(scene.start))
    assert scene.refusal() == "update 1/1 came again with another content"


def test_a_flood_of_uploads_that_nobody_finishes_stays_its_senders_affair(scene):
    honest = an_honest_message(scene.start)
    unfinished = {**honest.headers, "chunks": len(honest.body)}
    for number in range(60):
        scene.hostile.publish(replace(honest, body=b"x", headers={**unfinished, "id": f"upload {number}"}))
    scene.require_the_others_to_go_on()
    scene.hostile.send(scene.start, 1, 1, 2, 3)
    assert scene.watch.until(lambda: scene.watch.outcomes("bank-a") == [(1, "aggregated")])


def test_a_flood_of_repeats_does_not_put_off_the_others_commits(scene):
    scene.hostile.send(scene.start, 1, 1, 2, 3)
    over = threading.Event()

    def flood() -> None:
        sender, repeat = Hand(scene.server, "bank-a"), an_honest_message(scene.start)
        while not over.is_set():
            with suppress(PublishRefusedError):
                sender.publish(repeat)

    flooding = threading.Thread(target=flood)
    flooding.start()
    try:
        assert scene.watch.until(lambda: scene.watch.entry("bank-a").counters.duplicate)
        scene.require_the_others_to_go_on()
    finally:
        over.set()
        flooding.join(20)
    assert scene.watch.outcomes("bank-a") == [(1, "aggregated")]


def test_a_privacy_statement_beyond_the_plan_is_not_folded(broker_server, tmp_path):
    plan = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=3.0))
    begin(broker_server, plan)
    watch, hand = Watch(broker_server.connect("operator")), Hand(broker_server, "bank-a")
    with Leader(broker_server, tmp_path):
        hand.send(watch.head, 1, 1, 2, 3, privacy=a_statement(plan, 2.5))
        hand.send(watch.head, 2, 0, 0, 0, privacy=a_statement(plan, 2.75))
        hand.send(watch.head, 3, 1, 2, 3, privacy=PrivacyStatement(mechanism="none"))
        hand.send(watch.head, 4, 1, 2, 3, privacy=a_statement(plan, 3.5))
        hand.send(watch.head, 5, 1, 2, 3, privacy=a_statement(plan, 2.9))
        assert watch.until(lambda: len(watch.outcomes("bank-a")) == 5)
    outcomes = ["aggregated", "rejected", "rejected", "over_budget", "over_budget"]
    assert watch.outcomes("bank-a") == list(enumerate(outcomes, start=1))
    assert (watch.entry("bank-a").epsilon_spent, watch.entry("bank-a").standing) == (3.5, "budget_spent")
