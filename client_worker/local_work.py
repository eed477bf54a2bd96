"""What an institution does with its own data: reserve, train on a thread of its own, seal. It outlives any connection."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import structlog

from broker_config.spool import Spool
from client_worker.compact import compacted
from client_worker.ledger import Ledger, Reservation
from client_worker.ledger_rows import Sealed
from client_worker.mechanism import Charge, LocalTraining, charge_of, local_training, statement_of
from client_worker.pacing import wait_seconds
from client_worker.policy import PlanRefusedError, Policy, check_noise, check_privacy, check_steps, check_target_delta
from shared import messages
from shared.codec import Encoded
from shared.errors import PrivacyBudgetExhaustedError, SettingsError
from shared.messages import BlobName, Metrics, PrivacyStatement, Unit, Update
from shared.noise import noise_std
from shared.parameters import Parameters
from shared.plan import Plan

ShouldStop = Callable[[], bool]


def _nothing() -> None:
    return


log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Member:
    """Who this institution is in the federation, as its onboarding says, and what it allows.

    `at_least_seconds` stretches every local training, for demonstrations of slow institutions.
    """

    run_id: str
    institution: str
    incarnation: int
    pseudonym: str
    policy: Policy
    at_least_seconds: float = 0.0
    leave_when_finished: bool = False


@dataclass(frozen=True, slots=True)
class LocalData:
    """The institution's data and what can be done with it, as functions from values to values.

    `num_examples` is public, `units` is the true number and never leaves. `unit` is what the training's sampling and clipping
    take as one. `train` takes the base and returns a delta, noised as it is told. `noise_multiplier` is what the plan's budget
    needs here. `epsilon` is what charges add up to at a target delta. `report` gives noised metrics of a model on validation rows
    at a cost of one epsilon; None where there are no such rows. `warm_up` does what only a process's first training has to do,
    on no data.
    """

    task_hash: str
    fingerprint: str
    num_examples: int
    train: Callable[[Parameters, LocalTraining, ShouldStop], Parameters]
    noise_multiplier: Callable[[Plan], float]
    epsilon: Callable[[Sequence[Charge], float], float]
    report: Callable[[Parameters, float], Metrics] | None = None
    warm_up: Callable[[], None] = _nothing
    unit: Unit = "record"
    units: int = 0


class Figures(Protocol):
    """What judging a plan needs to know of an institution's data."""

    @property
    def num_examples(self) -> int: ...
    @property
    def noise_multiplier(self) -> Callable[[Plan], float]: ...


def allowed_noise(plan: Plan, policy: Policy, data: Figures) -> float | None:
    """The noise multiplier that the plan needs here, None without noise. Raises PlanRefusedError where the policy forbids it."""
    check_privacy(policy, plan.privacy)
    noised = plan.privacy.mechanism != "none"
    check_steps(policy, plan.local, noised=noised)
    if not noised:
        return None
    check_target_delta(plan.privacy, data.num_examples)
    try:
        sigma = data.noise_multiplier(plan)
    except SettingsError as error:
        raise PlanRefusedError("epsilon", str(error)) from error
    check_noise(policy, sigma)
    return sigma


@dataclass(frozen=True, slots=True)
class Base:
    """What a training starts from: the model of a version, under the plan that is in force when it begins."""

    version: int
    model: BlobName
    plan_hash: str


@dataclass(frozen=True, slots=True, eq=False)
class Training:
    """A local training under way or done, with what its update will say."""

    reservation: Reservation
    base: Base
    plan: Plan
    statement: PrivacyStatement
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
    ) -> None:
        self.after_step = after_step
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
        sigma = allowed_noise(plan, self.member.policy, self.data)
        if self.ledger.totals.reservations >= plan.local.updates:
            raise PrivacyBudgetExhaustedError("updates", f"all {plan.local.updates} planned local trainings are used")
        if sigma is None:
            return PrivacyStatement(mechanism="none", steps=plan.local.steps)
        totals = self.ledger.totals
        if totals.unprotected:
            raise PrivacyBudgetExhaustedError(
                "epsilon", f"{totals.unprotected} local trainings were without noise: no epsilon holds for these rows any more"
            )
        spent = totals.set_aside + self.data.epsilon([*totals.charges, charge_of(plan, sigma)], plan.privacy.target_delta)
        allowed = plan.privacy.epsilon or 0.0  # which is within the policy
        if spent > allowed:
            raise PrivacyBudgetExhaustedError(
                "epsilon", f"one more local training would spend epsilon {spent:.3f} of {allowed:g}"
            )
        return statement_of(plan, sigma, epsilon_spent=spent, unit=self.data.unit)

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
            **statement.model_dump(exclude={"epsilon_spent"}),
        }
        reservation = self.ledger.reserve(fields, epsilon_spent=statement.epsilon_spent)
        self.after_step("reserve")
        future = self._pool.submit(self._train, model, settings)
        self.training = Training(reservation, base, plan, statement, future)
        future.add_done_callback(lambda _: self.on_trained())
        log.info(
            "training",
            base_version=base.version,
            examples=self.data.num_examples,
            epsilon_spent=statement.epsilon_spent,
            noise_multiplier=statement.noise_multiplier,
        )

    def _train(self, model: Parameters, settings: LocalTraining) -> Parameters:
        started = time.monotonic()
        delta = self.data.train(model, settings, self.stopping.is_set)
        self.stopping.wait(max(0.0, self.member.at_least_seconds - (time.monotonic() - started)))
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
            lambda sequence: self._encode(training, delta, sequence),
            after_file=lambda: self.after_step("file"),
        )
        self.training, self._fresh = None, (sealed, content)
        self.after_step("seal")
        log.debug("sealed", sequence=sealed.sequence, hash=sealed.hash[:12])
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

    def _encode(self, training: Training, delta: Parameters, sequence: int) -> Encoded:
        update = Update(
            run_id=self.member.run_id,
            institution=self.member.institution,
            incarnation=self.member.incarnation,
            sequence=sequence,
            base_version=training.base.version,
            base_hash=training.base.model.hash,
            plan_hash=training.base.plan_hash,
            num_examples=self.data.num_examples,
            privacy=training.statement,
        )
        std = noise_std(training.statement, training.plan, self.data.num_examples)
        return messages.encode_parts("update", update, compacted(delta, training.plan.update_encoding, std))

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
