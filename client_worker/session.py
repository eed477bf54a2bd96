"""The institution's loop over one connection: newest model in, sealed update out, and the wait until it is settled."""

import random
import time

import structlog

from broker_config.downloads import ModelReader, Wanted
from broker_config.streams import LineageReader
from broker_config.topology import LINEAGE, MODEL, control_queue
from client_worker import outgoing, telling
from client_worker.ledger_rows import Sealed
from client_worker.local_work import LocalWork
from client_worker.metrics import State, Work
from client_worker.outgoing import Base
from client_worker.permission import Permission
from client_worker.policy import require_task
from client_worker.progress import Progress
from client_worker.sending import REFUSED_PAUSE_SECONDS, Sender
from client_worker.standing import SameModelPause, next_nonce, require_membership, require_own, require_same_history
from shared import messages, parameters
from shared.broker import Broker, Delivery
from shared.errors import RejectedMessageError, SettingsError
from shared.lineage import Lineage
from shared.messages import Control, ManifestRecord, PrivacyStatement, StandingState
from shared.parameters import Parameters
from shared.plan import Limits, Plan

TICK_SECONDS = 0.05
"""For what only time brings; whatever else there is to do wakes the loop."""
MOST_AT_ONCE = 64
"""Deliveries taken before the loop looks at everything else again."""
RESEND_SECONDS = 60.0

log = structlog.get_logger()


