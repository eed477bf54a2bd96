"""Everything that the hostile institution tries, in the order in which it tries it."""

from tests.hostile import broker_attempts, content_attempts, door_attempts, flood_attempts, sender_attempts
from tests.hostile.attempt import Attempt

JUDGED_SINGLY: tuple[Attempt, ...] = (
    *door_attempts.ATTEMPTS,
    *broker_attempts.ATTEMPTS,
    *sender_attempts.ATTEMPTS,
    *flood_attempts.ATTEMPTS,
    *content_attempts.ATTEMPTS,
)
"""In a federation that always listens, so that one attempt does not stand in the way of the next."""
LIMITED: tuple[Attempt, ...] = flood_attempts.FLOODS
"""In a federation with the limits that a plan has unless it says otherwise."""
ATTEMPTS = (*JUDGED_SINGLY, *LIMITED)
