"""Logins that fail are slowed: by name, so that nobody guesses a password, and more gently by address. No clock of its own."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

FREE_BY_NAME = 3
FREE_BY_ADDRESS = 20
LONGEST_PAUSE_SECONDS = 60.0
"""So a stranger keeps nobody out for longer than this after his last attempt."""
FORGOTTEN_AFTER_SECONDS = 900.0
MOST_KEPT = 10_000


@dataclass(slots=True)
class _Failures:
    count: int = 0
    last_at: float = 0.0


class Attempts:
    """Failures so far. An attempt within a pause is not looked at, and does not lengthen it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], _Failures] = OrderedDict()

    def pause_seconds(self, name: str, address: str) -> float:
        """How long until the next attempt is looked at; 0 for at once."""
        return max(self._pause(("name", name), FREE_BY_NAME), self._pause(("address", address), FREE_BY_ADDRESS))

    def failed(self, name: str, address: str) -> None:
        """Counts a wrong password."""
        now = self._clock()
        for key in (("name", name), ("address", address)):
            failures = self._failures.setdefault(key, _Failures())
            if now - failures.last_at > FORGOTTEN_AFTER_SECONDS:
                failures.count = 0
            failures.count, failures.last_at = failures.count + 1, now
            self._failures.move_to_end(key)
        while len(self._failures) > MOST_KEPT:
            self._failures.popitem(last=False)

    def succeeded(self, name: str) -> None:
        """Forgets the failures under a name; an address, which others may share, keeps its own."""
        self._failures.pop(("name", name), None)

    def _pause(self, key: tuple[str, str], free: int) -> float:
        failures = self._failures.get(key)
        if failures is None or failures.count < free:
            return 0.0
        since = self._clock() - failures.last_at
        if since > FORGOTTEN_AFTER_SECONDS:
            return 0.0
        pause = min(LONGEST_PAUSE_SECONDS, 2.0 ** min(failures.count - free, 10))
        return max(0.0, pause - since)
