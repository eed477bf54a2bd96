"""What arrives at the leader, one delivery at a time: checked, put in order, folded or refused. Settled only by the commit."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from aggregator_worker.admission import Number, Order, admit, check_author, number_in, order, require_issued
from aggregator_worker.dead_letters import NO_TAG
from aggregator_worker.federation import Federation
from aggregator_worker.intake import SUSPECT_DELIVERIES, Intake, Upload
from aggregator_worker.rates import Rates
from aggregator_worker.refusals import Refusals, say_quarantined
from shared import messages
from shared.broker import Broker, Delivery
from shared.compact import Delta
from shared.errors import (
    IncompatibleUpdateError,
    MalformedMessageError,
    RejectedMessageError,
    ReplayedMessageError,
    UnknownInstitutionError,
    UnsupportedSchemaError,
)
from shared.messages import Control, Entry, Hello, Report, Settlement, Standing, Update

QUIET_SECONDS = 0.05
"""How long settlements without a new version wait for company."""
MAX_AHEAD = 64
"""How far beyond its watermark an institution's number may be; further is refused, not waited for."""

log = structlog.get_logger()


class PoisonError(RejectedMessageError):
    """A content that kills the process which handles it."""


@dataclass(slots=True, eq=False)
class _Early:
    """An update whose predecessor has not come yet; its numbers wait on disk."""

    update: Update
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
    on_refused: Callable[[str], None] = lambda institution: None
    clock: Callable[[], float] = time.monotonic
    longest_wait_seconds: float = math.inf
    survives_trial: Callable[[Upload], bool] = Upload.survives_trial
    settled: list[Delivery] = field(default_factory=list)
    hints: list[tuple[str, Control]] = field(default_factory=list)
    _early: dict[str, dict[int, _Early]] = field(default_factory=dict)
    _reported: dict[str, int] = field(default_factory=dict)
    _pending_since: float | None = None
    _greeted: bool = False
    _version_since: float = -math.inf
    rates: Rates = field(init=False)
    _refusals: Refusals = field(init=False)
    _timed_to: float = field(init=False)

    def __post_init__(self) -> None:
        self._timed_to = self.clock()
        self.rates = Rates(self.federation.plan.limits)
        self._refusals = Refusals(self.broker, self.rates, self.clock, self.on_refused)

    def take(self, delivery: Delivery, institution: str) -> None:
        """Handles one delivery of an update queue; whatever cannot be used goes to the dead letters with its reason."""
        try:
            upload = self.intake.take(institution, delivery, now=self.clock())
        except RejectedMessageError as error:
            self._refuse(delivery, institution, error)
        else:
            if upload is not None:
                self._take_whole(institution, upload)
        self.drop_surplus()

    def settle(self, institution: str, upload: Upload, update: Update, delta: Delta) -> Settlement:
        """Admits and settles an update whose turn it is; folds it where it is to be aggregated."""
        federation, pseudonym = self.federation, self.pseudonym_of(institution)
        entry = federation.table[pseudonym]
        admission = admit(
            update,
            delta,
            entry=entry,
            lineage=federation.lineage,
            shapes=federation.state.shapes,
        )
        settlement = federation.settle(pseudonym, update, upload.head.content, admission=admission, delta=delta)
        upload.close()
        if upload.deliveries:
            self._count_update(institution, settlement)
        self.keep(*upload.deliveries)
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
            scale=round(float.fromhex(settlement.scale), 6),
            version=federation.head.manifest.version,
        )
        say_quarantined(institution, entry, federation.table[pseudonym], settlement.reason)
        return settlement

    def keep(self, *deliveries: Delivery) -> None:
        """Has the next commit acknowledge these."""
        self.settled += deliveries
        self._note_pending()

    def due(self) -> bool:
        """Whether a commit must happen now: K folded, T passed, something small has waited long enough, or the time is up."""
        plan, now = self.federation.plan, self.clock()
        self.federation.pass_time(now - self._timed_to)
        self._timed_to = now
        if self.federation.time_is_over:
            return True
        if self.federation.empty or self._pending_since is None:
            return False
        waited = now - self._pending_since
        if waited >= self.longest_wait_seconds:
            return True
        if self.federation.pending.aggregated == 0:
            return waited >= QUIET_SECONDS
        if now - self._version_since < plan.limits.version_spacing_seconds:
            return False
        # who says hello trains only once it is answered: not even an exact buffer makes it wait
        longest = QUIET_SECONDS if self._greeted else plan.aggregation.max_wait_seconds
        return self.federation.buffer_full or waited >= longest

    def committed(self, *, new_version: bool) -> None:
        """The commit is done: nothing is pending any more."""
        self._pending_since, self._greeted = None, False
        if new_version:
            self._version_since = self.clock()
        self.settled.clear()
        self.hints.clear()

    def tidy(self, *, orphan_seconds: float) -> None:
        """Gives up on uploads nobody continues, and on numbers that later ones have overtaken for too long."""
        now = self.clock()
        for institution in self.intake.expire(now=now, idle_seconds=orphan_seconds):
            log.warning("upload given up", institution=institution, idle_seconds=orphan_seconds)
        self.drop_surplus()
        patience = self.federation.plan.aggregation.max_wait_seconds
        for institution in list(self._early):
            waiting = self._waiting(institution)
            if waiting and now - min(early.since for early in waiting.values()) > patience:
                self._give_up_gap(institution, min(waiting))

    def close(self) -> None:
        """Lets go of everything that waits on disk; its deliveries return to their queues with the connection."""
        self.intake.close()
        for waiting in self._early.values():
            for early in waiting.values():
                early.upload.close()

    def forget(self, institution: str) -> None:
        """Lets go of what waits for an institution and is not settled: it will be delivered again."""
        self.intake.forget(institution)
        for early in self._early.pop(institution, {}).values():
            early.upload.close()

    def _count_update(self, institution: str, settlement: Settlement) -> None:
        self.rates.update(institution, now=self.clock())
        if settlement.outcome != "aggregated":
            self._count_useless(institution)

    def _count_useless(self, institution: str) -> None:
        self.rates.useless(institution, now=self.clock())

    def _acknowledge(self, deliveries: list[Delivery]) -> None:
        self.broker.ack(*(delivery for delivery in deliveries if delivery.tag != NO_TAG))

    def drop_surplus(self) -> None:
        """Acknowledges what carries nothing new."""
        self._acknowledge(self.intake.surplus)
        self.intake.surplus.clear()
        while self.intake.wasted:
            sender, count, size = self.intake.wasted.pop()
            self.rates.useless(sender, messages=count, size=size, now=self.clock())

    def _take_whole(self, institution: str, upload: Upload) -> None:
        try:
            self.demand_harmless(upload)
            self._take_upload(institution, upload)
        except RejectedMessageError as error:
            self._refuse_whole(institution, upload, error)

    def demand_harmless(self, upload: Upload) -> None:
        """Raises PoisonError where several aggregators may have died of it, and a child process does."""
        if upload.suspect and not self.survives_trial(upload):
            raise PoisonError(f"a child process that tried it died; it was delivered {SUSPECT_DELIVERIES} times or more")

    def _take_upload(self, institution: str, upload: Upload) -> None:
        entry = self.member(institution)
        if upload.head.kind != "update":
            self._count_useless(institution)
        match upload.head.kind:
            case "update":
                self._take_update(institution, upload, entry)
            case "hello":
                self._take_hello(institution, upload, entry)
            case "standing":
                self._take_standing(institution, upload, entry)
            case _:
                self._take_report(institution, upload)

    def member(self, institution: str) -> Entry:
        """An institution's entry. Raises UnknownInstitutionError for a stranger."""
        entry = self.federation.entry(self.pseudonym_of(institution))
        if entry is None:
            raise UnknownInstitutionError(f"{institution} is not a member of this federation")
        return entry

    def _check(self, institution: str, upload: Upload, body: Update | Hello | Report | Standing) -> None:
        run_id, user_id = self.federation.head.manifest.run_id, upload.deliveries[-1].user_id
        check_author(body.run_id, body.institution, user_id=user_id, queue_owner=institution, run_id=run_id)

    def _settle_unreadable(self, institution: str, upload: Upload, error: RejectedMessageError) -> bool:
        """An update that can never be read still uses up the number that its headers claim, or its sender would wait for ever."""
        number = number_in(upload.head.id, institution=institution)
        entry = self.federation.entry(self.pseudonym_of(institution))
        ours = upload.head.run == self.federation.head.manifest.run_id and upload.deliveries[-1].user_id == institution
        unreadable = (
            isinstance(error, MalformedMessageError | UnsupportedSchemaError | PoisonError) and upload.head.kind == "update"
        )
        if number is None or entry is None or not (ours and unreadable):
            return False
        if number != (entry.incarnation, entry.watermark + 1):
            return False
        content, pseudonym = upload.head.content, self.pseudonym_of(institution)
        reason = str(error)[:200]
        settlement = self.federation.settle_unread(pseudonym, number, outcome="rejected", reason=reason, content=content)
        self.rates.update(institution, now=self.clock())
        say_quarantined(institution, entry, self.federation.table[pseudonym], reason)
        self.keep(*upload.deliveries)
        self._tell(institution, settlement)
        self.settle_followers(institution)
        return True

    def _take_update(self, institution: str, upload: Upload, entry: Entry) -> None:
        update, delta = messages.decode_update(self.intake.load(upload), max_bytes=upload.head.size)
        self._check(institution, upload, update)
        place: Order = order(update.incarnation, update.sequence, upload.head.content, entry)
        match place:
            case "duplicate" | "outdated":
                self._drop_repeat(institution, upload, update)
            case "ahead":
                self._hold(institution, upload, update)
            case "next":
                self.settle(institution, upload, update, delta)
                self.settle_followers(institution)

    def _drop_repeat(self, institution: str, upload: Upload, update: Update) -> None:
        self._acknowledge(upload.deliveries)
        upload.close()
        self.federation.count_duplicate(self.pseudonym_of(institution))
        self._count_useless(institution)
        self._note_pending()
        log.info("delivery", kind="update", institution=institution, sequence=update.sequence, outcome="duplicate")

    def _hold(self, institution: str, upload: Upload, update: Update) -> None:
        entry = self.federation.table[self.pseudonym_of(institution)]
        if update.sequence > entry.watermark + MAX_AHEAD:
            raise IncompatibleUpdateError(f"number {update.sequence} is more than {MAX_AHEAD} ahead of {entry.watermark}")
        waiting = self._early.setdefault(institution, {})
        former = waiting.pop(update.sequence, None)
        if former is not None:
            self._acknowledge(former.upload.deliveries)
            self._count_useless(institution)
            former.upload.close()
        self.intake.park(upload)
        waiting[update.sequence] = _Early(update, upload, self.clock())

    def _waiting(self, institution: str) -> dict[int, _Early]:
        """An institution's early updates by number; those of a former incarnation are let go."""
        entry = self.federation.table[self.pseudonym_of(institution)]
        waiting = self._early.get(institution, {})
        for number, early in list(waiting.items()):
            if early.update.incarnation < entry.incarnation:
                self._drop_repeat(institution, waiting.pop(number).upload, early.update)
        return waiting

    def settle_followers(self, institution: str) -> None:
        """Settles the early updates whose turn it is now."""
        waiting = self._waiting(institution)
        while True:
            entry = self.federation.table[self.pseudonym_of(institution)]
            early = waiting.pop(entry.watermark + 1, None)
            if early is None:
                return
            _, delta = messages.decode_update(self.intake.load(early.upload), max_bytes=early.upload.head.size)
            self.settle(institution, early.upload, early.update, delta)

    def _give_up_gap(self, institution: str, sequence: int) -> None:
        pseudonym = self.pseudonym_of(institution)
        entry = self.federation.table[pseudonym]
        for missing in range(entry.watermark + 1, sequence):
            number = Number(entry.incarnation, missing)
            self.federation.settle_unread(pseudonym, number, outcome="lost", reason="later numbers came, this one did not")
            log.warning("delivery", kind="update", institution=institution, sequence=missing, outcome="lost")
        self._note_pending()
        self.settle_followers(institution)

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
        hello = messages.decode(Hello, "hello", upload.body or b"", max_bytes=messages.SMALL_BYTES)
        self._check(institution, upload, hello)
        require_issued(hello.incarnation, entry)
        if hello.incarnation < entry.incarnation:
            self.federation.count_duplicate(self.pseudonym_of(institution))
        elif hello.nonce < entry.nonce:
            raise ReplayedMessageError("its hello is older than the one that was answered last")
        else:
            self.federation.greet(self.pseudonym_of(institution), hello)
            self._greeted = True
        self.keep(*upload.deliveries)
        log.info("delivery", kind="hello", institution=institution, head_sequence=hello.head_sequence)

    def _take_report(self, institution: str, upload: Upload) -> None:
        report = messages.decode(Report, "report", upload.body or b"", max_bytes=messages.SMALL_BYTES)
        self._check(institution, upload, report)
        is_news = self._reported.get(institution, -1) < report.version <= self.federation.head.manifest.version
        if is_news:
            self._reported[institution] = report.version
            self.on_report(report)
        self._acknowledge(upload.deliveries)
        log.info("delivery", kind="report", institution=institution, version=report.version, kept=is_news)

    def _take_standing(self, institution: str, upload: Upload, entry: Entry) -> None:
        standing = messages.decode(Standing, "standing", upload.body or b"", max_bytes=messages.SMALL_BYTES)
        self._check(institution, upload, standing)
        require_issued(standing.incarnation, entry)
        present = standing.incarnation == entry.incarnation
        is_news = present and self.federation.stand(self.pseudonym_of(institution), standing)
        if is_news:
            self.keep(*upload.deliveries)
        else:
            self._acknowledge(upload.deliveries)
        log.info(
            "delivery",
            kind="standing",
            institution=institution,
            state=standing.state,
            limit=standing.limit,
            reason=standing.reason,
            kept=is_news,
        )

    def _note_pending(self) -> None:
        if self._pending_since is None:
            self._pending_since = self.clock()

    def _refuse(self, delivery: Delivery, institution: str, error: RejectedMessageError) -> None:
        self._refusals.note(institution, delivery, error)
        self.broker.ack(delivery)

    def _refuse_whole(self, institution: str, upload: Upload, error: RejectedMessageError) -> None:
        """Where its number is settled by this, the commit acknowledges."""
        chunk_bytes = self.federation.plan.limits.chunk_bytes
        self._refusals.note_whole(institution, upload, self.intake.load(upload), error, chunk_bytes=chunk_bytes)
        upload.close()
        if not self._settle_unreadable(institution, upload, error):
            self._acknowledge(upload.deliveries)
