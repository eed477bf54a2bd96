"""One term of leadership: restore, then fold and commit until the connection or the lead is lost."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog

from aggregator_worker import checkpoint, commit, leadership
from aggregator_worker.bases import KeptModels
from aggregator_worker.commit import Committer, Hooks
from aggregator_worker.defence import Gate
from aggregator_worker.desk import Desk
from aggregator_worker.ending import demand_rows
from aggregator_worker.federation import Federation
from aggregator_worker.intake import Intake
from aggregator_worker.leadership import Leadership
from aggregator_worker.listening import Listening, prefetch_for
from aggregator_worker.metrics import AggregatorMetrics
from aggregator_worker.model_uploads import ModelUploads
from aggregator_worker.orders import Orders
from aggregator_worker.server_state import ServerState
from broker_config.guard import Guard
from broker_config.streams import fetch_model, fetch_state, once_told, run_started_at
from broker_config.topology import OPERATIONS
from shared import messages
from shared.broker import Broker, Delivery
from shared.errors import FederationError, QueueGoneError
from shared.messages import Metrics, Operation, Report
from shared.parameters import Parameters

STEPS = (*leadership.STEPS, "head", *commit.STEPS)
"""A term from its beginning: the token, the claim, the head published again, and then commits."""
IDLE_SECONDS = 0.2
GROUP_COMMIT_DELIVERIES = 64
"""A commit that is due takes this many deliveries more; a flood must not put it off for ever."""
LOOK_AGAIN_SECONDS = 60.0
"""How often a member whose queue is missing is looked for again."""

log = structlog.get_logger()


def _no_step(_step: str) -> None:
    return


def _no_metrics(_model: Parameters) -> Metrics:
    return {}


def _no_report(_report: Report) -> None:
    return


def _nobody_admitted(_institution: str) -> None:
    return


@dataclass(frozen=True, slots=True)
class TermSettings:
    """What a term needs besides its broker. `members` names the institutions whose queues exist; `clock` is monotonic.

    `evaluate` gives a model's figures on held-out rows; None where there are no such rows. `guard` is that of the connection.
    """

    claimant: str
    state_folder: Path
    run_secret: bytes
    members: Callable[[], list[str]]
    stopping: Callable[[], bool]
    consumer_timeout_seconds: float = 1800.0
    orphan_seconds: float = 600.0
    after_step: Callable[[str], None] = _no_step
    evaluate: Callable[[Parameters], Metrics] | None = None
    gate: Gate | None = None
    guard: Guard | None = None
    on_report: Callable[[Report], None] = _no_report
    on_admitted: Callable[[str], None] = _nobody_admitted
    metrics: AggregatorMetrics = field(default_factory=AggregatorMetrics)
    clock: Callable[[], float] = time.monotonic


class Term:
    """Owned by one thread, over one connection. Ends only by an error: LeadLostError, StoppedError, or the broker's."""

    def __init__(self, broker: Broker, settings: TermSettings) -> None:
        self._broker = broker
        self._settings = settings
        self._listening: Listening  # from the desk's opening on
        self._orders: list[Operation] = []
        self._models = ModelUploads(settings.state_folder)
        self._group = 0
        self._looked_at = 0.0
        self._lead = Leadership(
            broker,
            claimant=settings.claimant,
            stopping=settings.stopping,
            after_step=settings.after_step,
            metrics=settings.metrics,
            clock=settings.clock,
        )

    def run(self) -> None:
        """Leads until something ends the term."""
        folder = self._settings.state_folder
        checkpoint.require_room(folder, 2 * checkpoint.size_of(folder))  # who could not commit what it has does not stand by
        self._lead.take_token()
        self._require_rows()
        self._require_room()
        self._lead.claim()
        hooks = Hooks(self._after_step, self._settings.evaluate or _no_metrics)
        committer = Committer(self._broker, self._settings.state_folder, self._lead.read_back, hooks)
        federation = self._restore(committer)
        desk = self._open_desk(federation)
        self._seal_again(federation, committer)  # a leader that was killed may have admitted somebody who cannot read the head
        log.info("leading", epoch=self._lead.epoch, version=federation.head.manifest.version)
        self._settings.metrics.leads(federation.lineage)
        try:
            while True:
                self._step(desk, committer)
        finally:
            self._settings.metrics.leads_no_more()
            desk.close()
            self._models.close()

    def _after_step(self, step: str) -> None:
        self._settings.metrics.vitals.beat()  # a commit of a large model is many steps and one turn of the loop
        self._settings.after_step(step)

    def _require_rows(self) -> None:
        """Whoever could never end the run as the plan says does not lead it. Raises SettingsError."""
        plan = self._lead.reader.current()[1].plan
        if plan is not None:
            demand_rows(plan.ending, held_out=self._settings.evaluate is not None)

    def _require_room(self) -> None:
        """Whoever cannot commit does not claim; the token goes to the next. Room for a checkpoint and an update that waits."""
        manifest = self._lead.reader.current()[0].manifest
        size = manifest.model.size + (manifest.state.size if manifest.state else 0)
        checkpoint.require_room(self._settings.state_folder, 2 * size)

    def _restore(self, committer: Committer) -> Federation:
        """The head, published again under this term's epoch; before it whatever only the checkpoint knows."""
        head, lineage = self._lead.reader.current()
        plan, epoch = lineage.plan, self._lead.epoch
        if plan is None:
            raise FederationError("the lineage was used before its plan was read")
        saved = checkpoint.load(self._settings.state_folder)
        use = checkpoint.decide(lineage, saved, lambda hashes: once_told(self._broker, hashes))
        log.info("restoring", state=use.state, missing=len(use.missing), version=head.manifest.version)
        if saved is None or use.state == "broker":
            state = ServerState.restored(plan, fetch_model(self._broker, head), fetch_state(self._broker, head))
            committer.resume(self._lead.recent, [head], epoch=epoch)
            committer.save(state)
        else:
            state = ServerState.complete(plan, saved.state)
            newest = committer.mended(saved.newest if use.missing else head, state, plan)
            committer.resume(saved.records, [*use.missing[:-1], newest], epoch=epoch)
        self._settings.metrics.run_started(run_started_at(self._broker))
        self._settings.after_step("head")
        return Federation(self._lead.reader.lineage, state, self._settings.gate, bases=KeptModels(self._broker))

    def _open_desk(self, federation: Federation) -> Desk:
        settings, limits = self._settings, federation.plan.limits
        intake = Intake(settings.state_folder, max_bytes=limits.update_bytes)
        desk = Desk(
            self._broker,
            federation,
            intake,
            self._pseudonym,
            on_report=settings.on_report,
            on_refused=settings.metrics.refuses,
            clock=settings.clock,
            longest_wait_seconds=settings.consumer_timeout_seconds / 4,
        )
        self._share_keys(federation)
        self._broker.consume(OPERATIONS, prefetch=8)
        self._listening = Listening(self._broker, desk.rates, prefetch_for(limits), settings.clock, desk.forget)
        self._follow_members(federation)
        return desk

    def _share_keys(self, federation: Federation) -> None:
        """Has the connection believe, and seal for, those who are members by the newest table."""
        guard = self._settings.guard
        if guard is None:
            return
        known = {name: federation.entry(self._pseudonym(name)) for name in self._settings.members()}
        signing = {name: entry.signing_key for name, entry in known.items() if entry is not None and entry.signing_key}
        members = [entry for entry in federation.table.values() if not entry.removed]
        guard.follow(signing, [entry.sealing_key for entry in members if entry.sealing_key])

    def _pseudonym(self, institution: str) -> str:
        return messages.pseudonym(self._settings.run_secret, institution)

    def _follow_members(self, federation: Federation) -> None:
        """Listens to every member's queue that is not listened to yet."""
        self._looked_at = self._settings.clock()
        for name in self._settings.members():
            if federation.entry(self._pseudonym(name)) is not None:
                self._listening.follow(name)

    def _step(self, desk: Desk, committer: Committer) -> None:
        """Folds what has arrived, as one group while it lasts, and commits when it is due."""
        due = desk.due()
        exact = desk.federation.plan.aggregation.exact_buffer
        full = due and (exact or self._group >= GROUP_COMMIT_DELIVERIES)
        delivery = None if full else self._next(0.0 if due else IDLE_SECONDS)
        if delivery is not None:
            self._group += due
            self._take(desk, committer, delivery)
        pending = desk.federation.pending
        # a model that was replaced is a version of its own, and a new plan has a manifest of its own: nothing is folded into them
        if pending.replaced or pending.plan is not None or (due and delivery is None):
            self._commit(desk, committer)
        desk.tidy(orphan_seconds=self._settings.orphan_seconds)
        self._listening.pace(desk.settled)
        self._lead.refresh_token(self._settings.consumer_timeout_seconds / 4)
        if self._settings.clock() - self._looked_at > LOOK_AGAIN_SECONDS:
            self._follow_members(desk.federation)

    def _next(self, timeout_seconds: float) -> Delivery | None:
        try:
            return self._lead.receive(timeout_seconds)
        except QueueGoneError as error:
            self._listening.lost(error)
            return None

    def _take(self, desk: Desk, committer: Committer, delivery: Delivery) -> None:
        if delivery.queue == OPERATIONS:
            has_rows = self._settings.evaluate is not None
            self._note(Orders(desk, self._models, partial(self._commit, desk, committer), has_rows).take(delivery))
        elif (institution := self._listening.owner(delivery)) and (heard := self._listening.heard(delivery)):
            desk.take(heard, institution)

    def _note(self, operation: Operation | None) -> None:
        if operation is None:
            return
        if operation.kind == "admit":
            self._settings.on_admitted(str(operation.arguments["institution"]))
        self._orders.append(operation)

    def _follow_orders(self, desk: Desk, committer: Committer) -> None:
        moved = any(order.kind in ("admit", "remove") for order in self._orders)
        if moved:
            self._share_keys(desk.federation)
        while self._orders:
            self._heed(self._orders.pop(0))
        if moved:
            self._seal_again(desk.federation, committer)

    def _seal_again(self, federation: Federation, committer: Committer) -> None:
        """Where models are sealed, the newest one for those who are members now."""
        guard = self._settings.guard
        if guard is not None and guard.trust.sealed:
            committer.seal_again(federation.head)

    def _heed(self, operation: Operation) -> None:
        """Listens to an admitted institution's queue, and no more to a removed one's, once the manifest says so."""
        if operation.kind not in ("admit", "remove"):
            return
        institution = str(operation.arguments["institution"])
        if operation.kind == "admit":
            self._listening.follow(institution)
        else:
            self._listening.leave(institution)

    def _commit(self, desk: Desk, committer: Committer) -> None:
        begun = self._settings.clock()
        record = committer.commit(desk.federation, self._lead.epoch, desk.settled, desk.hints)
        new_version = record.manifest.version > desk.federation.head.manifest.version
        self._tell_membership(desk.federation)
        desk.federation.advance(self._lead.reader.lineage)
        self._settings.metrics.commits(desk.federation.lineage, seconds=self._settings.clock() - begun)
        desk.committed(new_version=new_version)
        self._group = 0
        self._follow_orders(desk, committer)
        manifest = record.manifest
        log.info(
            "committed",
            version=manifest.version,
            settled=len(manifest.settled),
            phase=manifest.phase,
            epoch=record.epoch,
            **{name: value for name, value in manifest.metrics.items() if value is not None},
        )

    def _tell_membership(self, federation: Federation) -> None:
        """One line of the log for each whose silence or return moves the others' shares."""
        names = {self._pseudonym(name): name for name in self._listening.institutions}
        for pseudonym in federation.weighing.silenced:
            log.warning(
                "silent institution: its share goes to the others until it returns", institution=names.get(pseudonym, pseudonym)
            )
        for pseudonym in federation.weighing.returned:
            log.info("an institution has returned, and has its share again", institution=names.get(pseudonym, pseudonym))
