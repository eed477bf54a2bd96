"""When an institution may train again: its planned updates are spread over the plan's horizon.

A fast institution would otherwise spend its whole budget on the first versions, and have none left for the better ones.
"""

from shared.plan import LocalPlan

JITTER = 0.1
"""So that institutions that were founded together do not stay in step."""


def wait_seconds(plan: LocalPlan, *, done: int, opened_at: float, last_begun_at: float, now: float, draw: float = 0.5) -> float:
    """How long to wait before the next local training, in seconds; 0 where it may begin. `done` were begun so far.

    What is left of the horizon is divided by the updates that are left, so that who was away neither hurries nor ends early.
    Times are of the wall clock, in seconds: they outlive the process. `draw` in [0, 1) moves the spacing by up to JITTER. A
    clock that was put back costs one spacing at most.
    """
    if plan.horizon_seconds <= 0 or done == 0 or done >= plan.updates:
        return 0.0
    left = max(0.0, opened_at + plan.horizon_seconds - last_begun_at)
    spacing = left / (plan.updates - done) * (1.0 + JITTER * (2.0 * draw - 1.0))
    return min(spacing, max(0.0, last_begun_at + spacing - now))
