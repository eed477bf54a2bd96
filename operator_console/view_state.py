"""What the live view and the status command show of a run, as values; no clock, no terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, median_low
from typing import Literal

from aggregator_worker.defence import STRIKE
from operator_console.events import Event
from operator_console.history import History, Part
from shared.lineage import standing_under
from shared.plan import Plan

State = Literal[
    "waiting",
    "training",
    "slow",
    "silent",
    "killed",
    "restarted",
    "paused",
    "finished",
    "budget spent",
    "plan refused",
    "quarantined",
    "removed",
]
SILENT_AFTER_SECONDS = 10.0
SILENT_AFTER_PACES = 5.0
"""An institution is silent after so many of its usual intervals between updates, and never sooner than the seconds."""
STANDSTILL_SECONDS = 30.0
"""Where updates wait and nothing is settled for longer, something is wrong with the aggregator."""
SLOW_PACE = 4.0
"""How many times the usual interval of all makes one slow."""


@dataclass(frozen=True, slots=True)
class Row:
    """One institution. Shares are of the sum over all institutions; None where nothing is known yet.

    `standing` says why it gives no more updates under the plan, None while it may. After `strikes` of the plan's defence it goes
    into quarantine; two updates that are folded take one back.
    """

    institution: str
    state: State
    updates: int
    last_staleness: int | None
    weight_share: float | None
    data_share: float | None
    epsilon_spent: float | None
    seconds_since_last: float | None
    refused: int
    standing: str | None = None
    strikes: float = 0.0


@dataclass(frozen=True, slots=True)
class ViewState:
    """A moment of a run. `metric_values` are the held-out figure's, oldest first; `login` is the read-only one.

    `urgent` are sentences for the top of a screen, the first the most pressing; `notes` are those below it.
    """

    title: str
    version: int
    phase: str
    phase_reason: str
    updates: int
    target: int | None
    metric: str
    metric_values: tuple[float, ...]
    elapsed_seconds: float
    epsilon_budget: float | None
    rows: tuple[Row, ...]
    events: tuple[str, ...] = ()
    management_url: str = ""
    login: str = ""
    urgent: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """What of a view does not change while it is shown."""

    title: str
    metric: str
    management_url: str = ""
    login: str = ""


def view_of(history: History, shown: Shown, *, now_ms: int, events: Sequence[Event] = ()) -> ViewState:
    """The run as it stands in `history`, which holds at least its first link."""
    first, head, plan = history.links[0], history.links[-1], history.plan
    over = head.manifest.phase == "finished"
    values = tuple(value for _, value in history.metric(shown.metric))
    start_ms = min([first.at_ms, *(event.at_ms for event in events)])
    return ViewState(
        title=shown.title,
        version=head.manifest.version,
        phase=head.manifest.phase,
        phase_reason=head.manifest.phase_reason,
        updates=history.counters()["aggregated"],
        target=plan.ending.updates if plan else None,
        metric=shown.metric,
        metric_values=values,
        elapsed_seconds=((head.at_ms if over else now_ms) - first.at_ms) / 1000,
        epsilon_budget=_budget(plan),
        rows=_rows(history, now_ms=now_ms, events=events),
        events=tuple(f"{max(0, event.at_ms - start_ms) / 1000:.0f} s  {event.text}" for event in events),
        management_url=shown.management_url,
        login=shown.login,
    )


def _budget(plan: Plan | None) -> float | None:
    return plan.privacy.epsilon if plan is not None and plan.privacy.mechanism != "none" else None


def _rows(history: History, *, now_ms: int, events: Sequence[Event]) -> tuple[Row, ...]:
    parts = history.parts()
    weight = sum(part.total_weight for part in parts)
    examples = sum(part.entry.num_examples or 0 for part in parts)
    paces = [pace for pace in map(pace_seconds, parts) if pace is not None]
    usual = median_low(paces) if paces else None
    rows = []
    for part in parts:
        counters = part.entry.counters
        row = Row(
            institution=part.institution,
            state=state_of(part, history, usual_pace_seconds=usual, now_ms=now_ms, events=events),
            updates=counters.aggregated,
            last_staleness=part.stalenesses[-1] if part.stalenesses else None,
            weight_share=part.total_weight / weight if weight else None,
            data_share=part.entry.num_examples / examples if part.entry.num_examples and examples else None,
            epsilon_spent=part.entry.epsilon_spent,
            seconds_since_last=(now_ms - part.settled[-1][0]) / 1000 if part.settled else None,
            refused=counters.stale + counters.rejected + counters.over_budget + counters.lost,
            standing=part.standing(history.links[-1].manifest.plan_hash),
            strikes=part.entry.strikes / STRIKE,
        )
        rows.append(row)
    return tuple(rows)


def pace_seconds(part: Part) -> float | None:
    """The usual time between two of its settlements; None before there are two."""
    times = [at_ms for at_ms, _ in part.settled]
    return median(later - earlier for earlier, later in pairwise(times)) / 1000 if len(times) > 1 else None


def state_of(
    part: Part, history: History, *, usual_pace_seconds: float | None, now_ms: int, events: Sequence[Event] = ()
) -> State:
    """What an institution is doing, as far as its settlements, the events and the clock tell."""
    told = [event for event in events if event.institution == part.institution]
    standing = _standing(part, history)
    blows = [event for event in told if event.kind in ("killed", "restarted")]
    if blows and blows[-1].kind == "killed" and standing in (None, "paused", "budget spent"):
        return "killed"
    if standing is not None:
        return standing
    last_ms = part.settled[-1][0] if part.settled else history.links[0].at_ms
    if blows and blows[-1].at_ms >= last_ms:
        return "restarted"
    told_slow = any(event.kind == "slow" for event in told)
    return _activity(part, since_last_ms=now_ms - last_ms, usual_pace_seconds=usual_pace_seconds, told_slow=told_slow)


def _activity(part: Part, *, since_last_ms: int, usual_pace_seconds: float | None, told_slow: bool) -> State:
    if not part.settled and not part.entry.nonce:
        return "waiting"
    pace = pace_seconds(part)
    expected = pace or usual_pace_seconds
    if expected and not told_slow and since_last_ms > 1000 * max(SILENT_AFTER_SECONDS, SILENT_AFTER_PACES * expected):
        return "silent"
    found_slow = pace is not None and usual_pace_seconds is not None and pace > SLOW_PACE * usual_pace_seconds
    return "slow" if told_slow or found_slow else "training"


def _standing(part: Part, history: History) -> State | None:
    """What the table and the plan say, whatever the institution does."""
    entry, plan, manifest = part.entry, history.plan, history.links[-1].manifest
    standing = standing_under(entry, manifest.plan_hash)
    if entry.removed:
        return "removed"
    if entry.quarantined:
        return "quarantined"
    if standing == "plan_refused":
        return "plan refused"
    if manifest.phase != "running":
        return "finished" if manifest.phase == "finished" else "paused"
    if standing is not None or (plan is not None and entry.watermark >= plan.local.updates):
        return "finished" if _budget(plan) is None else "budget spent"
    return None


def attention(
    view: ViewState, *, dead_letters: int | None = None, aggregators: int | None = None, waiting: int | None = None
) -> str | None:
    """The one thing that an operator should look at first; None where all is well.

    `aggregators` are those that wait or lead at the broker, `waiting` the messages in the update queues; None where nobody could
    tell. Dead letters come last: they delay nobody.
    """
    if view.phase == "paused":
        return f"The run is paused: {view.phase_reason or 'no reason was given'}."
    first = None if view.phase == "finished" else _standstill(view, aggregators, waiting) or _of_rows(view.rows)
    return first or _refused(dead_letters)


def _standstill(view: ViewState, aggregators: int | None, waiting: int | None) -> str | None:
    """Why nothing at all goes on, where that is so."""
    if aggregators == 0:
        return "No aggregator is at the broker, so nothing is folded: start fedqueue-aggregator, or read its log."
    idle_seconds = min((row.seconds_since_last for row in view.rows if row.seconds_since_last is not None), default=0.0)
    if waiting and idle_seconds > STANDSTILL_SECONDS:
        return f"{waiting} messages wait, and nothing was committed for {idle_seconds:.0f} s: the aggregator's log says why."
    return None


def _refused(dead_letters: int | None) -> str | None:
    if not dead_letters:
        return None
    lie = "1 message lies" if dead_letters == 1 else f"{dead_letters} messages lie"
    return f"{lie} in fl.dlq; fedqueue dead-letters list says why."


def _of_rows(rows: Sequence[Row]) -> str | None:
    """Whose state needs attention, the most pressing first."""
    by_state: dict[str, list[Row]] = {}
    for row in rows:
        by_state.setdefault(row.state, []).append(row)
    for state, meaning in (
        ("killed", "was killed and has not come back"),
        ("silent", "has given no update for long; look at its log and its queue"),
        ("quarantined", "is in quarantine; its updates are not folded. Look at it, then release it, or roll back without it"),
        ("plan refused", "{standing}, a limit of its own policy; it or the plan must change before it takes part"),
        ("waiting", "has not said hello yet; is its worker running?"),
    ):
        if state in by_state:
            first, *more = by_state[state]
            told = f"{first.institution} {meaning.format(standing=first.standing)}"
            return told + (f" ({len(more)} more like it)." if more else "" if told.endswith("?") else ".")
    return _not_folded(rows)


def _not_folded(rows: Sequence[Row]) -> str | None:
    """Whose updates are rejected, or mostly not folded for whatever reason."""
    struck = max(rows, key=lambda row: row.strikes, default=None)
    if struck is not None and struck.strikes >= 1:
        return (
            f"{struck.institution} has {struck.strikes:g} {'strike' if struck.strikes == 1 else 'strikes'}: updates of it were "
            "rejected; with too many it goes into quarantine."
        )
    worst = max(rows, key=lambda row: row.refused, default=None)
    if worst is not None and worst.refused > max(2, worst.updates // 2):
        return f"{worst.institution}: {worst.refused} of its updates were not folded; its log says why."
    return None
