"""What an institution does with its own data: reserve, train on a thread of its own, seal. It outlives any connection."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from broker_config.spool import Spool
from client_worker import outgoing, telling
from client_worker.charging import affordable
from client_worker.course import Course
from client_worker.ledger import Beside, Ledger, Reservation
from client_worker.ledger_rows import Sealed
from client_worker.mechanism import Charge, LocalTraining, charge_of, local_training
from client_worker.metrics import ClientMetrics
from client_worker.outgoing import Base, Terms
from client_worker.pacing import wait_seconds
from client_worker.policy import Policy
from client_worker.windows import ALWAYS, Windows
from shared import parameters
from shared.codec import Encoded
from shared.messages import Metrics, PrivacyStatement, Unit
from shared.parameters import Parameters
from shared.plan import Plan


def _nothing() -> None:
    return


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Member:
    """Who this institution is in the federation, as its onboarding says, and what it allows.

    `at_least_seconds` stretches every local training, for demonstrations of slow institutions. Training begins in `windows`
    only; an `upload_bytes_per_second` of None is no limit.
    """

    run_id: str
    institution: str
    incarnation: int
    pseudonym: str
    policy: Policy
    at_least_seconds: float = 0.0
    leave_when_finished: bool = False
    windows: Windows = ALWAYS
    upload_bytes_per_second: int | None = None


@dataclass(frozen=True, slots=True)
class LocalData:
    """The institution's data and what can be done with it, as functions from values to values.

    `num_examples` is public, `units` is the true number and never leaves. `unit` is what the training's sampling and clipping
    take as one. `train` takes the base and returns a delta, noised as it is told; its course says how far it is.
    `noise_multiplier` is what the plan's budget needs here. `epsilon` is what charges add up to at a target delta. `report` gives
    noised metrics of a model on validation rows at a cost of one epsilon; None where there are no such rows. `warm_up` does what
    only a process's first training has to do, on no data.
    """

    task_hash: str
    fingerprint: str
    num_examples: int
    train: Callable[[Parameters, LocalTraining, Course], Parameters]
    noise_multiplier: Callable[[Plan], float]
    epsilon: Callable[[Sequence[Charge], float], float]
    report: Callable[[Parameters, float], Metrics] | None = None
    warm_up: Callable[[], None] = _nothing
    unit: Unit = "record"
    units: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """A local training under way or done, with what its update will say."""

    reservation: Reservation
    terms: Terms
    course: Course
    delta: Future[Parameters]


STEPS = ("reserve", "file", "seal", "chunk", "publish", "settle")
"""After each of these something more is durable, here or at the broker; tests kill the process between every two. `file` is
for large updates only, `chunk` is told once for each that is handed to the broker."""


def _no_step(_step: str) -> None:
    return


class LocalWork:
    """The ledger and the training thread of one institution. All methods are called from the thread that owns the ledger."""

    def __init__(
        self,
        member: Member,
        data: LocalData,
        ledger: Ledger,
        stopping: threading.Event,
        *,
        after_step: Callable[[str], None] = _no_step,
        gauges: ClientMetrics | None = None,
    ) -> None:
        self.after_step = after_step
        self.gauges = gauges or ClientMetrics()
        self.member = member
        self.data = data
        self.ledger = ledger
        self.training: Training | None = None
        self.spool = Spool(ledger.folder / "model.part")
        self.on_trained: Callable[[], None] = _nothing
        """Called on the training thread when a training has ended."""
        self.stopping = stopping
        self._fresh: tuple[Sealed, Encoded] | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="training")

    def afford(self, plan: Plan) -> PrivacyStatement:
        """What one more local training would state.

        Raises PlanRefusedError where the policy forbids the plan, PrivacyBudgetExhaustedError when it would cost too much.
        """
        return affordable(plan, self.member.policy, self.data, self.ledger.totals)

    def wait_seconds(self, plan: Plan, draw: float) -> float:
        """How long the next training is to wait, so that the planned ones are spread over the plan's horizon."""
        totals = self.ledger.totals
        return wait_seconds(
            plan.local,
            done=totals.reservations,
            opened_at=totals.opened_at_seconds,
            last_begun_at=totals.reserved_at_seconds,
            now=time.time(),
            draw=draw,
        )

    def carry_over(self, epsilon_stated: float, plan: Plan) -> None:
        """A new ledger goes on from what an earlier incarnation had stated, and one update more: it may have been under way."""
        if self.ledger.totals.reservations or self.ledger.totals.carried or plan.privacy.mechanism == "none":
            return
        one_more = charge_of(plan, self.data.noise_multiplier(plan))
        self.ledger.carry(epsilon_stated + self.data.epsilon([one_more], plan.privacy.target_delta))
        log.warning("budget carried over", epsilon_spent=round(self.ledger.totals.carried, 3))

    def begin(self, base: Base, model: Parameters, plan: Plan, statement: PrivacyStatement) -> None:
        """Charges one local training, then starts it. The model's arrays must not change before it has ended."""
        settings = local_training(plan, statement.noise_multiplier, self.data.num_examples)
        fields = {
            "base_version": base.version,
            "base_hash": base.model.hash,
            "plan_hash": base.plan_hash,
            "dataset": self.data.fingerprint,
            "expected_rows": settings.expected_rows,
            "epsilon_budget": plan.privacy.epsilon,
            **statement.model_dump(exclude={"epsilon_spent"}),
        }
        reservation = self.ledger.reserve(fields, epsilon_spent=statement.epsilon_spent)
        self.gauges.writes()
        self.after_step("reserve")
        course, terms = Course(self.stopping.is_set, settings.steps), Terms(base, plan, statement, self.data.num_examples)
        future = self._pool.submit(self._train, model, settings, course)
        self.training = Training(reservation, terms, course, future)
        future.add_done_callback(lambda _: self.on_trained())
        log.info(
            "training",
            says=telling.begins(terms, self.data.unit),
            base_version=base.version,
            examples=self.data.num_examples,
            steps=settings.steps,
            epsilon_spent=statement.epsilon_spent,
            noise_multiplier=statement.noise_multiplier,
        )

    def _train(self, model: Parameters, settings: LocalTraining, course: Course) -> Parameters:
        started = time.monotonic()
        delta = self.data.train(model, settings, course)
        course.sent_norm = parameters.norm(delta)
        self.stopping.wait(max(0.0, self.member.at_least_seconds - (time.monotonic() - started)))
        course.seconds = time.monotonic() - started
        return delta

    def seal(self) -> Sealed | None:
        """The finished training's update, on disk with its ledger row; None while there is nothing to seal."""
        training = self.training
        if training is None or not training.delta.done():
            return None
        if self.stopping.is_set() and training.delta.exception() is not None:
            return None
        delta = training.delta.result()
        sealed, content = self.ledger.seal(
            training.reservation,
            lambda sequence: outgoing.update(self.member, training.terms, delta, sequence),
            _beside(training),
            after_file=lambda: self.after_step("file"),
        )
        self.training, self._fresh = None, (sealed, content)
        self.gauges.writes()
        self.gauges.trains(training.course.seconds)
        self.after_step("seal")
        says = telling.is_made(training.course.done, training.course.seconds)
        log.info("trained", says=says, sequence=sealed.sequence, seconds=round(training.course.seconds, 3), hash=sealed.hash[:12])
        return sealed

    def content(self, sealed: Sealed) -> Encoded:
        """What is to be sent: as it is still in memory, or else from disk and its hash checked."""
        if self._fresh is not None and self._fresh[0].sequence == sealed.sequence:
            return self._fresh[1]
        return self.ledger.content(sealed)

    def published(self, sealed: Sealed) -> None:
        """The broker has confirmed every chunk; a re-send takes the bytes from disk."""
        self._fresh = None
        self.after_step("publish")
        self.ledger.published(sealed)
        self.gauges.publishes(sealed.size)

    def metrics(self, model: Parameters, version: int) -> tuple[Metrics, float] | None:
        """Noised validation metrics to be sent, charged first; None where the policy or the number of reports forbids it."""
        reports = self.member.policy.reports
        if not reports.allowed or self.data.report is None or self.ledger.totals.reports >= reports.at_most:
            return None
        self.ledger.reported(version, reports.epsilon_each)
        return self.data.report(model, reports.epsilon_each), reports.epsilon_each

    def close(self) -> None:
        """Ends the training thread; what it was doing stays charged."""
        self._pool.shutdown()
        self.spool.close()
        self.ledger.close()


def _beside(training: Training) -> Beside:
    """`norm` is of the noised values, which leave anyway."""
    terms, course = training.terms, training.course
    known = {"norm": course.sent_norm, "noise_std": terms.noise_std, "coordinates": parameters.count(training.delta.result())}
    return Beside(known, course.norms.fields if course.norms is not None else {})
