"""The demonstration while it runs: the workers, what is done to them on purpose, and the moment it is over."""

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from operator_console.blows import AGGREGATOR, Blow
from operator_console.events import Event, Kind, write_events
from operator_console.federation_folder import FederationFolder
from operator_console.history import History
from operator_console.observer import Observer
from operator_console.view_state import Shown, ViewState, view_of
from operator_console.worker_processes import WorkerEndedError, WorkerProcess
from shared.broker import Broker

TICK_SECONDS = 0.25
LAST_SETTLEMENTS_SECONDS = 1.0


class DemoRun:
    """Starts the workers on entering, and leaves none behind."""

    def __init__(
        self,
        connect: Callable[[], Broker],
        folder: FederationFolder,
        workers: dict[str, WorkerProcess],
        blows: Sequence[Blow],
    ) -> None:
        self.history = History(folder.names())
        self.events: list[Event] = []
        self._observer = Observer(connect, self.history.take)
        self._folder = folder
        self._workers = workers
        self._blows = blows
        self._over = False

    def __enter__(self) -> Self:
        self._observer.start()
        for worker in self._workers.values():
            worker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._observer.stop()
        for worker in self._workers.values():
            worker.kill()

    def tell(self, kind: Kind, target: str, text: str) -> None:
        """Keeps what was done to an institution, or to another part of the federation, as an event."""
        whom = target if target in self._workers and target != AGGREGATOR else None
        now_ms = time.time_ns() // 1_000_000
        self.events.append(Event(at_ms=now_ms, kind=kind, institution=whom, text=f"{target} {text}"))
        write_events(self._folder.path / "events.json", self.events)

    def tick(self, shown: Shown) -> ViewState | None:
        """Waits a moment, strikes the blows that are due, and gives the view; None once the finished run was shown."""
        time.sleep(TICK_SECONDS)
        if self._observer.failure is not None:
            raise self._observer.failure
        for worker in self._workers.values():
            worker.demand_alive()
        self._wait_for_head()
        for blow in self._blows:
            blow.follow(self.history, self.tell)
        if self._over:
            return None
        self._over = not any(blow.pending for blow in self._blows) and self.history.links[-1].manifest.phase == "finished"
        return view_of(self.history, shown, now_ms=time.time_ns() // 1_000_000, events=self.events)

    def _wait_for_head(self) -> None:
        """Version 0 is there before any worker starts; the observer has read it a moment later."""
        while self.history.head is None:
            if self._observer.failure is not None:
                raise self._observer.failure
            time.sleep(TICK_SECONDS)

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
