"""A real institution that is killed with SIGKILL at a named point, started again, and killed at the next one."""

import os
import shutil
import signal
import sqlite3
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

from broker_config.connection import ConnectionSettings, connect
from client_worker import cli
from client_worker.local_work import LocalWork
from tests.recording import RecordFile, RecordingBroker

POLICY = "[policy.reports]\nallowed = true\nepsilon_each = 0.1\nat_most = 1000"
MOST_SECONDS = 60
"""A life that does not reach its point ends by an alarm, and the test fails."""


@dataclass(frozen=True)
class KillAt:
    """Where to end: at a point of this name, or at any where it is empty, when it has been passed so often."""

    name: str
    times: int = 1


class Points:
    """Counts what is passed, and ends this process, as `kill -9` does, at the one that is meant."""

    def __init__(self, kill: KillAt) -> None:
        self._kill = kill
        self._left = kill.times

    def passed(self, name: str) -> None:
        """One more point."""
        self._left -= self._kill.name in ("", name)
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class WatchedDatabase(sqlite3.Connection):
    """SQLite, with a point before and after every statement that writes; a commit is named after the last row before it."""

    points: ClassVar[Points]
    _state = ""

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        verb = sql.split()[0]
        if verb not in ("BEGIN", "INSERT", "UPDATE", "DELETE", "COMMIT"):
            return super().execute(sql, parameters)
        if sql.startswith("INSERT INTO ledger"):
            self._state = parameters[1]
        name = f"{verb} {self._state}" if verb in ("INSERT", "COMMIT") else verb
        self.points.passed(f"before {name}")
        cursor = super().execute(sql, parameters)
        self.points.passed(f"after {name}")
        return cursor


def live_and_die_again(broker: ConnectionSettings, folder: Path, kills: Sequence[KillAt]) -> None:
    """One life of the institution for each kill, and a copy of what lies on its disk after each, in a folder named by its number.

    Each life is forked from this process, which has imported torch, and has neither threads nor connections.
    """
    from client_worker import noisy_sgd  # noqa: F401 - seconds, which each life would spend
    from tests import private_bank

    config = private_bank.config(folder / "bank", broker, POLICY)
    (folder / "record").touch()
    for number, kill in enumerate(kills):
        child = os.fork()
        if not child:
            signal.alarm(MOST_SECONDS)
            try:
                take_part(config, folder / "record", Points(kill))
            except BaseException:  # noqa: BLE001 - whatever it is, this life must not go on in its parent's place
                traceback.print_exc()
            os._exit(1)
        _, status = os.waitpid(child, 0)
        shutil.copytree(folder / "bank" / "state", folder / "after" / f"{number:03}" / "state")
        shutil.copy(folder / "record", folder / "after" / f"{number:03}")
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            raise SystemExit(f"life {number} was to end at {kill}, it ended with {os.waitstatus_to_exitcode(status)}")


def take_part(config: Path, record: Path, points: Points) -> None:
    """`fedqueue-client`, over a broker that records; every write of its ledger and every step of its work is a point."""
    file = RecordFile(record)

    def recorded(*arguments: Any, **named: Any) -> Any:
        return RecordingBroker(connect(*arguments, **named), file.tell, points.passed)

    WatchedDatabase.points = points
    with (
        patch("sqlite3.connect", partial(sqlite3.connect, factory=WatchedDatabase)),
        patch.object(cli, "connect", recorded),
        patch.object(cli, "LocalWork", partial(LocalWork, after_step=points.passed)),
    ):
        cli.app(["--config", str(config)], standalone_mode=False)