class Session:
    """One connection's part of an institution's work. Ends by an error of the broker, or when the run is finished."""

    def __init__(self, work: LocalWork, broker: Broker) -> None:
        work.on_trained = broker.wake
        self._work = work
        self._broker = broker
        self._reader = LineageReader(broker, on_record=self._note_outcomes)
        self._models = ModelReader(broker, work.spool)
        self._sender = Sender(work, broker)
        self._nonce = ""
        self._greeted = False
        self._outcomes: dict[int, str] = {}
        self._settled_from: Lineage | None = None
        self._send_after = 0.0
        self._sent = 0
        self._wanted: Wanted | None = None
        self._pause = SameModelPause()
        self._permission = Permission(work, self._leave)
        self._progress = Progress()
        self._draw = random.random()  # noqa: S311 - it spreads institutions in time, nothing is hidden by it
        self.finished = False

    def open(self) -> None:
        """Reads the lineage and says hello. Raises SettingsError or TopologyError when this institution cannot take part."""
        self._reader.catch_up()
        _, lineage = self._reader.current()
        member = self._work.member
        require_membership(lineage, member)
        if lineage.plan is not None:
            require_task(lineage.plan, task_hash=self._work.data.task_hash)
        self._broker.consume(control_queue(member.institution), prefetch=16)
        self._say_hello()
        self._work.gauges.greets()

    def step(self) -> None:
        """One turn: take what has arrived, then do what is next. Waits at most a tick."""
        self._work.gauges.vitals.beat()
        delivery, taken = self._broker.receive(TICK_SECONDS), 0
        while delivery is not None:
            self._take(delivery)
            taken += 1
            delivery = self._broker.receive(0.0) if taken < MOST_AT_ONCE else None
        if self._greeted:
            self._proceed()
            self._work.gauges.turns(*self._at(), self._known())
        elif time.monotonic() > self._send_after:
            self._say_hello()

    def _at(self) -> tuple[State, str]:
        """What the worker is at, and more of it in words."""
        training, waiting = self._work.training, self._work.ledger.unsettled()
        if training is not None:
            return "training", self._progress.words(training)
        return ("waiting", f"until update {waiting[0].sequence} is settled") if waiting else self._permission.kept_by

    def _known(self) -> Work:
        work = self._work
        return Work.of(
            self._reader.lineage,
            work.ledger.totals,
            unsettled=len(work.ledger.unsettled()),
            is_training=work.training is not None,
        )

    def _proceed(self) -> None:
        if self._reader.lineage is not self._settled_from:
            self._settle()
        self._progress.look(self._work.training)
        self._work.seal()
        self._sender.deliver(self._chunk_bytes)
        waiting = self._work.ledger.unsettled()
        if waiting:
            if waiting[0].sequence != self._sent or time.monotonic() >= self._send_after:
                self._sent = waiting[0].sequence
                self._send(waiting[0])
        else:
            self._sender.abandon()
            if self._work.training is None:
                self._train()

    def _send(self, sealed: Sealed) -> None:
        progress = self._sender.update(sealed, self._chunk_bytes)
        if progress == "under way":
            self._send_after = 0.0
        else:
            taken = progress == "taken"
            self._send_after = time.monotonic() + (self._patience_seconds if taken else REFUSED_PAUSE_SECONDS)

    def _take(self, delivery: Delivery) -> None:
        if delivery.queue == MODEL:
            self._models.take(delivery)
            return
        self._broker.ack(delivery)
        if delivery.queue != LINEAGE:
            self._hear(delivery)
        elif self._reader.take(delivery) == "extended" and not self._greeted:
            self._compare()

    def _hear(self, delivery: Delivery) -> None:
        try:
            hint = messages.decode(Control, "control", delivery.believed().body, max_bytes=2**16)
        except RejectedMessageError as error:
            log.warning("hint ignored", reason=str(error))
            return
        log.warning("hint", sequence=hint.sequence, outcome=hint.outcome, reason=hint.reason)

    def _note_outcomes(self, record: ManifestRecord, _delivery: Delivery) -> None:
        for settlement in record.manifest.settled:
            if settlement.institution == self._work.member.pseudonym:
                self._outcomes[settlement.sequence] = settlement.outcome

    def _say_hello(self) -> None:
        member, (sequence, digest) = self._work.member, self._work.ledger.head
        self._nonce = next_nonce(require_membership(self._reader.lineage, member).nonce)
        hello = outgoing.hello(member, (sequence, digest), nonce=self._nonce, num_examples=self._work.data.num_examples)
        taken = self._sender.small("hello", hello, f"hello-{self._nonce}", self._chunk_bytes)
        self._send_after = time.monotonic() + (RESEND_SECONDS if taken else REFUSED_PAUSE_SECONDS)
        if taken:
            log.info("hello", says=telling.greets(sequence), head_sequence=sequence)

    def _compare(self) -> None:
        """Once the hello is answered: does the aggregator know what this ledger knows?"""
        entry, ledger = require_membership(self._reader.lineage, self._work.member), self._work.ledger
        if entry.nonce != self._nonce:
            return
        sequence, _ = ledger.head
        require_same_history(entry, sequence, ledger.kept)
        if entry.watermark < sequence:
            ledger.reopen(entry.watermark)
        plan = self._reader.lineage.plan
        if sequence == 0 and entry.epsilon_spent is not None and plan is not None:
            self._work.carry_over(entry.epsilon_spent, plan)
        self._greeted = True
        to_send = sequence - entry.watermark
        log.info("welcome", says=telling.is_welcome(to_send), watermark=entry.watermark, to_send=to_send)

    def _settle(self) -> None:
        """Closes what the newest manifest has settled."""
        lineage, ledger = self._reader.lineage, self._work.ledger
        entry = require_membership(lineage, self._work.member)
        require_own(entry, ledger.head[0], ledger.kept)
        for sealed in ledger.unsettled():
            if sealed.sequence <= entry.watermark:
                outcome = self._outcomes.pop(sealed.sequence, "settled")
                ledger.settle(sealed.sequence, outcome)
                self._work.gauges.is_settled(outcome)
                self._work.after_step("settle")
                version = self._head.manifest.version
                says = telling.is_settled(sealed.sequence, outcome, version)
                log.info("settled", says=says, sequence=sealed.sequence, outcome=outcome, version=version)
        self._settled_from = lineage

    @property
    def _head(self) -> ManifestRecord:
        return self._reader.current()[0]

    @property
    def _chunk_bytes(self) -> int:
        plan = self._reader.lineage.plan
        return plan.limits.chunk_bytes if plan is not None else Limits().chunk_bytes

    @property
    def _patience_seconds(self) -> float:
        """How long an update may be unsettled before it is sent again."""
        plan = self._reader.lineage.plan
        return RESEND_SECONDS + (plan.limits.version_spacing_seconds if plan is not None else 0.0)

    def _train(self) -> None:
        """Asks for a model, and trains on it once it is here, if everything still allows it."""
        manifest = self._head.manifest
        if manifest.phase != "running":
            self._permission.say(manifest.phase, manifest.phase_reason)
            self.finished = manifest.phase == "finished"
            return
        if self._wanted is None and self._permitted() is not None:
            self._wanted = self._choose()
        if self._wanted is None:
            return
        wanted, model = self._wanted, self._model(self._wanted)
        permitted = None if model is None else self._permitted()
        if model is None or permitted is None:
            return
        self._wanted = None
        if self._is_stale(wanted):
            log.warning("the model came too late to train on, beginning with the newest", version=wanted.version)
            return
        plan, statement = permitted
        self._draw = random.random()  # noqa: S311
        _require_room(plan, 4 * parameters.count(model))
        self._pause.begun(wanted.blob.hash)
        self._permission.begun()
        self._work.begin(Base(wanted.version, wanted.blob, manifest.plan_hash), model, plan, statement)
        self._make_report(wanted, model)

    def _permitted(self) -> tuple[Plan, PrivacyStatement] | None:
        head, lineage = self._reader.current()
        return self._permission.now(head, lineage, draw=self._draw)

    def _leave(self, plan_hash: str, state: StandingState, limit: str, reason: str) -> None:
        """The aggregator is told, so that nobody waits for this institution under this plan."""
        standing = outgoing.standing(self._work.member, plan_hash, state, limit=limit, reason=reason)
        self._sender.post("standing", standing, f"standing-{self._nonce}-{plan_hash[:16]}")

    def _choose(self) -> Wanted | None:
        """What to train on: a large model that is partly here while that makes sense, else the newest; None during a pause."""
        head, lineage = self._reader.current()
        wanted = self._models.unfinished()
        if wanted is None or lineage.bases.get(wanted.version) != wanted.blob.hash or self._is_stale(wanted):
            wanted = Wanted(head.manifest.version, head.manifest.model, head.model_at)
        if lineage.plan is not None:
            _require_room(lineage.plan, wanted.blob.size)
        if self._pause.holds(wanted.blob.hash):
            self._permission.say("waiting", telling.is_same(wanted.version))
            return None
        return wanted

    def _model(self, wanted: Wanted) -> Parameters | None:
        """The model once it is here. What is not, and will not come or is soon got anew, is no longer wanted."""
        head, lineage = self._reader.current()
        if wanted.blob.hash == head.manifest.model.hash:
            wanted = Wanted(wanted.version, wanted.blob, head.model_at)  # a new leader may have published it elsewhere
        model = self._models.get(wanted)
        if model is None and (wanted.is_small or self._models.dropped(wanted, lineage.bases)):
            self._wanted = None
        return model

    def _is_stale(self, wanted: Wanted) -> bool:
        head, lineage = self._reader.current()
        most = lineage.plan.aggregation.staleness.max_staleness if lineage.plan else 0
        return head.manifest.version - wanted.version > most

    def _make_report(self, base: Wanted, model: Parameters) -> None:
        released = self._work.metrics(model, base.version)
        if released is not None:
            report = outgoing.report(self._work.member, base.version, base.blob.hash, *released)
            number = self._work.ledger.totals.reports
            self._sender.post("report", report, f"report-{report.institution}-{report.incarnation}-{number}")


def _require_room(plan: Plan, size: int) -> None:
    """Raises SettingsError where no update could carry a model; nothing is charged then."""
    if size > plan.limits.update_bytes:
        raise SettingsError(f"the plan allows updates of {plan.limits.update_bytes} bytes, a model has {size}")
