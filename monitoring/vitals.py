"""What a worker says of itself: that its loop turns, whether it can do its job, and what it is at. Safe from any thread."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from shared.errors import FederationError

BUSY_SECONDS = 60.0
"""Who has not come round for so long does not do its job just now, be it alive: it may wait for a broker that has no room."""
STALLED_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Condition:
    """A worker at one moment. `reason` says what it is at, or what is in its way; `silent_seconds` is since its last beat.

    A worker whose loop stands still is not ready, whatever it said last, and not alive either after a while.
    """

    alive: bool
    ready: bool
    reason: str
    silent_seconds: float


class Vitals:
    """Written by the worker's thread, read by others.

    A loop that has not turned for `stalled_after_seconds` is taken for dead. `clock` is monotonic.
    """

    def __init__(self, *, stalled_after_seconds: float = STALLED_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.stalled_after_seconds = stalled_after_seconds
        self._clock = clock
        self._said = (False, "starting")  # one reference, so that no reader finds one half of it new
        self._beat_at = clock()

    def beat(self) -> None:
        """The loop has turned, or a long piece of work has got on."""
        self._beat_at = self._clock()

    def ready(self, status: str) -> None:
        """The worker can do its job; `status` says in words what it is at."""
        self._say(ready=True, reason=status)

    def not_ready(self, reason: str) -> None:
        """The worker cannot do its job for now; `reason` says why."""
        self._say(ready=False, reason=reason)

    def _say(self, *, ready: bool, reason: str) -> None:
        self._said = (ready, reason)
        self.beat()

    @contextmanager
    def hindered_by_errors(self) -> Iterator[None]:
        """While inside, a foreseen error makes the worker not ready, by the error's own words, and goes on its way."""
        try:
            yield
        except FederationError as error:
            self.not_ready(str(error))
            raise

    def now(self) -> Condition:
        """The worker at this moment."""
        ready, reason = self._said
        silent_seconds = self._clock() - self._beat_at
        alive = silent_seconds < self.stalled_after_seconds
        turns = alive and silent_seconds < BUSY_SECONDS
        if not turns:
            reason = f"its loop has not turned for {silent_seconds:.0f} seconds; before that: {reason}"
        return Condition(alive, ready and turns, reason, silent_seconds)
