"""What a demonstration does to itself: workers are killed, the broker is stopped, a bank stands still, another sends rubbish."""

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from broker_config.connection import connect
from broker_config.node import PrivateNode
from broker_config.service import read_settings
from broker_config.topology import update_queue
from client_worker.settings import ClientSettings
from operator_console.events import Kind
from operator_console.history import History
from operator_console.worker_processes import WorkerProcess
from shared.broker import Message
from simulator.schedule import RESTART_AFTER_SECONDS, Schedule

AWAY_SECONDS = 3.0
FROZEN_SECONDS = 8.0
RUBBISH_BYTES = 900
AGGREGATOR = "aggregator"
AGAIN = "was started again; it sends what its outbox holds, then goes on"

Due = Callable[[History], bool]


@dataclass(slots=True, eq=False)
class Blow:
    """Struck once it is `due`, undone after `lasts_seconds`. Each text follows the target's name, and is told as of a kind."""

    target: str
    due: Due
    strike: Callable[[], None]
    text: str
    undo: Callable[[], None] = lambda: None
    undone_text: str = ""
    lasts_seconds: float = 0.0
    kind: Kind = "note"
    undone_kind: Kind = "note"
    _undo_at: float = field(default=0.0, init=False)
    struck: bool = field(default=False, init=False)
    undone: bool = field(default=False, init=False)

    @property
    def pending(self) -> bool:
        """Whether it was struck and not undone yet."""
        return self.struck and not self.undone

    def follow(self, history: History, tell: Callable[[Kind, str, str], None]) -> None:
        """Does what is due now, and tells it."""
        if not self.struck and self.due(history):
            self.strike()
            self.struck, self._undo_at = True, time.monotonic() + self.lasts_seconds
            tell(self.kind, self.target, self.text)
        if self.pending and time.monotonic() >= self._undo_at:
            self.undo()
            self.undone = True
            if self.undone_text:
                tell(self.undone_kind, self.target, self.undone_text)


def killed_institution(worker: WorkerProcess, after_updates: int) -> Blow:
    """SIGKILL once the institution has given so many updates, and a new start soon after."""
    return Blow(
        worker.name,
        lambda history: _given(history, worker.name) >= after_updates,
        worker.kill,
        "was killed with SIGKILL; the others go on",
        worker.start,
        AGAIN,
        RESTART_AFTER_SECONDS,
        "killed",
        "restarted",
    )


def chaos(
    workers: Mapping[str, WorkerProcess],
    timetable: Schedule,
    *,
    updates: int,
    node: PrivateNode | None,
    client_files: Mapping[str, Path],
) -> list[Blow]:
    """Blows against everything that takes part, spread over a run of so many `updates`; the broker's only where it is our own."""
    ordinary = sorted(set(client_files) - {timetable.slow, timetable.killed}) or sorted(client_files)
    first, last = ordinary[0], ordinary[-1]
    blows = [
        _rubbish(first, client_files[first], _after(0.15 * updates)),
        _killed_aggregator(workers[AGGREGATOR], _after(0.35 * updates)),
        _frozen(workers[last], _after(0.55 * updates)),
    ]
    return blows if node is None else [*blows, _stopped_broker(node, _after(0.75 * updates))]


def _rubbish(institution: str, client_file: Path, due: Due) -> Blow:
    text = f"sent {RUBBISH_BYTES} bytes that are no update; they are dead letters now"
    return Blow(institution, due, lambda: send_rubbish(client_file, institution), text)


def _killed_aggregator(worker: WorkerProcess, due: Due) -> Blow:
    text = "was killed with SIGKILL; updates wait in their queues"
    return Blow(
        AGGREGATOR, due, worker.kill, text, worker.start, "was started again; it goes on from its checkpoint", AWAY_SECONDS
    )


def _frozen(worker: WorkerProcess, due: Due) -> Blow:
    text = "stands still (SIGSTOP); nobody waits for it"
    now = lambda history: worker.runs and due(history)  # noqa: E731 - of two institutions it is the one that is killed
    return Blow(worker.name, now, worker.freeze, text, worker.thaw, "goes on where it stood", FROZEN_SECONDS)


def _stopped_broker(node: PrivateNode, due: Due) -> Blow:
    """Stopped, not killed: RabbitMQ 3.10 may keep the streams of a single node that was killed away for minutes."""
    again = "was started again; everybody connects again and nothing is counted twice"
    return Blow("RabbitMQ", due, node.stop, "was stopped; everybody trains on and waits for it", node.launch, again, AWAY_SECONDS)


def send_rubbish(client_file: Path, institution: str) -> None:
    """Publishes, under the institution's login and signed by it, what nobody can read."""
    settings = read_settings(ClientSettings, client_file)
    broker = connect(settings.broker, name=f"fedqueue-demo/{institution}/rubbish")
    try:
        body = secrets.token_bytes(RUBBISH_BYTES)
        broker.publish(update_queue(institution), Message(body, "update", f"rubbish-{secrets.token_hex(4)}"))
    finally:
        broker.close()


def _after(updates: float) -> Due:
    return lambda history: history.counters()["aggregated"] >= updates


def _given(history: History, institution: str) -> int:
    return sum(part.entry.counters.aggregated for part in history.parts() if part.institution == institution)
