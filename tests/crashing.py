"""Programs of their own for crash tests: a worker that kills itself with SIGKILL after one step of its work."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

from aggregator_worker import worker as aggregator_worker
from broker_config.connection import ConnectionSettings, connect
from client_worker import worker as client_worker
from client_worker.ledger import Ledger
from client_worker.local_work import LocalWork
from tests.builders import RUN
from tests.running import local_data, member, term_settings


@dataclass(frozen=True)
class KillAfter:
    """Ends this process, as `kill -9` does, after a step was done so many times."""

    step: str
    times: int

    def hook(self) -> Callable[[str], None]:
        """What hears of the steps."""
        done = [0]

        def after_step(step: str) -> None:
            done[0] += step == self.step
            if done[0] == self.times:
                os.kill(os.getpid(), signal.SIGKILL)

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
