"""What every browser is shown, as one JSON object, computed once for all of them. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from aggregator_worker.roll_back import rolled_back
from broker_config.topology import DEAD_LETTERS, update_queue
from operator_console.events import Event
from operator_console.history import History, Link
from operator_console.status_screen import Around, attention_of
from operator_console.summary import best_version
from operator_console.view_state import Row, Shown, ViewState, view_of
from operator_console.web.course import Course, rounded

SCHEMA = 1
SHOWN_VERSIONS = 200
SHOWN_EVENTS = 20
NAMES_OF_A_VERSION = 12
CLOCKS = frozenset({"at_ms", "silent_seconds", "elapsed_seconds", "seconds_since_last"})
"""What changes by itself as time passes."""
Snapshot = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a snapshot needs beside the lineage. `seen` is what the management API and the folder tell.

    `silent_seconds` is None while the broker answers; `trouble` says why it does not. `reading` says that it has just begun to
    answer. `warnings` are of certificates.
    """

    shown: Shown
    now_ms: int
    silent_seconds: float | None = None
    trouble: str = ""
    reading: bool = False
    seen: Around = field(default_factory=Around)
    events: Sequence[Event] = ()
    warnings: Sequence[str] = ()


def snapshot_of(course: Course, around: Surroundings) -> Snapshot:
    """The run as far as it was read; while the broker is silent, as it stood when it fell silent."""
    seen_ms = around.now_ms - round(1000 * (around.silent_seconds or 0))
    depths = around.seen.depths
    found = {
        "schema": SCHEMA,
        "at_ms": around.now_ms,
        "connected": around.silent_seconds is None,
        "silent_seconds": round(around.silent_seconds or 0.0, 1),
        "queues": depths,
        "dead_letters": None if depths is None else depths.get(DEAD_LETTERS, 0),
        "aggregators": around.seen.aggregators,
    }
    if course.history.head is None:
        return found | _empty(around)
    view = view_of(course.history, around.shown, now_ms=seen_ms, events=around.events)
    first = _urgent(around) or attention_of(view, around.seen)
    return found | {
        "attention": first,
        "run": _run(course.history, view) | {"attention": first, "warnings": list(around.warnings)},
        "metrics": _metrics(course, around.shown.metric),
        "institutions": list(_institutions(course.history, view.rows, depths)),
        "staleness": {str(value): count for value, count in sorted(course.stalenesses.items())},
        "versions": list(islice(_versions(course), SHOWN_VERSIONS)),
        "events": list(view.events[-SHOWN_EVENTS:]),
    }


def without_clocks(found: Any) -> Any:
    """The same without what changes by itself: two that are equal show the same run."""
    if isinstance(found, Mapping):
        return {name: without_clocks(value) for name, value in found.items() if name not in CLOCKS}
    return [without_clocks(each) for each in found] if isinstance(found, list) else found


def _urgent(around: Surroundings) -> str | None:
    if around.silent_seconds is None:
        return None
    why = f": {around.trouble}" if around.trouble else ""
    return f"This console has no connection to the broker{why}. It keeps trying; what is shown is as it was before."


def _empty(around: Surroundings) -> dict[str, Any]:
    nothing = "The lineage is empty: run `fedqueue init` first, it makes version 0."
    return {
        "attention": _urgent(around) or ("The lineage is being read." if around.reading else nothing),
        "run": None,
        "metrics": {"first": around.shown.metric, "names": [], "points": []},
        "institutions": [],
        "staleness": {},
        "versions": [],
        "events": [],
    }


def _run(history: History, view: ViewState) -> dict[str, Any]:
    head, best = history.links[-1], best_version(history)
    return {
        "id": head.manifest.run_id,
        "title": view.title,
        "task": history.plan.task if history.plan else None,
        "version": view.version,
        "epoch": head.epoch,
        "phase": view.phase,
        "phase_reason": view.phase_reason,
        "elapsed_seconds": round(view.elapsed_seconds, 1),
        "updates": history.counters(),
        "target_updates": view.target,
        "epsilon_budget": view.epsilon_budget,
        "best": best and {name: best[name] for name in ("version", "metric", "figure")},
    }


def _metrics(course: Course, first: str) -> dict[str, Any]:
    others = [name for name in course.metric_names if name != first]
    names = [first, *others] if first in course.metric_names else others
    return {"first": first, "names": names, "points": course.points(first)}


def _institutions(history: History, rows: Sequence[Row], depths: Mapping[str, int] | None) -> Iterator[dict[str, Any]]:
    entries = {part.institution: part.entry for part in history.parts()}
    for row in rows:
        entry = entries[row.institution]
        yield {
            "id": row.institution,
            "state": row.state,
            "updates": row.updates,
            "refused": row.refused,
            "last_staleness": row.last_staleness,
            "seconds_since_last": _figure(row.seconds_since_last),
            "weight_share": _figure(row.weight_share),
            "data_share": _figure(row.data_share),
            "epsilon_spent": _figure(row.epsilon_spent),
            "standing": row.standing,
            "strikes": row.strikes,
            "waiting_messages": None if depths is None else depths.get(update_queue(row.institution)),
            "quarantined": entry.quarantined,
            "removed": entry.removed,
        }


def _figure(value: float | None) -> float | None:
    return None if value is None else rounded(value)


def _versions(course: Course) -> Iterator[dict[str, Any]]:
    """The versions in memory, newest first."""
    history = course.history
    for version, group in groupby(reversed(history.links), key=lambda link: link.manifest.version):
        yield _version(version, list(group)[::-1], course)


def _version(version: int, links: Sequence[Link], course: Course) -> dict[str, Any]:
    made = links[0]
    folded = [each for link in links for each in link.manifest.settled if each.outcome == "aggregated"]
    names = dict.fromkeys(course.history.name(each.institution) for each in folded)
    return {
        "version": version,
        "at_ms": made.at_ms,
        "seconds": course.seconds(made.at_ms),
        "epoch": made.epoch,
        "updates": len(folded),
        "institutions": list(names)[:NAMES_OF_A_VERSION],
        "roll_back": rolled_back(made.manifest) is not None,
    }
