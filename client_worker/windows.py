"""When local training may begin: windows of the week, by the institution's own wall clock.

`Mon-Fri 20:00-06:00` opens on each of these days at 20:00 and closes the next morning at 06:00; `Sat,Sun` is two whole days. Each
occurrence is turned into two instants, so that the two nights a year on which clocks change have their own lengths. A time that
the clock shows twice is its first showing; one that it skips is as long after midnight as on any other day.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_DAY = timedelta(days=1)
_FORM = re.compile(r"([A-Za-z,\-]+)(?: +(\d{2}):(\d{2})-(\d{2}):(\d{2}))?")
_END_OF_DAY = 24 * 60
_AHEAD_DAYS = 8


@dataclass(frozen=True, slots=True)
class Window:
    """On `days` (0 is Monday) from `opens` to `closes`, in minutes after midnight; on the next day where `closes` is earlier."""

    days: frozenset[int]
    opens: int
    closes: int

    def on(self, day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
        """When it opens on a day and when it closes, in UTC."""
        last = day if self.closes > self.opens else day + _DAY
        return _instant(day, self.opens, zone), _instant(last, self.closes, zone)


@dataclass(frozen=True, slots=True)
class Windows:
    """All windows of an institution; without any, it is always open."""

    windows: tuple[Window, ...]
    zone: ZoneInfo

    def is_open(self, now: datetime) -> bool:
        """Whether a training may begin now; `now` knows its zone."""
        return not self.windows or any(opens <= now < closes for opens, closes in self._around(now))

    def next_opening(self, now: datetime) -> datetime | None:
        """When a training may begin again, on the institution's clock; None where it may now."""
        if self.is_open(now):
            return None
        return min(opens for opens, _ in self._around(now) if opens > now).astimezone(self.zone)

    def closes(self, now: datetime) -> datetime | None:
        """When no training may begin any more, on the institution's clock; None where that is not within a week, or is now."""
        end = now
        for opens, closes in sorted(self._around(now)):
            if opens <= end < closes:
                end = closes
        return None if end == now or end - now > 7 * _DAY else end.astimezone(self.zone)

    def _around(self, now: datetime) -> Iterator[tuple[datetime, datetime]]:
        today = now.astimezone(self.zone).date()
        for ahead in range(-1, _AHEAD_DAYS + 1):
            day = today + ahead * _DAY
            for window in self.windows:
                if day.weekday() in window.days:
                    opens, closes = window.on(day, self.zone)
                    if opens < closes:  # one that lies in a skipped hour has no length
                        yield opens, closes


ALWAYS = Windows((), ZoneInfo("UTC"))


def parse_window(text: str) -> Window:
    """`Mon-Fri 20:00-06:00`, `Sat,Sun`. Raises ValueError with a sentence that shows the form."""
    match = _FORM.fullmatch(text.strip())
    days = None if match is None else _days(match[1])
    if match is None or days is None:
        raise ValueError(f'{text!r} is no window; write days and times as in "Mon-Fri 20:00-06:00" or "Sat,Sun"')
    if match[2] is None:
        return Window(days, 0, _END_OF_DAY)
    opens, closes = (60 * int(hours) + int(minutes) for hours, minutes in ((match[2], match[3]), (match[4], match[5])))
    if int(match[3]) > 59 or int(match[5]) > 59 or opens >= _END_OF_DAY or closes > _END_OF_DAY:
        raise ValueError(f"{text!r} names a time that no day has; hours go from 00 to 23, minutes from 00 to 59")
    if opens == closes:
        raise ValueError(f"{text!r} opens and closes at once; for whole days leave the times out")
    return Window(days, opens, closes)


def _days(text: str) -> frozenset[int] | None:
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            return None
        start, end = DAYS.index(first), DAYS.index(last) if dash else DAYS.index(first)
        found.update(range(start, end + 1) if start <= end else (*range(start, 7), *range(end + 1)))
    return frozenset(found)


def _instant(day: date, minutes: int, zone: ZoneInfo) -> datetime:
    day, minutes = (day + _DAY, 0) if minutes == _END_OF_DAY else (day, minutes)
    return datetime.combine(day, time(minutes // 60, minutes % 60), zone).astimezone(UTC)
