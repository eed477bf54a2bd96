"""Whether one more local training may begin now, and if not, why: said once in the log, in words."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from client_worker import telling
from client_worker.local_work import LocalWork
from client_worker.metrics import State
from client_worker.policy import PlanRefusedError, require_task
from client_worker.standing import require_membership
from shared.errors import PrivacyBudgetExhaustedError
from shared.lineage import Lineage
from shared.messages import ManifestRecord, PrivacyStatement, StandingState
from shared.plan import Plan

QUARANTINED: Final = "quarantined"
WHAT_TO_DO = (
    "the aggregator folds nothing of this institution, so that nothing is trained and no budget spent: look for a mistake in its "
    "data and settings, and ask the operator, who alone can release it"
)

NOTHING: Final = ("waiting", "for a model")

log = structlog.get_logger()


def _now() -> datetime:
    return datetime.now(UTC)


class Permission:
    """`leave` is called once for each plan under which nothing more is trained: with its hash, the state, limit and reason."""

    def __init__(
        self, work: LocalWork, leave: Callable[[str, StandingState, str, str], None], *, clock: Callable[[], datetime] = _now
    ) -> None:
        self._work = work
        self._clock = clock
        self._leave_for_good = leave
        self._left_plan = ""
        self._left_by: tuple[State, str] = NOTHING
        self._told_plan = ""
        self._said: tuple[str, str] = ("", "")
        self.kept_by: tuple[State, str] = NOTHING
        """What keeps from the next training, and why."""

    def now(self, head: ManifestRecord, lineage: Lineage, *, draw: float) -> tuple[Plan, PrivacyStatement] | None:
        """What one more training may be and what it would state. `draw` in [0, 1) spreads institutions in time."""
        plan, plan_hash = lineage.plan, head.manifest.plan_hash
        if plan is None or self._is_quarantined(lineage):
            return None
        if plan_hash == self._left_plan:
            self.say(*self._left_by)
            return None
        require_task(plan, task_hash=self._work.data.task_hash)
        try:
            statement = self._work.afford(plan)
        except PlanRefusedError as error:
            self._leave(plan_hash, "plan_refused", error.limit, reason=str(error))
        except PrivacyBudgetExhaustedError as error:
            self._leave(plan_hash, "budget_spent", error.limit, reason=str(error))
        else:
            self._tell_terms(plan, plan_hash, statement)
            if self._is_time(plan, draw):
                self.kept_by = NOTHING
                return plan, statement
        return None

    def _is_time(self, plan: Plan, draw: float) -> bool:
        """Whether a window is open and the plan's pace allows it."""
        now, windows = self._clock(), self._work.member.windows
        opening = windows.next_opening(now)
        if opening is not None:
            self.say("outside_window", telling.is_closed(opening))
            return False
        seconds = self._work.wait_seconds(plan, draw)
        if seconds > 0:
            until = (now + timedelta(seconds=seconds)).astimezone(windows.zone)
            self.say("waiting", telling.is_paced(until), about=self._work.ledger.totals.reservations)
        return seconds <= 0

    def say(self, state: State, reason: str, *, about: object = None) -> None:
        """One line of the log for each new reason not to train; `about` tells apart reasons that only differ by the minute."""
        self.kept_by = (state, reason)
        said = (state, reason if about is None else str(about))
        if self._said != said:
            self._said = said
            log.info("not training", state=state, reason=reason)

    def begun(self) -> None:
        """A training has begun: whatever keeps from the next one is news."""
        self._said = ("", "")

    def _is_quarantined(self, lineage: Lineage) -> bool:
        """Whether the newest table says so; said once, and once more when it is over."""
        quarantined = require_membership(lineage, self._work.member).quarantined
        if quarantined:
            self.say(QUARANTINED, WHAT_TO_DO)
        elif self._said[0] == QUARANTINED:
            self._said = ("", "")
            log.info("released from quarantine")
        return quarantined

    def _tell_terms(self, plan: Plan, plan_hash: str, statement: PrivacyStatement) -> None:
        """One line of the log for each plan, before anything is trained under it."""
        if self._told_plan != plan_hash:
            self._told_plan = plan_hash
            log.info(
                "privacy plan",
                says=telling.terms(plan, statement),
                budget=plan.privacy.epsilon,
                updates=plan.local.updates,
                **statement.model_dump(),
            )

    def _leave(self, plan_hash: str, state: StandingState, limit: str, *, reason: str) -> None:
        self._left_plan, self._left_by = plan_hash, (state, reason)
        self.say(state, reason)
        self._leave_for_good(plan_hash, state, limit, reason)
