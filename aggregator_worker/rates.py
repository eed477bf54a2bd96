"""How much of one institution is listened to: token buckets. Numbers in, numbers out; the time is given."""

from collections.abc import Callable
from dataclasses import dataclass

from shared.plan import Limits

USELESS_BYTES = 4 * 2**10
"""Useless bytes count too, for the broker writes them to its disk. As many as the largest update has count for half a minute.

So an honest upload that is given up midway does no harm. Fewer than these count as one message.
"""
LETTER_BYTES = 2**20
"""A dead letter counts once for each of these, and once at least: they fill a queue that all institutions share."""
LEAST_UPDATES = 8
"""As many updates an institution may send at once, whatever an hour allows: its outbox holds so many after an outage."""
_MINUTE, _HOUR, _DAY = 60.0, 3600.0, 86400.0
_PAUSE_SECONDS = 10.0


@dataclass(slots=True)
class Bucket:
    """Up to `capacity` tokens, `per_second` of which come back. Empty at 0, and usable again from `enough` on.

    What is spent last may take more than there is: the debt is paid by a longer wait.
    """

    capacity: float
    per_second: float
    enough: float
    level: float
    since: float

    def fill(self, now: float) -> float:
        """The tokens that there are now."""
        self.level = min(self.capacity, self.level + (now - self.since) * self.per_second)
        self.since = now
        return self.level

    def spend(self, tokens: float, now: float) -> None:
        """Takes tokens."""
        self.fill(now)
        self.level -= tokens


def useless_bucket(per_minute: int, now: float) -> Bucket:
    """A minute's worth at once; whoever spent it waits for half a minute's."""
    return Bucket(per_minute, per_minute / _MINUTE, per_minute / 2, per_minute, now)


def updates_bucket(per_hour: int, now: float) -> Bucket:
    """A minute's worth at once, and LEAST_UPDATES at least; whoever spent it waits for one, and ten seconds at least."""
    capacity, per_second = max(LEAST_UPDATES, per_hour / 60), per_hour / _HOUR
    return Bucket(capacity, per_second, min(capacity, max(1.0, _PAUSE_SECONDS * per_second)), capacity, now)


def letters_bucket(per_day: int, now: float) -> Bucket:
    """A day's worth at once."""
    return Bucket(per_day, per_day / _DAY, 1.0, per_day, now)


@dataclass(frozen=True, slots=True)
class Overrun:
    """Whose bucket is empty, which limit of the plan that is, and when it was found out."""

    institution: str
    limit: str
    since: float


class Rates:
    """What every institution has spent of `useless_per_minute`, `updates_per_hour` and `letters_per_day` of the plan."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self.overruns: dict[str, Overrun] = {}
        """Who is not to be listened to until it `has_recovered`."""

    def useless(self, institution: str, *, messages: int = 1, size: int = 0, now: float) -> None:
        """So many messages, of so many bytes together, settled no update: refused, repeated, given up, a greeting, a report."""
        allowed = self._limits.useless_per_minute
        bucket = self._bucket(institution, "useless_per_minute", allowed, useless_bucket, now)
        unit = max(USELESS_BYTES, 2 * self._limits.update_bytes / (allowed or 1))
        self._spend(bucket, "useless_per_minute", institution, max(messages, size / unit), now)

    def update(self, institution: str, *, now: float) -> None:
        """An update used up its number."""
        bucket = self._bucket(institution, "updates_per_hour", self._limits.updates_per_hour, updates_bucket, now)
        self._spend(bucket, "updates_per_hour", institution, 1, now)

    def may_be_put_aside(self, institution: str, *, size: int, now: float) -> bool:
        """Whether a refused content of so many bytes becomes a dead letter. Otherwise it is only counted."""
        bucket = self._bucket(institution, "letters_per_day", self._limits.letters_per_day, letters_bucket, now)
        if bucket is None:
            return True
        if bucket.fill(now) < bucket.enough:
            return False
        bucket.spend(max(1.0, size / LETTER_BYTES), now)
        return True

    def has_recovered(self, institution: str, *, now: float) -> bool:
        """Whether everything it has spent is there again as far as it must be; it is over no rate then."""
        buckets = [self._buckets.get((institution, limit)) for limit in ("useless_per_minute", "updates_per_hour")]
        over = all(bucket.fill(now) >= bucket.enough for bucket in buckets if bucket is not None)
        if over:
            self.overruns.pop(institution, None)
        return over

    def _bucket(
        self, institution: str, limit: str, allowed: int | None, made: Callable[[int, float], Bucket], now: float
    ) -> Bucket | None:
        if allowed is None:
            return None
        key = (institution, limit)
        if key not in self._buckets:
            self._buckets[key] = made(allowed, now)
        return self._buckets[key]

    def _spend(self, bucket: Bucket | None, limit: str, institution: str, tokens: float, now: float) -> None:
        if bucket is None:
            return
        bucket.spend(tokens, now)
        if bucket.level <= 0 and institution not in self.overruns:
            self.overruns[institution] = Overrun(institution, limit, now)
