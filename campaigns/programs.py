"""The processes of a campaign: each with a link of its own, a state folder that can be full, and a clock that can jump."""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from broker_config.node import start_watcher
from broker_config.processes import send
from campaigns.tcp_proxy import TcpProxy
from operator_console.worker_processes import WorkerProcess

_FAKETIME = Path("/usr/lib")
_FILLER = "filler"
_STATE_BYTES = 64 * 2**20
_PIECE_BYTES = 2**20
_NEVER_BYTES = 2**62
_CLONE_NEWNS = 0x00020000  # <sched.h>; os.unshare came with Python 3.12


def faketime_library() -> Path | None:
    """libfaketime for programs with threads, or None where it is not installed."""
    return next(_FAKETIME.glob("**/faketime/libfaketimeMT.so.1"), None)


class Link:
    """One process's way to every node of the broker."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._proxies = [TcpProxy(port) for port in ports]

    def each(self, change: Callable[[TcpProxy], None]) -> None:
        """Does the same to the way to every node."""
        for proxy in self._proxies:
            change(proxy)

    def urls(self, vhost: str) -> str:
        """As a worker's settings name the nodes."""
        return ",".join(f"amqp://127.0.0.1:{proxy.port}/{vhost}" for proxy in self._proxies)

    def heal(self) -> None:
        """Passes everything at full speed again."""
        for proxy in self._proxies:
            proxy.accept()
            proxy.resume()
            proxy.slow(None, "up")
            proxy.slow(None, "down")
            proxy.cut_after(_NEVER_BYTES)

    def close(self) -> None:
        """Ends the proxies."""
        for proxy in self._proxies:
            proxy.close()


@dataclass(slots=True)
class Program:
    """One worker process and what a fault can do to it. `state_folder` is a file system of its own where `mounted`."""

    name: str
    process: WorkerProcess
    link: Link
    state_folder: Path
    clock_file: Path
    mounted: bool
    endings: list[str] = field(default_factory=list)
    _running: bool = False

    @property
    def running(self) -> bool:
        """Whether it is meant to run."""
        return self._running

    @property
    def pid(self) -> int | None:
        """Its id while it is meant to run."""
        return self.process.pid if self._running else None

    def start(self) -> None:
        """Starts it."""
        self.process.start()
        self._running = True

    def kill(self) -> None:
        """SIGKILL."""
        pid = self.pid
        self._running = False
        self.process.kill()
        if pid is not None:
            _remove_shared_clock(pid)

    def pause(self) -> None:
        """SIGSTOP."""
        if self._running:
            send(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """SIGCONT."""
        if self._running:
            send(self.process.pid, signal.SIGCONT)

    def fill_disk(self) -> None:
        """Leaves no byte free in the state folder."""
        with (self.state_folder / _FILLER).open("ab", buffering=0) as filler:
            piece_bytes = _PIECE_BYTES
            while piece_bytes:
                try:
                    filler.write(b"\0" * piece_bytes)
                except OSError:
                    piece_bytes //= 2

    def empty_disk(self) -> None:
        """Gives the room back."""
        (self.state_folder / _FILLER).unlink(missing_ok=True)

    def set_clock(self, ahead_seconds: int) -> None:
        """Puts the process's wall clock ahead of the machine's, or behind it; its monotonic clock goes on."""
        aside = self.clock_file.with_suffix(".new")
        aside.write_text(f"{ahead_seconds:+d}\n")
        aside.replace(self.clock_file)

    def wait(self, timeout_seconds: float) -> int:
        """The exit code of a process that was asked to end, or ends by itself."""
        pid = self.pid
        self._running = False
        code = self.process.wait(timeout_seconds)
        if pid is not None:
            _remove_shared_clock(pid)
        return code


def _remove_shared_clock(pid: int) -> None:
    """What libfaketime leaves of a process that was killed."""
    for name in (f"faketime_shm_{pid}", f"sem.faketime_sem_{pid}"):
        Path("/dev/shm", name).unlink(missing_ok=True)  # noqa: S108 - its name, not ours


def with_own_clock(command: Sequence[str], clock_file: Path) -> list[str]:
    """The command under libfaketime, where there is one. The time goes on from wherever it was put."""
    library = faketime_library()
    if library is None:
        return list(command)
    clock_file.write_text("+0\n")
    settings = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock_file),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
    return ["/usr/bin/env", *(f"{name}={value}" for name, value in settings.items()), *command]


def small_disk(folder: Path) -> None:
    """Mounts a small file system on a folder. Needs `private_mounts`."""
    folder.mkdir(parents=True)
    command = ["/usr/bin/mount", "-t", "tmpfs", "-o", f"size={_STATE_BYTES}", "none", str(folder)]
    subprocess.run(command, check=True)  # noqa: S603 - every word is ours


def unmount(folder: Path) -> None:
    """Leaves the folder with what the file system on it held."""
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, kept, ignore=shutil.ignore_patterns(_FILLER))
    subprocess.run(["/usr/bin/umount", "--lazy", str(folder)], check=True)  # noqa: S603 - every word is ours
    folder.rmdir()
    kept.rename(folder)


def private_mounts() -> bool:
    """Gives this process and its children mounts of their own, which end with them, also after a kill -9. Only root can."""
    if os.geteuid() != 0 or ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:
        return False
    private = subprocess.run(["/usr/bin/mount", "--make-rprivate", "/"], check=False).returncode == 0
    # libfaketime keeps a file there for every process, which a SIGKILL leaves behind
    return private and subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "none", "/dev/shm"], check=False).returncode == 0  # noqa: S108


@contextmanager
def removed_with_parent(folder: Path) -> Iterator[None]:
    """While inside, a small process ends everything of `folder` and removes it, should this one be killed with -9."""
    watcher = start_watcher(folder, remove=True)
    try:
        yield
    finally:
        watcher.terminate()
        watcher.wait()
