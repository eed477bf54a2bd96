"""Programs of their own for crash tests: a worker that kills itself with SIGKILL after one step of its work."""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from aggregator_worker import worker as aggregator_worker
from broker_config.connection import ConnectionSettings, connect
from client_worker import worker as client_worker
from client_worker.ledger import Ledger
from client_worker.local_work import LocalWork
from operator_console.worker_processes import WorkerProcess, entry_point
from tests.builders import NAMES, RUN, SECRET
from tests.running import PATIENCE_SECONDS, local_data, member, term_settings


@dataclass(frozen=True)
class KillAfter:
    """Ends this process, as `kill -9` does, after a step was done so many times; or sends it another signal."""

    step: str
    times: int
    number: signal.Signals = signal.SIGKILL

    def hook(self) -> Callable[[str], None]:
        """What hears of the steps."""
        done = [0]

        def after_step(step: str) -> None:
            done[0] += step == self.step
            if step == self.step and done[0] == self.times:
                os.kill(os.getpid(), self.number)

        return after_step


def lead(settings: ConnectionSettings, folder: Path, kill: KillAfter) -> None:
    """An aggregator worker that ends after `kill`."""
    term = replace(term_settings(folder), after_step=kill.hook())
    aggregator_worker.run(lambda: connect(settings, name="test/lead"), term, threading.Event())


def take_part(settings: ConnectionSettings, path: Path, kill: KillAfter) -> None:
    """A client worker that ends after `kill`."""
    ledger = Ledger(path, run_id=RUN, institution=settings.user, incarnation=1)
    stopping = threading.Event()
    work = LocalWork(member(settings.user), local_data(settings.user), ledger, stopping, after_step=kill.hook())
    client_worker.run(lambda: connect(settings, name="test/take-part"), work, stopping)


def started(target: Callable[..., None], *arguments: object):
    """A process forked from one that has imported everything and has neither threads nor connections."""
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


class Aggregator(AbstractContextManager["Aggregator"]):
    """`fedqueue-aggregator` as a service starts it, in a folder of its own; leaving the block ends it with SIGTERM."""

    def __init__(self, settings: ConnectionSettings, folder: Path, *, url: str = "", heartbeat_seconds: int = 30) -> None:
        folder.mkdir()
        (folder / "members.txt").write_text("\n".join(NAMES))
        (folder / "secret").write_bytes(SECRET)
        (folder / "secret").chmod(0o600)
        (folder / "aggregator.toml").write_text(
            'state_folder = "state"\nrun_secret_file = "secret"\nmembers_file = "members.txt"\n[broker]\n'
            f'url = "{url or settings.url}"\nuser = "{settings.user}"\npassword = "{settings.secret()}"\n'
            f"heartbeat_seconds = {heartbeat_seconds}\n"
        )
        self._log = folder / "log"
        command = [entry_point("fedqueue-aggregator"), "--config", str(folder / "aggregator.toml")]
        self._process = WorkerProcess(folder.name, command, self._log, folder)
        self._process.start()

    def says(self, words: str, times: int = 1) -> bool:
        """Whether its log has the words so often, within the patience of a test."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self._log.read_text().count(words) < times and time.monotonic() < deadline:
            time.sleep(0.02)
        return self._log.read_text().count(words) >= times

    def send(self, number: signal.Signals) -> None:
        """Signals it."""
        os.kill(self._process.pid, number)

    def allow_files_of(self, size: int) -> None:
        """What it writes beyond so many bytes of a file fails, as on a full disk. -1 is no limit."""
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()

    def __exit__(self, *_exception: object) -> None:
        self._process.ask_to_end()
        assert self._process.wait() == 0
