"""The institution's loop over one connection: newest model in, sealed update out, and the wait until it is settled."""

import secrets
import time

import structlog

from broker_config.streams import LineageReader, fetch_model
from broker_config.topology import LINEAGE, control_queue, update_queue
from client_worker.ledger import Sealed
from client_worker.local_work import LocalWork, Member
from client_worker.policy import accept_plan
from shared import messages
from shared.broker import Broker, Delivery, Header
from shared.chunks import split
from shared.errors import (
    CheckpointError,
    PrivacyBudgetExhaustedError,
    PublishRefusedError,
    RejectedMessageError,
    SettingsError,
    TopologyError,
)
from shared.lineage import Lineage
from shared.messages import Control, Entry, Hello, ManifestRecord, Report
from shared.parameters import Parameters
from shared.plan import Frozen, Limits, Plan

TICK_SECONDS = 0.05
RESEND_SECONDS = 60.0
REFUSED_PAUSE_SECONDS = 1.0
SAME_MODEL_PAUSE_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0

log = structlog.get_logger()


def require_membership(lineage: Lineage, member: Member) -> Entry:
    """The institution's entry of the table. Raises TopologyError when it is no member of this run, or not with this kit."""
    run_id = lineage.head.manifest.run_id if lineage.head else ""
    if run_id != member.run_id:
        raise TopologyError(f"the broker holds run {run_id}, {member.institution} was admitted to run {member.run_id}")
    entry = (lineage.table or {}).get(member.pseudonym)
    if entry is None or entry.removed:
        raise TopologyError(f"{member.institution} is not a member of this federation; ask the operator to add it")
    if entry.incarnation > member.incarnation:
        raise TopologyError(f"incarnation {entry.incarnation} was issued after this one; use the newer kit, or stop this service")
    return entry


