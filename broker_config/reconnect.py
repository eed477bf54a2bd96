"""Sessions over a broker, one after another, with growing pauses while none gets anywhere."""

import threading
import time
from collections.abc import Callable

import structlog
from tenacity import RetryCallState, RetryError, Retrying, retry_if_exception_type, wait_random_exponential
from tenacity.nap import sleep_using_event
from tenacity.stop import stop_when_event_set

from shared.errors import BrokerUnavailableError, StorageError

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 15.0
HEALTHY_SECONDS = 10.0
"""A session that lasted so long got somewhere."""

log = structlog.get_logger()


def persist(session: Callable[[], None], stopping: threading.Event, *, healthy_seconds: float = HEALTHY_SECONDS) -> None:
    """Runs `session` again and again until `stopping` is set.

    A session that returns is followed by the next at once, and so is one that was lost after `healthy_seconds`. One that fails
    sooner, with BrokerUnavailableError or StorageError, is followed by a pause with jitter, longer each time. Other errors
    are the caller's.
    """

    def attempt() -> None:
        started = time.monotonic()
        try:
            session()
        except BrokerUnavailableError as error:
            if time.monotonic() - started < healthy_seconds:
                raise
            log.warning("connection lost", error=type(error).__name__, reason=str(error))

    while not stopping.is_set():
        retrying = Retrying(
            retry=retry_if_exception_type((BrokerUnavailableError, StorageError)),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_SECONDS, max=LONGEST_PAUSE_SECONDS),
            stop=stop_when_event_set(stopping),
            sleep=sleep_using_event(stopping),
            before_sleep=_say,
        )
        try:
            retrying(attempt)
        except RetryError:
            return


def _say(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning(
        "not ready, trying again",
        error=type(error).__name__,
        reason=str(error),
        pause_seconds=round(state.upcoming_sleep, 1),
        attempt=state.attempt_number,
    )
