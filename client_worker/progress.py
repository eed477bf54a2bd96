"""How far the local training is, for the log and for whoever asks: read from its course, every few seconds at most."""

import time
from collections.abc import Callable

import structlog

from client_worker.local_work import Training

EVERY_SECONDS = 10.0

log = structlog.get_logger()


class Progress:
    """Owned by the loop. A training that ends sooner has no line."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._training: Training | None = None
        self._began_at = self._told_at = 0.0

    def look(self, training: Training | None) -> None:
        """To be called often; says something when it is time."""
        now = self._clock()
        if training is not self._training:
            self._training, self._began_at, self._told_at = training, now, now
        if training is None or now - self._told_at < EVERY_SECONDS:
            return
        self._told_at = now
        done, steps = training.course.done, training.course.steps
        log.info("training progress", says=self.words(training), done=done, steps=steps)

    def words(self, training: Training) -> str:
        """How far it is, and how long it may take still."""
        done, steps, version = training.course.done, training.course.steps, training.terms.base.version
        text = f"on version {version}: {done:,} of {steps:,} steps, {100 * done // max(1, steps)} %"
        seconds = self._clock() - self._began_at if training is self._training else 0.0
        return f"{text}, about {_spoken(seconds * (steps - done) / done)} left" if 0 < done < steps and seconds > 0 else text


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
