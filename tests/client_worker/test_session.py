import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from broker_config.memory import MemoryRabbit
from broker_config.streams import publish_claim, publish_record
from broker_config.topology import MODEL, Limits, control_queue, topology, update_queue
from client_worker.ledger import Ledger
from client_worker.local_work import LocalWork
from client_worker.policy import Policy
from client_worker.session import Session
from shared import messages
from shared.broker import Message
from shared.chunks import split
from shared.errors import CheckpointError, SettingsError, TopologyError
from shared.messages import BlobName, Entry, Hello, Location, ManifestRecord, Standing, Update
from shared.plan import Limits as PlanLimits
from shared.plan import LocalPlan, Plan, PrivacyPlan
from tests.builders import NAMES, RUN, a_claim, a_manifest, a_plan, array, name_of
from tests.running import local_data, member

PLAN = a_plan()


class Scene:
    """One session, stepped by the test, which plays the leader too."""

    def __init__(self, folder: Path, plan: Plan = PLAN, limits: Limits | None = None):
        self.rabbit = MemoryRabbit(topology(NAMES, limits))
        self.path = folder / "ledger.sqlite"
        self.plan = plan
        self.leader = self.rabbit.connect("aggregator")
        self.leader.consume(update_queue("bank-a"), prefetch=100)
        publish_claim(self.leader, a_claim(1))
        self.head: ManifestRecord | None = None
        self.entry = Entry(incarnation=1)
        self.data = local_data("bank-a", at_least=lambda: None)
        self.member = member("bank-a")
        self.works: list[LocalWork] = []
        self.commit()

    def commit(self, model: float = 0.0, **changes) -> None:
        """The leader's next manifest."""
        content = messages.encode_model(RUN, {"w": array(model)})
        blob = BlobName(hash=content.hash, size=content.size)
        former = self.head.manifest if self.head else None
        new_model = former is None or former.model != blob
        if new_model:
            self.leader.publish(MODEL, next(split(content, kind="model", run_id=RUN, identity=blob.hash, chunk_bytes=2**20)))
        at = Location(offset=self.rabbit.depth(MODEL) - 1, chunks=1)
        version = 0 if former is None else former.version + new_model
        fields = {
            "plan": self.plan,
            "plan_hash": self.plan.hash,
            "model": blob,
            "table": {name_of("bank-a"): self.entry},
            **changes,
        }
        manifest = a_manifest(version, previous=self.head.hash if self.head else "", **fields)
        self.head = messages.manifest_record(1, manifest, at)
        publish_record(self.leader, self.head)

    def settle(self, update: Update, digest: str, *, model: float = 0.0, **changes) -> None:
        self.entry = self.entry.model_copy(update={"watermark": update.sequence, "last_hash": digest})
        self.commit(model, **changes)

    def session(self) -> Session:
        """A new connection's session over the same ledger."""
        for work in self.works:
            work.close()
        ledger = Ledger(self.path, run_id=RUN, institution="bank-a", incarnation=self.member.incarnation)
        self.work = LocalWork(self.member, self.data, ledger, threading.Event())
        self.works = [self.work]
        return Session(self.work, self.rabbit.connect("bank-a"))

    def welcomed(self) -> Session:
        session = self.session()
        session.open()
        self.answer(self.hello())
        return session

    def hello(self) -> Hello:
        kind, _, body = self.received()
        assert kind == "hello"
        return messages.decode(Hello, "hello", body, max_bytes=2**16)

    def answer(self, hello: Hello) -> None:
        self.entry = self.entry.model_copy(update={"nonce": hello.nonce})
        self.commit(0.0 if self.head is None or self.head.manifest.version == 0 else float(self.head.manifest.version))

    def received(self) -> tuple[str, str, bytes]:
        delivery = self.leader.receive(0)
        assert delivery is not None
        self.leader.ack(delivery)
        return delivery.message.kind, str(delivery.message.headers["content"]), delivery.message.body

    def nothing_received(self) -> bool:
        return self.leader.receive(0) is None

    def update(self, session: Session) -> tuple[Update, str]:
        """Steps until an update is on the queue."""
        stepped(session, lambda: self.rabbit._queues[update_queue("bank-a")].consumers[0].unsettled)
        kind, digest, body = self.received()
        assert kind == "update"
        return messages.decode_update(body, max_bytes=2**20)[0], digest

    def close(self) -> None:
        for work in self.works:
            work.close()


