"""Aggregator and client workers as processes of their own, through the entry points that a service uses."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from broker_config.node import start_watcher
from broker_config.processes import MARK
from broker_config.secret_files import without_secrets
from shared.errors import FederationError

STOP_SECONDS = 15.0


class WorkerEndedError(FederationError):
    """A worker ended by itself; its log, named in the text, says why."""


@dataclass(slots=True)
class WorkerProcess:
    """One worker. `marked` is the folder by which a watcher finds it again when this process is killed."""

    name: str
    command: list[str]
    log_file: Path
    marked: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def runs(self) -> bool:
        """Whether it was started, and neither killed nor waited for since."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process's id. Raises WorkerEndedError where it does not run."""
        if self._process is None:
            raise WorkerEndedError(f"{self.name} does not run")
        return self._process.pid

    def start(self) -> None:
        """Starts it, in a session of its own: Ctrl-C reaches this process only, which then stops its workers in order."""
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        environment = {**without_secrets(os.environ), MARK: str(self.marked), "OMP_NUM_THREADS": "1"}
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - every word of the command is ours
                self.command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """SIGKILL: no farewell, nothing flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: it stands still, and its connection with it."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on, where it was not killed meanwhile."""
        if self.runs:
            os.kill(self.pid, signal.SIGCONT)

    def demand_alive(self) -> None:
        """Raises WorkerEndedError when it ended although nobody asked it to."""
        if self._process is not None and self._process.poll() is not None:
            raise WorkerEndedError(f"{self.name} ended with code {self._process.returncode}: {self._last_words()}")

    def ask_to_end(self) -> None:
        """SIGTERM, as a service manager would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self, timeout_seconds: float = STOP_SECONDS) -> int:
        """Its exit code once it has ended; a worker that does not end in time is killed, which gives -9."""
        if self._process is None:
            return 0
        try:
            code = self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._process = None
        return code

    def _last_words(self) -> str:
        lines = self.log_file.read_text(errors="replace").strip().splitlines()
        return f"{lines[-1] if lines else 'it said nothing'} (all of it in {self.log_file})"


def entry_point(program: str) -> str:
    """The path of one of our programs beside the interpreter that runs this."""
    return str(Path(sys.executable).with_name(program))


@contextmanager
def watched_over(folder: Path) -> Iterator[None]:
    """While inside, a small process ends everything marked with `folder`, should this one be killed with -9."""
    watcher = start_watcher(folder, remove=False)
    try:
        yield
    finally:
        watcher.terminate()
        watcher.wait()
