"""The demonstration while it runs: the workers, what is done to them on purpose, and the moment it is over."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from operator_console.events import Event, Kind, write_events
from operator_console.federation_folder import FederationFolder
from operator_console.history import History
from operator_console.observer import Observer
from operator_console.view_state import Shown, ViewState, view_of
from operator_console.worker_processes import WorkerEndedError, WorkerProcess
from shared.broker import Broker
from simulator.schedule import RESTART_AFTER_SECONDS, SLOWDOWN, Schedule

TICK_SECONDS = 0.25
LAST_SETTLEMENTS_SECONDS = 1.0


class DemoRun:
    """Starts the workers on entering, and leaves none behind."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        folder: FederationFolder,
        workers: dict[str, WorkerProcess],
        timetable: Schedule,
    ) -> None:
        self.history = History(folder.names())
        self.events: list[Event] = []
        self._observer = Observer(connect, self.history.take)
        self._folder = folder
        self._workers = workers
        self._timetable = timetable
        self._restart_at: float | None = None
        self._killed = False
        self._over = False

    def __enter__(self) -> Self:
        self._observer.start()
        for worker in self._workers.values():
            worker.start()
        if self._timetable.slow is not None:
            self._tell("slow", self._timetable.slow, f"is {SLOWDOWN:.0f} times slower than the others, on purpose")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._observer.stop()
        for worker in self._workers.values():
            worker.kill()

    def _tell(self, kind: Kind, institution: str, text: str) -> None:
        sentence = f"{institution} {text}"
        self.events.append(Event(at_ms=time.time_ns() // 1_000_000, kind=kind, institution=institution, text=sentence))
        write_events(self._folder.path / "events.json", self.events)

    def tick(self, shown: Shown) -> ViewState | None:
        """Waits a moment, does what the timetable says, and gives the view; None once the finished run was shown."""
        time.sleep(TICK_SECONDS)
        if self._observer.failure is not None:
            raise self._observer.failure
        for worker in self._workers.values():
            worker.demand_alive()
        self._follow_timetable()
        self._wait_for_head()
        if self._over:
            return None
        self._over = self._restart_at is None and self.history.links[-1].manifest.phase == "finished"
        return view_of(self.history, shown, now_ms=time.time_ns() // 1_000_000, events=self.events)

    def _wait_for_head(self) -> None:
        """Version 0 is there before any worker starts; the observer has read it a moment later."""
        while self.history.head is None:
            if self._observer.failure is not None:
                raise self._observer.failure
            time.sleep(TICK_SECONDS)

    def _follow_timetable(self) -> None:
        killed = self._timetable.killed
        if killed is None:
            return
        if self._restart_at is not None and time.monotonic() >= self._restart_at:
            self._restart_at = None
            self._workers[killed].start()
            self._tell("restarted", killed, "was started again; it sends what its outbox holds, then goes on")
        elif not self._killed and self._updates(killed) >= self._timetable.killed_after:
            self._killed = True
            self._workers[killed].kill()
            self._restart_at = time.monotonic() + RESTART_AFTER_SECONDS
            self._tell("killed", killed, "was killed with SIGKILL; the others go on")

    def _updates(self, institution: str) -> int:
        return sum(part.entry.counters.aggregated for part in self.history.parts() if part.institution == institution)

    def end(self) -> None:
        """Asks every worker to end, as a service manager would. Raises WorkerEndedError where one does not end with code 0."""
        self._observer.wait_quiet(LAST_SETTLEMENTS_SECONDS)
        for worker in self._workers.values():
            worker.ask_to_end()
        codes = {name: worker.wait() for name, worker in self._workers.items()}
        wrong = {name: code for name, code in codes.items() if code != 0}
        if wrong:
            raise WorkerEndedError(
                f"workers that did not end with code 0: {wrong}; their logs are in {self._folder.path / 'logs'}"
            )