def stepped(session: Session, look: Callable[[], object], timeout_seconds: float = 10.0) -> None:
    """Turns the session until something is true."""
    deadline = time.monotonic() + timeout_seconds
    while not look():
        assert time.monotonic() < deadline
        session.step()


def turned(session: Session, times: int = 5) -> None:
    for _ in range(times):
        session.step()


@pytest.fixture
def scene(tmp_path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def test_a_worker_says_hello_with_what_its_ledger_knows(scene):
    scene.session().open()
    hello = scene.hello()
    assert (hello.institution, hello.incarnation, hello.head_sequence, hello.head_hash, hello.num_examples) == (
        "bank-a",
        1,
        0,
        "",
        100,
    )


def test_nothing_is_trained_before_the_hello_is_answered(scene):
    session = scene.session()
    session.open()
    hello = scene.hello()
    scene.commit()
    turned(session)
    assert scene.work.ledger.totals.reservations == 0
    scene.answer(hello)
    assert scene.update(session)[0].sequence == 1


def test_an_update_is_made_on_the_newest_model(scene):
    session = scene.welcomed()
    scene.commit(5.0)
    update, _ = scene.update(session)
    assert (update.base_version, update.base_hash) == (1, scene.head.manifest.model.hash)


def test_one_update_is_in_flight_until_a_manifest_settles_it(scene):
    session = scene.welcomed()
    first, digest = scene.update(session)
    scene.commit(3.0)
    turned(session)
    assert scene.nothing_received()
    assert scene.work.ledger.totals.reservations == 1
    scene.settle(first, digest, model=4.0)
    second, _ = scene.update(session)
    assert (second.sequence, second.base_version) == (2, 2)


def test_the_same_model_is_not_trained_on_again_at_once(scene):
    session = scene.welcomed()
    first, digest = scene.update(session)
    scene.settle(first, digest)
    turned(session)
    assert scene.work.ledger.unsettled() == []
    assert scene.work.ledger.totals.reservations == 1


def test_after_a_crash_what_the_outbox_holds_is_sent_as_it_was(scene):
    _, digest = scene.update(scene.welcomed())
    again = scene.session()
    again.open()
    hello = scene.hello()
    assert (hello.head_sequence, hello.head_hash) == (1, digest)
    scene.answer(hello)
    assert scene.update(again)[1] == digest
    assert scene.work.ledger.totals.reservations == 1


def test_what_was_settled_meanwhile_is_not_sent_again(scene):
    first, digest = scene.update(scene.welcomed())
    scene.settle(first, digest, model=2.0)
    again = scene.welcomed()
    assert scene.update(again)[0].sequence == 2


def test_a_watermark_that_went_back_is_followed_by_the_same_updates_in_order(scene):
    session = scene.welcomed()
    digests = []
    for model in (1.0, 2.0, 2.0):
        update, digest = scene.update(session)
        digests.append(digest)
        scene.settle(update, digest, model=model)
    turned(session)
    assert scene.work.ledger.unsettled() == []
    scene.entry = scene.entry.model_copy(update={"watermark": 1, "last_hash": digests[0]})
    scene.commit(9.0)
    again = scene.welcomed()
    for expected in digests[1:]:
        update, digest = scene.update(again)
        assert digest == expected
        scene.settle(update, digest, model=20.0 + update.sequence)


def test_a_ledger_behind_the_watermark_is_a_restored_backup(scene):
    scene.entry = scene.entry.model_copy(update={"watermark": 7, "last_hash": "7" * 64})
    scene.commit(1.0)
    session = scene.welcomed()
    with pytest.raises(CheckpointError, match="restored backup"):
        turned(session)
    assert scene.work.ledger.totals.reservations == 0


def test_a_watermark_with_another_hash_is_another_ledger(scene):
    update, _ = scene.update(scene.welcomed())
    scene.entry = scene.entry.model_copy(update={"watermark": update.sequence, "last_hash": "7" * 64})
    scene.commit(1.0)
    session = scene.welcomed()
    with pytest.raises(CheckpointError, match="disagrees"):
        turned(session)


@pytest.mark.parametrize("beyond", [0, 1])
def test_a_foreign_update_settled_under_our_name_stops_the_worker(scene, beyond):
    session = scene.welcomed()
    update, _ = scene.update(session)
    scene.entry = scene.entry.model_copy(update={"watermark": update.sequence + beyond, "last_hash": "7" * 64})
    scene.commit(1.0)
    with pytest.raises(CheckpointError, match="the service runs twice"):
        turned(session)


def test_a_lost_update_is_closed_and_the_next_one_made(scene):
    session = scene.welcomed()
    scene.update(session)
    scene.entry = scene.entry.model_copy(update={"watermark": 1, "last_hash": ""})
    scene.commit(1.0)
    assert scene.update(session)[0].sequence == 2


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (None, "bank-a is not a member"),
        (Entry(incarnation=1, removed=True), "bank-a is not a member"),
        (Entry(incarnation=2), "incarnation 2 was issued after this one"),
    ],
)
def test_who_is_not_a_member_cannot_take_part(scene, entry, reason):
    scene.commit(1.0, table={name_of("bank-a"): entry} if entry else {})
    with pytest.raises(TopologyError, match=reason):
        scene.session().open()