class Session:
    """One connection's part of an institution's work. Ends by an error of the broker, or when the run is finished."""

    def __init__(self, work: LocalWork, broker: Broker) -> None:
        self._work = work
        self._broker = broker
        self._reader = LineageReader(broker, on_record=self._note_outcomes)
        self._nonce = secrets.token_hex(8)
        self._greeted = False
        self._outcomes: dict[int, str] = {}
        self._send_after = 0.0
        self._sent = 0
        self._train_after = 0.0
        self._pause_seconds = SAME_MODEL_PAUSE_SECONDS
        self._last_base = ""
        self._spent_plan = ""
        self._said: tuple[str, str] = ("", "")
        self.finished = False

    def open(self) -> None:
        """Reads the lineage and says hello. Raises SettingsError or TopologyError when this institution cannot take part."""
        self._reader.catch_up()
        _, lineage = self._reader.current()
        member = self._work.member
        require_membership(lineage, member)
        if lineage.plan is not None:
            self._accept(lineage.plan)
        self._broker.consume(control_queue(member.institution), prefetch=16)
        self._say_hello()

    def step(self) -> None:
        """One turn: take what has arrived, then do what is next. Waits at most a tick."""
        delivery = self._broker.receive(TICK_SECONDS)
        while delivery is not None:
            self._take(delivery)
            delivery = self._broker.receive(0.0)
        if self._greeted:
            self._proceed()
        elif time.monotonic() > self._send_after:
            self._say_hello()

    def _proceed(self) -> None:
        waiting = self._settle()
        sealed = self._work.seal()
        if sealed is not None:
            waiting.append(sealed)
        if waiting:
            if waiting[0].sequence != self._sent or time.monotonic() >= self._send_after:
                self._send(waiting[0])
        elif self._work.training is None:
            self._train()

    def _entry(self) -> Entry:
        return require_membership(self._reader.lineage, self._work.member)

    def _accept(self, plan: Plan) -> None:
        accept_plan(plan, self._work.member.policy, task_hash=self._work.data.task_hash)

    def _take(self, delivery: Delivery) -> None:
        self._broker.ack(delivery)
        if delivery.queue != LINEAGE:
            self._hear(delivery)
        elif self._reader.take(delivery) == "extended" and not self._greeted:
            self._compare()

    def _hear(self, delivery: Delivery) -> None:
        try:
            hint = messages.decode(Control, "control", delivery.message.body, max_bytes=2**16)
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
        hello = Hello(
            run_id=member.run_id,
            institution=member.institution,
            incarnation=member.incarnation,
            head_sequence=sequence,
            head_hash=digest,
            nonce=self._nonce,
            num_examples=self._work.data.num_examples,
        )
        self._send_small("hello", hello, f"hello-{self._nonce}")
        self._send_after = time.monotonic() + RESEND_SECONDS
        log.info("hello", head_sequence=sequence)

    def _compare(self) -> None:
        """Once the hello is answered: does the aggregator know what this ledger knows?"""
        entry = self._entry()
        if entry.nonce != self._nonce:
            return
        sequence, digest = self._work.ledger.head
        if entry.watermark > sequence or (entry.watermark == sequence and entry.last_hash != digest):
            raise CheckpointError(
                f"the aggregator has settled update {entry.watermark}, this ledger ends at {sequence} or disagrees about it: "
                "it is a restored backup, or the service runs twice; ask the operator for a new incarnation"
            )
        if entry.watermark < sequence:
            self._work.ledger.reopen(entry.watermark)
        plan = self._reader.lineage.plan
        if sequence == 0 and entry.epsilon_spent is not None and plan is not None:
            self._work.carry_over(entry.epsilon_spent, plan)
        self._greeted = True
        log.info("welcome", watermark=entry.watermark, to_send=sequence - entry.watermark)

    def _settle(self) -> list[Sealed]:
        """Closes what a manifest has settled; returns what is still to be sent or waited for."""
        entry, ledger = self._entry(), self._work.ledger
        waiting = ledger.unsettled()
        if entry.watermark > ledger.head[0]:
            raise CheckpointError(f"update {entry.watermark} was settled under our name and is not ours; the service runs twice")
        for sealed in waiting:
            if sealed.sequence == entry.watermark and entry.last_hash not in ("", sealed.hash):
                raise CheckpointError("an update that is not ours was settled under our name; the service runs twice")
            if sealed.sequence <= entry.watermark:
                outcome = self._outcomes.pop(sealed.sequence, "settled")
                ledger.settle(sealed.sequence, outcome)
                self._work.after_step("settle")
                log.info("settled", sequence=sealed.sequence, outcome=outcome, version=self._version)
        return [sealed for sealed in waiting if sealed.sequence > entry.watermark]

    @property
    def _version(self) -> int:
        return self._reader.current()[0].manifest.version

    def _send(self, sealed: Sealed) -> None:
        """Publishes an update from its first chunk on; a re-send is the same bytes under the same ids."""
        member, content = self._work.member, self._work.ledger.content(sealed.sequence)
        self._sent = sealed.sequence
        about: dict[str, Header] = {
            "institution": member.institution,
            "incarnation": member.incarnation,
            "sequence": sealed.sequence,
        }
        chunks = split(
            content,
            kind="update",
            run_id=member.run_id,
            identity=f"{member.institution}/{member.incarnation}/{sealed.sequence}",
            chunk_bytes=self._chunk_bytes,
            about=about,
        )
        try:
            for chunk in chunks:
                self._broker.publish(update_queue(member.institution), chunk)
        except PublishRefusedError as error:
            self._send_after = time.monotonic() + REFUSED_PAUSE_SECONDS
            log.warning("update not taken yet, trying again", sequence=sealed.sequence, reason=str(error))
            return
        self._work.after_step("publish")
        self._work.ledger.published(sealed)
        self._send_after = time.monotonic() + RESEND_SECONDS
        log.info("published", sequence=sealed.sequence, bytes=len(content))

    @property
    def _chunk_bytes(self) -> int:
        plan = self._reader.lineage.plan
        return plan.limits.chunk_bytes if plan is not None else Limits().chunk_bytes

    def _send_small(self, kind: str, body: Frozen, identity: str) -> None:
        member = self._work.member
        content = messages.encode(kind, body)
        for chunk in split(content, kind=kind, run_id=member.run_id, identity=identity, chunk_bytes=self._chunk_bytes):
            self._broker.publish(update_queue(member.institution), chunk)

    def _train(self) -> None:
        head, lineage = self._reader.current()
        plan, manifest = lineage.plan, head.manifest
        if manifest.phase != "running" or plan is None:
            self._say(manifest.phase, manifest.phase_reason)
            self.finished = manifest.phase == "finished"
            return
        if manifest.plan_hash == self._spent_plan or self._rests(manifest.model.hash):
            return
        self._accept(plan)
        if manifest.model.size > plan.limits.update_bytes:
            raise SettingsError(f"the plan allows updates of {plan.limits.update_bytes} bytes, a model has {manifest.model.size}")
        try:
            statement = self._work.afford(plan)
        except PrivacyBudgetExhaustedError as error:
            self._spent_plan = manifest.plan_hash
            self._say("budget_spent", str(error))
            return
        model = fetch_model(self._broker, head)
        self._work.begin(head, model, plan, statement)
        self._report(head, model)

    def _rests(self, model: str) -> bool:
        """Whether to wait rather than train on the same model again, which spends epsilon; longer each time."""
        now = time.monotonic()
        if model != self._last_base:
            self._last_base, self._pause_seconds = model, SAME_MODEL_PAUSE_SECONDS
        elif now < self._train_after:
            return True
        else:
            self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        self._train_after = now + self._pause_seconds
        return False

    def _report(self, head: ManifestRecord, model: Parameters) -> None:
        released = self._work.metrics(model, head.manifest.version)
        if released is None:
            return
        member, (metrics, epsilon) = self._work.member, released
        report = Report(
            run_id=member.run_id,
            institution=member.institution,
            incarnation=member.incarnation,
            version=head.manifest.version,
            model_hash=head.manifest.model.hash,
            metrics=metrics,
            epsilon=epsilon,
        )
        self._send_small("report", report, f"report-{member.institution}-{member.incarnation}-{self._work.ledger.reports}")
        log.info("reported", version=head.manifest.version, epsilon=epsilon, **metrics)

    def _say(self, state: str, reason: str) -> None:
        if self._said != (state, reason):
            self._said = (state, reason)
            log.info("not training", state=state, reason=reason)
