"""What `fedqueue status` shows, as a view and as the object of `--json`. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from broker_config.topology import DEAD_LETTERS, update_queue
from operator_console.expiry import warnings_of
from operator_console.history import History
from operator_console.live_view import MOST_TELLING, metric_name
from operator_console.summary import best_version, figure_text
from operator_console.view_state import Row, ViewState, attention

SCHEMA = 3
"""Of the JSON object."""
Depths = dict[str, int]


@dataclass(frozen=True, slots=True)
class Around:
    """What the lineage does not tell: messages in every queue and aggregators at the broker, None where the management API does
    not answer; until when certificates hold; and why the broker is `away`, where it is."""

    depths: Depths | None = None
    aggregators: int | None = None
    ends: Mapping[str, datetime] = field(default_factory=dict)
    away: str = ""


def completed(view: ViewState, around: Around, now: datetime, best: Mapping[str, Any] | None = None) -> ViewState:
    """The view with what needs attention first, then the warnings; institutions that need it on top; and what waits below."""
    first = attention_of(view, around)
    urgent = ([around.away] if around.away else []) + ([first] if first else []) + warnings_of(around.ends, now)
    notes = [best_text(best)] if best else []
    if not around.away:
        notes.append(waiting_text(around.depths))
    return replace(view, urgent=tuple(urgent), notes=tuple(notes), rows=by_urgency(view.rows))


def attention_of(view: ViewState, around: Around) -> str | None:
    """The one thing that an operator should look at first."""
    depths, queue = around.depths or {}, update_queue("")
    waiting = sum(depth for name, depth in depths.items() if name.startswith(queue))
    return attention(view, dead_letters=depths.get(DEAD_LETTERS), aggregators=around.aggregators, waiting=waiting)


def by_urgency(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Those in the most telling states first; of one state those who have strikes, or were refused most."""
    return tuple(sorted(rows, key=lambda row: (MOST_TELLING.index(row.state), -row.strikes, -row.refused)))


def best_text(best: Mapping[str, Any]) -> str:
    """The best version so far, in one line."""
    return f"best so far: version {best['version']}, {metric_name(best['metric'])} {figure_text(best['figure'])} on held-out rows"


def waiting_text(depths: Depths | None) -> str:
    """What waits in the update queues and the dead letters, in one sentence."""
    if depths is None:
        return "queues: the management API does not answer"
    prefix = update_queue("")
    waiting = {name.removeprefix(prefix): depth for name, depth in depths.items() if name.startswith(prefix) and depth}
    text = ", ".join(f"{depth} from {name}" for name, depth in sorted(waiting.items())) or "none"
    return f"messages waiting for the aggregator: {text}; dead letters: {depths.get(DEAD_LETTERS, 0)}"


def status_object(history: History, view: ViewState, around: Around, now: datetime) -> dict[str, Any]:
    """The object of `--json`."""
    head = history.links[-1]
    return {
        "schema": SCHEMA,
        "at_ms": round(now.timestamp() * 1000),
        "connected": not around.away,
        "away": around.away or None,
        "run_id": head.manifest.run_id,
        "title": view.title,
        "task": history.plan.task if history.plan else None,
        "version": view.version,
        "epoch": head.epoch,
        "phase": view.phase,
        "phase_reason": view.phase_reason,
        "elapsed_seconds": round(view.elapsed_seconds, 3),
        "updates": history.counters(),
        "target_updates": view.target,
        "metric": view.metric,
        "metrics": head.manifest.metrics,
        "best": best_version(history),
        "epsilon_budget": view.epsilon_budget,
        "attention": attention_of(view, around),
        "certificates": {who: end.isoformat() for who, end in around.ends.items()},
        "warnings": warnings_of(around.ends, now),
        "aggregators": around.aggregators,
        "institutions": [_row_object(row, around.depths) for row in by_urgency(view.rows)],
        "queues": around.depths,
    }


def _row_object(row: Row, depths: Depths | None) -> dict[str, Any]:
    return {
        "id": row.institution,
        "state": row.state,
        "updates": row.updates,
        "refused": row.refused,
        "last_staleness": row.last_staleness,
        "seconds_since_last": row.seconds_since_last,
        "weight_share": row.weight_share,
        "data_share": row.data_share,
        "epsilon_spent": row.epsilon_spent,
        "standing": row.standing,
        "strikes": row.strikes,
        "waiting_messages": None if depths is None else depths.get(update_queue(row.institution)),
    }


def view_from(found: Mapping[str, Any]) -> ViewState:
    """The view behind an object of `--json`, but for the course of its figure. Raises KeyError, TypeError, ValueError."""
    figure = found["metrics"].get(found["metric"])
    return ViewState(
        title=str(found["title"]),
        version=int(found["version"]),
        phase=str(found["phase"]),
        phase_reason=str(found["phase_reason"]),
        updates=int(found["updates"]["aggregated"]),
        target=found["target_updates"],
        metric=str(found["metric"]),
        metric_values=() if figure is None else (float(figure),),
        elapsed_seconds=float(found["elapsed_seconds"]),
        epsilon_budget=found["epsilon_budget"],
        rows=tuple(_row_from(each) for each in found["institutions"]),
    )


def _row_from(found: Mapping[str, Any]) -> Row:
    same = {name: value for name, value in found.items() if name not in ("id", "waiting_messages")}
    row = Row(institution=str(found["id"]), **same)
    MOST_TELLING.index(row.state)
    return row