def test_another_run_is_not_ours(scene):
    scene.member = replace(scene.member, run_id="cd" * 8)
    work = LocalWork(
        scene.member, scene.data, Ledger(scene.path, run_id="cd" * 8, institution="bank-a", incarnation=1), threading.Event()
    )
    scene.works = [work]
    with pytest.raises(TopologyError, match=f"the broker holds run {RUN}"):
        Session(work, scene.rabbit.connect("bank-a")).open()


def standing(scene: Scene, session: Session) -> tuple[str, str, str]:
    """What the institution said of a plan: its state, the limit, and the plan."""
    turned(session, 3)
    kind, _, body = scene.received()
    said = messages.decode(Standing, kind, body, max_bytes=2**16)
    return said.state, said.limit, said.plan_hash


def test_a_plan_beyond_the_policy_is_refused_by_a_message_that_names_the_limit_and_nothing_is_trained(scene):
    scene.member = replace(scene.member, policy=Policy())
    session = scene.welcomed()
    assert standing(scene, session) == ("plan_refused", "allow_no_privacy", scene.plan.hash)
    turned(session, 10)
    assert scene.nothing_received()
    assert (scene.work.ledger.totals.reservations, session.finished) == (0, False)


def test_a_worker_that_refuses_a_plan_trains_under_the_next_one_that_it_allows(tmp_path):
    scene = Scene(tmp_path, a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=4.0)))
    session = scene.welcomed()
    first, digest = scene.update(session)
    scene.plan = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=500.0))
    scene.settle(first, digest, model=1.0)
    assert standing(scene, session) == ("plan_refused", "max_epsilon", scene.plan.hash)
    assert scene.work.ledger.totals.reservations == 1
    scene.plan = a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=5.0))
    scene.commit(2.0)
    assert scene.update(session)[0].plan_hash == scene.plan.hash
    scene.close()


def test_updates_are_spread_over_the_horizon(tmp_path):
    scene = Scene(tmp_path, a_plan(local=LocalPlan(updates=10, horizon_seconds=1000.0)))
    session = scene.welcomed()
    first, digest = scene.update(session)
    scene.settle(first, digest, model=1.0)
    turned(session, 10)
    assert scene.nothing_received()
    scene.work.ledger.totals.reserved_at_seconds -= 200  # spaced by 1200 / 9 seconds then, give or take a tenth
    assert scene.update(session)[0].base_version == 1
    scene.close()


