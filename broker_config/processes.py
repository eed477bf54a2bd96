"""The processes of a private node, found by a mark in their environment: a pid alone may be somebody else's by now."""

import contextlib
import os
import select
import signal
from pathlib import Path

MARK = "FEDQUEUE_NODE_FOLDER"


def processes_of(folder: Path) -> list[int]:
    """Pids of all processes that were started for `folder` or for a folder below it."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal() and _is_marked(entry, folder)]


def _is_marked(process: Path, folder: Path) -> bool:
    try:
        environment = (process / "environ").read_bytes()
    except OSError:
        return False
    for entry in environment.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name == MARK.encode():
            marked = Path(os.fsdecode(value))
            return marked == folder or folder in marked.parents
    return False


def wait_for_end(pid: int, timeout_seconds: float) -> bool:
    """Whether a process (of ours or not) ended in time; a zombie has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ended, _, _ = select.select([handle], [], [], timeout_seconds)
        return bool(ended)
    finally:
        os.close(handle)


def send(pid: int, number: signal.Signals) -> None:
    """Signals a process that may just have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end_all(folder: Path, *, grace_seconds: float) -> None:
    """Ends every process of `folder`: the Erlang nodes in their own time, then whatever is left."""
    nodes, launchers = _running(folder, "beam.smp"), _running(folder, "rabbitmq-server")
    for pid in nodes:
        # SIGTERM once only: a second one makes Erlang stop at once.
        send(pid, signal.SIGTERM if grace_seconds else signal.SIGKILL)
    for pid in nodes:
        wait_for_end(pid, grace_seconds or 5)
    for pid in launchers:
        wait_for_end(pid, 2)  # it reaps its node, which would stay a zombie where process 1 does not reap
    # A launcher may start something between the two looks, so look until there is nothing.
    while rest := [pid for pid in processes_of(folder) if pid != os.getpid()]:
        for pid in rest:
            send(pid, signal.SIGKILL)
        for pid in rest:
            wait_for_end(pid, 5)
        _reap(rest)


def _running(folder: Path, program: str) -> list[int]:
    return [pid for pid in processes_of(folder) if _program(pid) == program]


def _program(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    return ""


def _reap(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
