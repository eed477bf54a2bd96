"""`fedqueue status`: the same view as the demo's, of any federation, from its lineage and its queues."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.text import Text

from broker_config import logins as login_file
from broker_config.connection import connect
from broker_config.definitions import OPERATOR, VIEWER
from broker_config.provision import administration
from broker_config.streams import LineageReader
from broker_config.topology import DEAD_LETTERS, update_queue
from operator_console.broker_commands import DEFAULT_FOLDER
from operator_console.events import Event, read_events
from operator_console.expiry import expiries, warnings_of
from operator_console.federation_folder import FederationFolder
from operator_console.history import History, fold_next, follow
from operator_console.live_view import metric_name, render, watch
from operator_console.summary import best_version, figure_text
from operator_console.view_state import Row, Shown, ViewState, attention, view_of
from shared.broker import Broker
from shared.errors import FederationError
from shared.tasks.spec import parse_task

SCHEMA = 2
"""Of the JSON object."""
TICK_SECONDS = 0.5
Depths = dict[str, int]

Dir = Annotated[Path, typer.Option("--dir", help="The federation's folder, as `fedqueue init` or `fedqueue demo` wrote it.")]
Watching = Annotated[bool, typer.Option("--watch", help="Stay, and follow the run until Ctrl-C.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts; its `schema` number changes when a key does.")]


def status(folder: Dir = DEFAULT_FOLDER, watching: Watching = False, as_json: AsJson = False) -> None:
    """Show how a federation is doing: versions, updates, staleness, privacy spent, and what needs attention first."""
    console = Console()
    with _opened(FederationFolder(folder)) as session:
        if as_json:
            found = status_object(session.history, session.view(), session.depths(), session.ends)
            typer.echo(json.dumps(found, allow_nan=False))
        elif watching:
            watch(session.tick, console=console)
        else:
            warnings = warnings_of(session.ends, datetime.now(UTC))
            console.print(screen(session.view(), session.depths(), best_version(session.history), warnings))


def screen(
    view: ViewState, depths: Depths | None, best: Mapping[str, Any] | None = None, warnings: Sequence[str] = ()
) -> RenderableType:
    """What to look at first, then the whole view, then the best version and what waits. `warnings` are of certificates."""
    first = attention(view, dead_letters=(depths or {}).get(DEAD_LETTERS))
    urgent = [first, *warnings] if first else warnings
    parts: list[RenderableType] = [Text(f" ! {sentence}", style="bold yellow") for sentence in urgent]
    told = [] if best is None else [Text(f" {best_text(best)}", style="dim")]
    return Group(*parts, render(view), *told, Text(f" {waiting_text(depths)}", style="dim"))


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


def status_object(
    history: History, view: ViewState, depths: Depths | None, ends: Mapping[str, datetime] | None = None
) -> dict[str, Any]:
    """The object of `--json`. Depths are None where the management API does not answer; `ends` are those of certificates."""
    ends, head = ends or {}, history.links[-1]
    return {
        "schema": SCHEMA,
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
        "metrics": head.manifest.metrics,
        "best": best_version(history),
        "epsilon_budget": view.epsilon_budget,
        "attention": attention(view, dead_letters=(depths or {}).get(DEAD_LETTERS)),
        "certificates": {who: end.isoformat() for who, end in ends.items()},
        "warnings": warnings_of(ends, datetime.now(UTC)),
        "institutions": [_row_object(row, depths) for row in view.rows],
        "queues": depths,
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


class StatusSession:
    """One connection with the operator's login, its reader, and the history it fills."""

    def __init__(self, broker: Broker, history: History, shown: Shown, folder: FederationFolder) -> None:
        self.history = history
        self.ends = expiries(folder)
        """Until when certificates hold."""
        self._broker = broker
        self._reader: LineageReader = follow(broker, history)
        self._shown = shown
        self._folder = folder

    def view(self) -> ViewState:
        """The run as it stands."""
        events: list[Event] = read_events(self._folder.path / "events.json")
        return view_of(self.history, self._shown, now_ms=time.time_ns() // 1_000_000, events=events)

    def tick(self) -> ViewState:
        """Folds what came within half a second."""
        fold_next(self._broker, self._reader, timeout_seconds=TICK_SECONDS)
        return self.view()

    def depths(self) -> Depths | None:
        """Messages in every queue, some seconds old; None where the management API does not answer."""
        try:
            with administration(self._folder.logins(), OPERATOR) as management:
                return {str(queue["name"]): int(queue.get("messages", 0)) for queue in management.queues()}
        except FederationError:
            return None


@contextmanager
def _opened(folder: FederationFolder) -> Iterator[StatusSession]:
    logins, facts = folder.logins(), folder.facts()
    spec = parse_task(folder.task_file.read_text(), source=str(folder.task_file))
    shown = Shown(
        title=facts.title,
        metric=spec.first_metric,
        management_url=f"{logins.management}/#/queues",
        login=f"{VIEWER}; its password is in {folder.path / login_file.FILE}",
    )
    broker = connect(logins.settings(OPERATOR), name="fedqueue-status")
    try:
        yield StatusSession(broker, History(folder.names()), shown, folder)
    finally:
        broker.close()