def test_a_spent_budget_stops_training_and_keeps_the_worker_up(tmp_path):
    scene = Scene(tmp_path, a_plan(privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=0.6), local=LocalPlan(updates=100)))
    session = scene.welcomed()
    first, digest = scene.update(session)
    assert first.privacy.epsilon_spent == 0.5
    scene.settle(first, digest, model=1.0)
    assert standing(scene, session) == ("budget_spent", "epsilon", scene.plan.hash)
    assert (scene.work.ledger.totals.reservations, session.finished) == (1, False)
    scene.commit(2.0)
    turned(session)
    assert scene.nothing_received()
    scene.close()


def test_in_quarantine_nothing_is_trained_and_after_it_the_worker_goes_on_by_itself(scene):
    session = scene.welcomed()
    first, digest = scene.update(session)
    for turn in (1, 2):
        scene.entry = scene.entry.model_copy(update={"quarantined": True})
        with capture_logs() as said:
            scene.settle(first, digest, model=2.0 * turn)
            turned(session, 10)
            scene.commit(2.0 * turn + 1)
            turned(session, 10)
        assert scene.nothing_received()
        assert scene.work.ledger.totals.reservations == turn, "no budget is spent"
        assert not session.finished
        (told,) = [line for line in said if line["event"] == "not training"]
        assert told["state"] == "quarantined"
        assert "ask the operator" in told["reason"]
        scene.entry = scene.entry.model_copy(update={"quarantined": False})
        with capture_logs() as said:
            scene.commit(10.0 * turn)
            first, digest = scene.update(session)
        assert first.base_version == scene.head.manifest.version
        assert "released from quarantine" in [line["event"] for line in said]


def test_who_starts_in_quarantine_says_hello_and_trains_nothing(scene):
    scene.entry = scene.entry.model_copy(update={"quarantined": True})
    session = scene.welcomed()
    turned(session, 10)
    assert scene.nothing_received()
    assert scene.work.ledger.totals.reservations == 0


def test_who_is_put_into_quarantine_while_a_model_is_on_its_way_does_not_train_on_it(scene):
    session = scene.welcomed()
    arrived, session._model = session._model, lambda wanted: None
    stepped(session, lambda: session._wanted)
    scene.entry = scene.entry.model_copy(update={"quarantined": True})
    scene.commit(5.0)
    turned(session)
    session._model = arrived
    turned(session, 10)
    assert scene.work.ledger.totals.reservations == 0


def test_a_finished_run_ends_the_session_after_everything_is_settled(scene):
    session = scene.welcomed()
    first, digest = scene.update(session)
    scene.commit(1.0, phase="finished", phase_reason="enough")
    turned(session)
    assert not session.finished
    scene.settle(first, digest, model=1.0, phase="finished", phase_reason="enough")
    stepped(session, lambda: session.finished)


def test_a_hint_that_cannot_be_read_changes_nothing(scene):
    session = scene.welcomed()
    scene.leader.publish(control_queue("bank-a"), Message(b"\x80\x04", "control", "x"))
    assert scene.update(session)[0].sequence == 1


def test_a_model_that_no_update_could_carry_is_refused_before_anything_is_charged(tmp_path):
    small = PLAN.model_copy(update={"limits": PlanLimits(update_bytes=1024)})
    scene = Scene(tmp_path, small)
    try:
        session = scene.welcomed()
        scene.head = replace(
            scene.head, manifest=scene.head.manifest.model_copy(update={"model": BlobName(hash="a" * 64, size=1025)})
        )
        session._reader.lineage = replace(session._reader.lineage, head=scene.head)
        session._greeted = True
        with pytest.raises(SettingsError, match="allows updates of 1024 bytes, a model has 1025"):
            session._train()
        assert scene.work.ledger.totals.reservations == 0
    finally:
        scene.close()
