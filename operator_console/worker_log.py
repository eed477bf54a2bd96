"""What workers say in their logs, a JSON object on each line, by institution and version and in words. Pure."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from operator_console.audit import as_time
from shared.printable import printable

Level = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[str, ...] = ("debug", "info", "warning", "error", "critical")
LONGEST = 1000
"""Characters of what is told of one line."""
MOST_HELD = 10_000
"""So many lines are held back until the version that they are part of is known."""
_SETTLED = frozenset({"aggregated", "stale", "rejected", "over_budget", "lost"})
_BESIDE = frozenset({"timestamp", "level", "event", "institution", "says"})


@dataclass(frozen=True, slots=True)
class Said:
    """One line. `source` is whose log it is of; `institution` whom it is about, empty for nobody; `version` None for none."""

    at: datetime
    source: str
    level: str
    institution: str
    version: int | None
    text: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be told; None and the lowest level let everything through."""

    institution: str | None = None
    version: int | None = None
    since: datetime | None = None
    level: str = "debug"

    def takes(self, said: Said) -> bool:
        """Whether a line is to be told."""
        return (
            (self.institution is None or said.institution == self.institution)
            and (self.version is None or said.version == self.version)
            and (self.since is None or said.at >= self.since)
            and LEVELS.index(said.level) >= LEVELS.index(self.level)
        )


class Log:
    """One worker's log as it is read, a part at a time.

    A line that is no JSON object, such as one of a traceback, is a warning at the time of the line before it. A settled update
    belongs to the version that the next commit makes: it and what comes after it are held back until then.
    """

    def __init__(self, source: str, begin: datetime) -> None:
        """`source` is the worker's name, empty where nobody knows; `begin` is the time of lines before the first that has one."""
        self._source = source
        self._last_at = begin
        self._held: list[Said] = []

    def take(self, lines: Iterable[str]) -> Iterator[Said]:
        """What these lines say, but for what is held back."""
        for line in lines:
            said = _parsed(line, self._source, self._last_at)
            if said is None:
                continue
            self._last_at = said.at
            if not self._held and not _is_settlement(said):
                yield said
                continue
            self._held.append(said)
            if said.fields.get("event") == "committed":
                self._held = [replace(each, version=said.version) if _is_settlement(each) else each for each in self._held]
                yield from self.rest()
            elif len(self._held) > MOST_HELD:
                yield from self.rest()

    def rest(self) -> list[Said]:
        """What was held back, and is no longer."""
        rest, self._held = self._held, []
        return rest


def _is_settlement(said: Said) -> bool:
    fields = said.fields
    return fields.get("event") == "delivery" and fields.get("kind") == "update" and fields.get("outcome") in _SETTLED


def _parsed(line: str, source: str, before: datetime) -> Said | None:
    try:
        fields = json.loads(line)
        at, event = as_time(fields["timestamp"]), str(fields["event"])
    except (ValueError, TypeError, KeyError, RecursionError):
        text = printable(line.rstrip(), LONGEST)
        return Said(before, source or "-", "warning", _client(source), None, text, {}) if text.strip() else None
    level = str(fields.get("level", "info"))
    institution = str(fields.get("institution") or _client(source))
    version = fields.get("version")
    return Said(
        at,
        printable(source or institution or "-"),
        level if level in LEVELS else "info",
        printable(institution),
        version if isinstance(version, int) else None,
        printable(in_words(event, fields), LONGEST),
        fields,
    )


def _client(source: str) -> str:
    """Everything in a client's log is about its institution."""
    return "" if source == "aggregator" else source


def in_words(event: str, fields: Mapping[str, Any]) -> str:
    """What a line says, for people."""
    if fields.get("says"):
        return str(fields["says"])
    told = _WORDS.get(event)
    return told(fields) if told else _plainly(event, fields)


def _plainly(event: str, fields: Mapping[str, Any]) -> str:
    facts = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in fields.items() if name not in _BESIDE and value != ""
    )
    return f"{event}: {facts}" if facts else event


def _delivery(fields: Mapping[str, Any]) -> str:
    kind, outcome = str(fields.get("kind", "a message")), str(fields.get("outcome", ""))
    number = f" {fields['sequence']}" if "sequence" in fields else ""
    reason = ": ".join(str(fields[name]) for name in ("error", "reason") if fields.get(name))
    if not outcome:
        return _plainly(f"{kind} has come", {name: value for name, value in fields.items() if name not in ("kind", "outcome")})
    return f"{kind}{number}: {outcome}" + (f", {reason}" if reason else "")


def _committed(fields: Mapping[str, Any]) -> str:
    beside = _BESIDE | {"version", "settled", "phase", "epoch"}
    figures = "".join(
        f", {name} {value:.4g}" for name, value in fields.items() if name not in beside and isinstance(value, float)
    )
    count = fields.get("settled", 0)
    return f"version {fields.get('version')} is committed: {count} update{'' if count == 1 else 's'} settled{figures}"


def _operation(fields: Mapping[str, Any]) -> str:
    about = f" {fields['institution']}" if fields.get("institution") else ""
    outcome = "applied" if fields.get("applied") else "refused"
    return f"order to {fields.get('kind')}{about}: {outcome}" + (f", {fields['reason']}" if fields.get("reason") else "")


def _quarantined(fields: Mapping[str, Any]) -> str:
    return f"put into quarantine after {fields.get('rejected', '?')} rejected updates: {fields.get('reason', '')}"


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "delivery": _delivery,
    "committed": _committed,
    "operation": _operation,
    "quarantined": _quarantined,
    "standing by": lambda _: "stands by: another aggregator leads, or none has the token yet",
    "leading": lambda fields: f"leads, in epoch {fields.get('epoch')}, from version {fields.get('version')}",
}
