"""Who tried what, and what it got: events of the broker's, aggregator's and console's logs in the order of time. Pure."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Literal

from shared.printable import printable

Source = Literal["broker", "aggregator", "console"]
Kind = Literal["refused", "order", "connection"]
"""`refused` is an attempt that failed, `order` what an operator changed, `connection` one that came or went."""

LONGEST = 400
"""Characters of a text; a virtual host, an exchange and a login have 255 at most each."""
LOG_IN, LOG_OUT, REFUSED = "log in", "log out", "refused"
"""Words of the console's own log."""
_SETTLED_WELL = ("aggregated", "")


@dataclass(frozen=True, slots=True)
class Event:
    """One attempt. Texts are printable and on one line, whatever the log held.

    `who` is a login, or a user of the console, `proven` where that was checked; else it is what somebody claimed, or nothing.
    """

    at: datetime
    source: Source
    kind: Kind
    who: str = ""
    proven: bool = True
    address: str = ""
    tried: str = ""
    got: str = ""

    def __post_init__(self) -> None:
        for name in ("who", "address", "tried", "got"):
            object.__setattr__(self, name, printable(getattr(self, name), LONGEST))
        object.__setattr__(self, "proven", self.proven and self.who != "")

    def concerns(self, institution: str) -> bool:
        """Whether this institution did it, or somebody under its name, or an order is about it."""
        did_it = self.who == institution and self.source != "console"
        return did_it or (self.kind == "order" and institution in self.tried.split())


@dataclass(frozen=True, slots=True)
class Run:
    """The same attempt, many times with nothing else between: the first of them, how many, and when the last was."""

    first: Event
    times: int
    last: datetime


def in_order(*sources: Iterable[Event]) -> list[Event]:
    """All events by time; those of one moment in the order of their logs."""
    return sorted((each for source in sources for each in source), key=lambda each: each.at)


def runs(events: Sequence[Event]) -> Iterator[Run]:
    """Events with the same attempt by the same one together: a flood is one line."""

    def same(each: Event) -> tuple[str, ...]:
        host = each.address.rpartition(":")[0]
        return each.source, each.kind, each.who, host, each.tried, each.got

    for _, group in groupby(events, key=same):
        first, *others = group
        yield Run(first, 1 + len(others), others[-1].at if others else first.at)


def aggregator_events(lines: Iterable[str]) -> Iterator[Event]:
    """What an aggregator's log, a JSON object on each line, tells of refusals and orders; other lines are passed over."""
    for line in lines:
        try:
            said = json.loads(line)
            at = as_time(said["timestamp"])
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
        read = _READERS.get(str(said.get("event")))
        found = read(at, said) if read else None
        if found is not None:
            yield found


def console_events(lines: Iterable[str]) -> Iterator[Event]:
    """What the console's `audit.jsonl` tells of logins and orders; other lines are passed over."""
    for line in lines:
        try:
            said = json.loads(line)
            at = as_time(said["at"])
            who, did, got, address = (str(said.get(name, "")) for name in ("who", "did", "got", "address"))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            continue
        failed = did == LOG_IN and got == REFUSED
        kind: Kind = "refused" if failed else "connection" if did in (LOG_IN, LOG_OUT) else "order"
        yield Event(at, "console", kind, who=who, proven=not failed, address=address, tried=did, got=got)


def as_time(text: str) -> datetime:
    """A log's time; UTC where it names no zone. Raises ValueError or TypeError."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _delivery(at: datetime, said: Mapping[str, Any]) -> Event | None:
    outcome = str(said.get("outcome", ""))
    if outcome in _SETTLED_WELL:
        return None
    what = [str(said.get("kind", "a message")), str(said.get("message", said.get("sequence", "")))]
    place = f" on {said['queue']}" if "queue" in said else ""
    reason = ": ".join(str(said[key]) for key in ("error", "reason") if said.get(key))
    got = f"{outcome}: {reason}" if reason else outcome
    return Event(at, "aggregator", "refused", who=_sender(said), tried=" ".join(what).strip() + place, got=got)


def _forged(at: datetime, said: Mapping[str, Any]) -> Event:
    what = [str(said[key]) for key in ("kind", "message", "queue", "stream", "offset") if key in said]
    reason = str(said.get("reason", ""))
    return Event(at, "aggregator", "refused", who=_sender(said), tried=" ".join(what), got=f"{said['event']}: {reason}")


def _quarantined(at: datetime, said: Mapping[str, Any]) -> Event:
    got = f"quarantined after {said.get('rejected', '?')} rejected: {said.get('reason', '')}"
    return Event(at, "aggregator", "refused", who=_sender(said), tried="its updates", got=got)


def _unheard(at: datetime, said: Mapping[str, Any]) -> Event:
    got = f"not listened to: {said.get('reason', '')}"
    return Event(at, "aggregator", "refused", who=_sender(said), tried="its update queue", got=got)


def _limited(at: datetime, said: Mapping[str, Any]) -> Event:
    details = ", ".join(f"{key} {said[key]}" for key in ("limit", "seconds", "only_counted") if key in said)
    return Event(at, "aggregator", "refused", who=_sender(said), tried="its messages", got=f"{said['event']} ({details})")


def _given_up(at: datetime, said: Mapping[str, Any]) -> Event:
    return Event(at, "aggregator", "refused", who=_sender(said), tried="an upload in parts", got="given up: no more of it came")


def _operation(at: datetime, said: Mapping[str, Any]) -> Event:
    got = "applied" if said.get("applied") else "refused"
    reason = f": {said['reason']}" if said.get("reason") else ""
    about = f" {said['institution']}" if said.get("institution") else ""
    return Event(at, "aggregator", "order", who="operator", tried=f"order {said.get('kind', '?')}{about}", got=got + reason)


def _sender(said: Mapping[str, Any]) -> str:
    return str(said.get("institution", ""))


_READERS: Mapping[str, Callable[[datetime, Mapping[str, Any]], Event | None]] = {
    "delivery": _delivery,
    "quarantined": _quarantined,
    "forged": _forged,
    "chunk ignored": _forged,
    "lineage record ignored": _forged,
    "a model's chunk is ignored": _forged,
    "an institution is not listened to": _unheard,
    "not listened to": _limited,
    "listened to again": _limited,
    "dead letters are only counted": _limited,
    "dead letters are kept again": _limited,
    "upload given up": _given_up,
    "operation": _operation,
}
