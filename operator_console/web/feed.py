"""The console's one ear: a connection that follows the lineage on a thread, and a snapshot made once for all browsers."""

import json
import threading
import time
from datetime import UTC, datetime
from typing import Any

import structlog

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from operator_console.events import Event, read_events
from operator_console.expiry import warnings_of
from operator_console.federation_folder import FederationFolder
from operator_console.observer import Observer
from operator_console.status_screen import Around
from operator_console.status_session import around_of
from operator_console.view_state import Shown
from operator_console.web.course import Course
from operator_console.web.snapshot import Surroundings, snapshot_of, without_clocks
from shared.broker import Broker, Delivery
from shared.errors import BrokerUnavailableError, FederationError
from shared.messages import ManifestRecord
from shared.tasks.spec import parse_task

HEARTBEAT_SECONDS = 10
"""A broker whose network is cut off is noticed after two of these."""
RETRY_SECONDS = 3.0
LOOK_SECONDS = 3.0
"""How often queues, members, the demo's events and certificates are looked at."""
SHOWN_AT_LEAST_SECONDS = 10.0
READING_SECONDS = 5.0
"""A broker that has nothing to tell for so long has an empty lineage."""

log = structlog.get_logger()


class Feed:
    """Follows one federation from `start` to `stop`, whatever the broker does meanwhile."""

    def __init__(self, folder: FederationFolder) -> None:
        """Raises SettingsError where the folder holds no federation."""
        facts, spec = folder.facts(), parse_task(folder.task_file.read_text(), source=str(folder.task_file))
        folder.logins()
        self.folder = folder
        self.shown = Shown(title=facts.title, metric=spec.first_metric)
        self._course = Course(folder.names())
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._observer: Observer | None = None
        self._follower = threading.Thread(target=self._follow, name="console-feed", daemon=True)
        self._looker = threading.Thread(target=self._look, name="console-looks", daemon=True)
        self._heard_at = self._connected_at = time.monotonic()
        self._trouble = ""
        self._around = Around()
        self._events: list[Event] = []
        self._warnings: list[str] = []
        self._newest = _Made()

    def start(self) -> None:
        """Begins to listen; a broker that is away is waited for."""
        self._follower.start()
        self._looker.start()

    def stop(self) -> None:
        """Ends the connection and the threads; one that waits for a broker's answer is not waited for."""
        self._stopping.set()
        self._follower.join(0.5)
        self._looker.join(0.1)

    @property
    def connected(self) -> bool:
        """Whether the lineage is listened to at this moment."""
        observer = self._observer
        return observer is not None and observer.connected

    def state(self) -> tuple[int, bytes]:
        """A number that grows whenever a browser should hear of it, and the snapshot as JSON; made at most once a second."""
        with self._lock:
            now = time.monotonic()
            if now - self._newest.at >= 1.0:
                self._newest = self._newest.followed_by(self._snapshot(), now)
            return self._newest.number, self._newest.text

    def version(self) -> int | None:
        """The newest version that was read."""
        with self._lock:
            head = self._course.history.head
            return None if head is None else head.manifest.version

    def course(self) -> tuple[threading.Lock, Course]:
        """The run, and the lock under which it may be read."""
        return self._lock, self._course

    def _snapshot(self) -> dict[str, Any]:
        if self.connected:
            self._heard_at = time.monotonic()
        around = Surroundings(
            self.shown,
            now_ms=time.time_ns() // 1_000_000,
            silent_seconds=None if self.connected else time.monotonic() - self._heard_at,
            trouble=self._trouble,
            reading=time.monotonic() - self._connected_at < READING_SECONDS,
            seen=self._around,
            events=self._events,
            warnings=self._warnings,
        )
        return snapshot_of(self._course, around)

    def _follow(self) -> None:
        """One observer after another: one ends for good where a person must mend something, which may happen meanwhile."""
        while not self._stopping.is_set():
            self._observer = observer = Observer(self._connect, self._take)
            observer.start()
            while not self._stopping.wait(0.2) and observer.failure is None:
                pass
            observer.stop()
            if observer.failure is not None:
                self._trouble = str(observer.failure)
                self._stopping.wait(RETRY_SECONDS)

    def _connect(self) -> Broker:
        settings = self.folder.logins().settings(OPERATOR).model_copy(update={"heartbeat_seconds": HEARTBEAT_SECONDS})
        try:
            broker = connect(settings, name="fedqueue-console")
        except BrokerUnavailableError as error:
            self._trouble = str(error)
            raise
        self._trouble, self._connected_at = "", time.monotonic()
        return broker

    def _take(self, record: ManifestRecord, delivery: Delivery) -> None:
        with self._lock:
            self._course.take(record, delivery)

    def _look(self) -> None:
        while not self._stopping.is_set():
            try:
                around, names, events = around_of(self.folder), self.folder.names(), read_events(self.folder.path / "events.json")
                warnings = warnings_of(around.ends, datetime.now(UTC))
            except (FederationError, OSError, ValueError) as error:
                log.warning("the federation's folder cannot be read", reason=str(error))
                around, names, events = Around(), {}, self._events
                warnings = ["The federation's folder cannot be read; the console's log says why."]
            with self._lock:
                self._around, self._events, self._warnings = around, events, warnings
                self._course.history.names |= names
            self._stopping.wait(LOOK_SECONDS)


class _Made:
    """The newest snapshot, its text, and the number of the newest one that differs by more than its clocks."""

    def __init__(self, number: int = 0, text: bytes = b"", lasting: object = None, at: float = float("-inf")) -> None:
        self.number, self.text, self.at = number, text, at
        self._lasting, self._told_at = lasting, at

    def followed_by(self, found: dict[str, Any], now: float) -> "_Made":
        lasting = without_clocks(found)
        text = json.dumps(found, allow_nan=False, separators=(",", ":")).encode()
        is_news = lasting != self._lasting or now - self._told_at >= SHOWN_AT_LEAST_SECONDS
        made = _Made(self.number + is_news, text, lasting, now)
        made._told_at = now if is_news else self._told_at
        return made
