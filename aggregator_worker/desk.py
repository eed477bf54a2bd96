"""What arrives at the leader, one delivery at a time: checked, put in order, folded or refused. Settled only by the commit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from aggregator_worker import operations
from aggregator_worker.admission import Order, admit, check_author, order, require_issued
from aggregator_worker.federation import Federation
from aggregator_worker.intake import Intake, Upload
from broker_config.topology import DEAD_LETTER_EXCHANGE, OPERATIONS
from shared import messages, parameters
from shared.broker import Broker, Delivery, Message
from shared.chunks import HEADERS
from shared.errors import IncompatibleUpdateError, RejectedMessageError, UnknownInstitutionError
from shared.messages import Control, Entry, Hello, Operation, Report, Settlement, Update
from shared.parameters import Parameters

QUIET_SECONDS = 0.05
"""How long settlements without a new version wait for company."""
MAX_AHEAD = 64
"""How far beyond its watermark an institution's number may be; further is refused, not waited for."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class _Early:
    """An update whose predecessor has not come yet."""

    update: Update
    delta: Parameters
    upload: Upload
    since: float


@dataclass(slots=True, eq=False)
class Desk:
    """Turns deliveries into pending settlements of the federation.

    `settled` and `hints` are what the next commit acknowledges and tells.
    """

    broker: Broker
    federation: Federation
    intake: Intake
    pseudonym_of: Callable[[str], str]
    on_report: Callable[[Report], None] = lambda report: None
    clock: Callable[[], float] = time.monotonic
    longest_wait_seconds: float = math.inf
    settled: list[Delivery] = field(default_factory=list)
    hints: list[tuple[str, Control]] = field(default_factory=list)
    _early: dict[str, dict[int, _Early]] = field(default_factory=dict)
    _reported: dict[str, int] = field(default_factory=dict)
    _pending_since: float | None = None

    def take(self, delivery: Delivery, institution: str) -> None:
        """Handles one delivery of an update queue; whatever cannot be used goes to the dead letters with its reason."""
        upload = None
        try:
            upload = self.intake.take(institution, delivery, now=self.clock())
            if upload is not None:
                self._take_upload(institution, upload)
        except RejectedMessageError as error:
            self._refuse(delivery, institution, error)
            self.intake.surplus += upload.deliveries[:-1] if upload is not None else []
        self._drop_surplus()

    def take_operation(self, delivery: Delivery) -> Operation | None:
        """Follows an operator's order; returns it if it was applied just now."""
        try:
            operation = messages.decode(Operation, "operation", delivery.message.body, max_bytes=2**20)
            if operation.run_id != self.federation.head.manifest.run_id:
                raise IncompatibleUpdateError("the order is for another run")
        except RejectedMessageError as error:
            self._refuse(delivery, OPERATIONS, error)
            return None
        outcome = operations.apply(self.federation, operation, self.pseudonym_of)
        if outcome is None:
            self.broker.ack(delivery)
            return None
        self._keep(delivery.receipt())
        log.info("operation", kind=operation.kind, applied=outcome.applied, reason=outcome.reason)
        return operation if outcome.applied else None

    def due(self) -> bool:
        """Whether a commit must happen now: K folded, T passed, or something small has waited long enough."""
        if self.federation.pending.empty or self._pending_since is None:
            return False
        waited = self.clock() - self._pending_since
        longest = min(self.federation.plan.aggregation.max_wait_seconds, self.longest_wait_seconds)
        if self.federation.buffer_full or waited >= longest:
            return True
        return self.federation.pending.aggregated == 0 and waited >= QUIET_SECONDS

    def committed(self) -> None:
        """The commit is done: nothing is pending any more."""
        self._pending_since = None
        self.settled.clear()
        self.hints.clear()

    def tidy(self, *, orphan_seconds: float) -> None:
        """Gives up on uploads nobody continues, and on numbers that later ones have overtaken for too long."""
        now = self.clock()
        for institution in self.intake.expire(now=now, idle_seconds=orphan_seconds):
            log.warning("upload given up", institution=institution, idle_seconds=orphan_seconds)
        self._drop_surplus()
        patience = self.federation.plan.aggregation.max_wait_seconds
        for institution in list(self._early):
            waiting = self._waiting(institution)
            if waiting and now - min(early.since for early in waiting.values()) > patience:
                self._give_up_gap(institution, min(waiting))

    def _acknowledge(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self.broker.ack(delivery)

    def _drop_surplus(self) -> None:
        self._acknowledge(self.intake.surplus)
        self.intake.surplus.clear()

    def _take_upload(self, institution: str, upload: Upload) -> None:
        entry = self.federation.entry(self.pseudonym_of(institution))
        if entry is None:
            raise UnknownInstitutionError(f"{institution} is not a member of this federation")
        match upload.kind:
            case "update":
                self._take_update(institution, upload, entry)
            case "hello":
                self._take_hello(institution, upload, entry)
            case _:
                self._take_report(institution, upload)

    def _check(self, institution: str, upload: Upload, body: Update | Hello | Report) -> None:
        run_id, user_id = self.federation.head.manifest.run_id, upload.deliveries[-1].user_id
        check_author(body.run_id, body.institution, user_id=user_id, queue_owner=institution, run_id=run_id)

    def _take_update(self, institution: str, upload: Upload, entry: Entry) -> None:
        update, delta = messages.decode_update(upload.content, max_bytes=len(upload.content))
        self._check(institution, upload, update)
        place: Order = order(update.incarnation, update.sequence, upload.hash, entry)
        match place:
            case "duplicate" | "outdated":
                self._drop_repeat(institution, upload, update)
            case "ahead":
                self._hold(institution, upload, update, delta)
            case "next":
                self._settle(institution, upload, update, delta)
                self._settle_followers(institution)

    def _drop_repeat(self, institution: str, upload: Upload, update: Update) -> None:
        self._acknowledge(upload.deliveries)
        self.federation.count_duplicate(self.pseudonym_of(institution))
        self._note_pending()
        log.info("delivery", kind="update", institution=institution, sequence=update.sequence, outcome="duplicate")

    def _hold(self, institution: str, upload: Upload, update: Update, delta: Parameters) -> None:
        entry = self.federation.table[self.pseudonym_of(institution)]
        if update.sequence > entry.watermark + MAX_AHEAD:
            raise IncompatibleUpdateError(f"number {update.sequence} is more than {MAX_AHEAD} ahead of {entry.watermark}")
        waiting = self._early.setdefault(institution, {})
        if update.sequence in waiting:
            self._acknowledge(waiting[update.sequence].upload.deliveries)
        waiting[update.sequence] = _Early(update, delta, upload, self.clock())

    def _waiting(self, institution: str) -> dict[int, _Early]:
        """An institution's early updates by number; those of a former incarnation are let go."""
        entry = self.federation.table[self.pseudonym_of(institution)]
        waiting = self._early.get(institution, {})
        for number, early in list(waiting.items()):
            if early.update.incarnation < entry.incarnation:
                self._drop_repeat(institution, waiting.pop(number).upload, early.update)
        return waiting

    def _settle_followers(self, institution: str) -> None:
        waiting = self._waiting(institution)
        while True:
            entry = self.federation.table[self.pseudonym_of(institution)]
            early = waiting.pop(entry.watermark + 1, None)
            if early is None:
                return
            self._settle(institution, early.upload, early.update, early.delta)

    def _give_up_gap(self, institution: str, sequence: int) -> None:
        pseudonym = self.pseudonym_of(institution)
        entry = self.federation.table[pseudonym]
        for missing in range(entry.watermark + 1, sequence):
            self.federation.settle_lost(pseudonym, entry.incarnation, missing)
            log.warning("delivery", kind="update", institution=institution, sequence=missing, outcome="lost")
        self._note_pending()
        self._settle_followers(institution)

    def _settle(self, institution: str, upload: Upload, update: Update, delta: Parameters) -> None:
        federation = self.federation
        admission = admit(update, delta, lineage=federation.lineage, shapes=parameters.shapes(federation.model))
        settlement = federation.settle(self.pseudonym_of(institution), update, upload.hash, admission=admission, delta=delta)
        self._keep(*upload.deliveries)
        self._tell(institution, settlement)
        log.info(
            "delivery",
            kind="update",
            institution=institution,
            sequence=update.sequence,
            outcome=settlement.outcome,
            reason=settlement.reason,
            staleness=settlement.staleness,
            weight=round(float.fromhex(settlement.weight), 6),
            version=federation.head.manifest.version,
        )

    def _tell(self, institution: str, settlement: Settlement) -> None:
        if settlement.outcome != "aggregated":
            control = Control(
                run_id=self.federation.head.manifest.run_id,
                incarnation=settlement.incarnation,
                sequence=settlement.sequence,
                outcome=settlement.outcome,
                reason=settlement.reason,
            )
            self.hints.append((institution, control))

    def _take_hello(self, institution: str, upload: Upload, entry: Entry) -> None:
        hello = messages.decode(Hello, "hello", upload.content, max_bytes=messages.SMALL_BYTES)
        self._check(institution, upload, hello)
        require_issued(hello.incarnation, entry)
        if hello.incarnation < entry.incarnation:
            self.federation.count_duplicate(self.pseudonym_of(institution))
        else:
            self.federation.greet(self.pseudonym_of(institution), hello)
        self._keep(*upload.deliveries)
        log.info("delivery", kind="hello", institution=institution, head_sequence=hello.head_sequence)

    def _take_report(self, institution: str, upload: Upload) -> None:
        report = messages.decode(Report, "report", upload.content, max_bytes=messages.SMALL_BYTES)
        self._check(institution, upload, report)
        is_news = self._reported.get(institution, -1) < report.version <= self.federation.head.manifest.version
        if is_news:
            self._reported[institution] = report.version
            self.on_report(report)
        self._acknowledge(upload.deliveries)
        log.info("delivery", kind="report", institution=institution, version=report.version, kept=is_news)

    def _keep(self, *deliveries: Delivery) -> None:
        self.settled += deliveries
        self._note_pending()

    def _note_pending(self) -> None:
        if self._pending_since is None:
            self._pending_since = self.clock()

    def _refuse(self, delivery: Delivery, institution: str, error: RejectedMessageError) -> None:
        """A copy with its reason goes to the dead letters, then the delivery is acknowledged."""
        reason = str(error)[:200]
        # the sender's own headers may fill a whole frame, and what is added would break the connection
        headers = {name: value for name, value in delivery.message.headers.items() if name in HEADERS and len(str(value)) <= 512}
        headers |= {"refused": reason, "author": delivery.user_id or "", "queue": delivery.queue}
        letter = Message(delivery.message.body, delivery.message.kind, delivery.message.message_id, headers)
        self.broker.publish(DEAD_LETTER_EXCHANGE, letter)
        self.broker.ack(delivery)
        log.warning("delivery", institution=institution, outcome="refused", error=type(error).__name__, reason=reason)
