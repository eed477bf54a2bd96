"""What a demonstration does to itself on purpose: a worker or the broker is killed, a bank stands still, one sends rubbish."""

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


@dataclass(slots=True, eq=False)
class Blow:
    """Struck once it is `due`, undone after `lasts_seconds`. Each text follows the target's name, and is told as of a kind."""

    target: str
    due: Callable[[History], bool]
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
    rubbish, frozen = ordinary[0], ordinary[-1]
    aggregator = workers[AGGREGATOR]
    blows = [
        Blow(
            rubbish,
            _after(0.15 * updates),
            lambda: send_rubbish(client_files[rubbish], rubbish),
            f"sent {RUBBISH_BYTES} bytes that are no update; they are dead letters now",
        ),
        Blow(
            AGGREGATOR,
            _after(0.35 * updates),
            aggregator.kill,
            "was killed with SIGKILL; updates wait in their queues",
            aggregator.start,
            "was started again; it goes on from its checkpoint",
            AWAY_SECONDS,
        ),
        Blow(
            frozen,
            _after(0.55 * updates),
            workers[frozen].freeze,
            "stands still (SIGSTOP); nobody waits for it",
            workers[frozen].thaw,
            "goes on where it stood",
            FROZEN_SECONDS,
        ),
    ]
    if node is not None:
        blows.append(
            Blow(
                "RabbitMQ",
                _after(0.75 * updates),
                node.stop,  # RabbitMQ 3.10 may keep the streams of a single node that was killed away for minutes
                "was stopped; everybody trains on and waits for it",
                node.launch,
                "was started again; everybody connects again and nothing is counted twice",
                AWAY_SECONDS,
            )
        )
    return blows


def send_rubbish(client_file: Path, institution: str) -> None:
    """Publishes, under the institution's login and signed by it, what nobody can read."""
    settings = read_settings(ClientSettings, client_file)
    broker = connect(settings.broker, name=f"fedqueue-demo/{institution}/rubbish")
    try:
        body = secrets.token_bytes(RUBBISH_BYTES)
        broker.publish(update_queue(institution), Message(body, "update", f"rubbish-{secrets.token_hex(4)}"))
    finally:
        broker.close()


def _after(updates: float) -> Callable[[History], bool]:
    return lambda history: history.counters()["aggregated"] >= updates


def _given(history: History, institution: str) -> int:
    return sum(part.entry.counters.aggregated for part in history.parts() if part.institution == institution)
