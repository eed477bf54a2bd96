"""What systemd is told of a worker, over the socket that it names: ready, its status, that it lives, and that it ends."""

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from monitoring.vitals import Vitals

TICK_SECONDS = 1.0
STARTING_SECONDS = 60.0
"""A worker that is not ready yet, and lives, asks for so long from each tick on."""

log = structlog.get_logger()


@dataclass(slots=True, eq=False)
class Supervision:
    """sd_notify(3). `address` is a path, or with an @ before it a name of Linux's abstract sockets.

    `watchdog_seconds` is the longest that systemd waits for a sign of life; None where it waits for none.
    """

    address: str
    watchdog_seconds: float | None
    vitals: Vitals
    _was_ready: bool = False
    _status: str = ""
    _unheard: bool = False

    @classmethod
    def asked_for(cls, environment: Mapping[str, str], vitals: Vitals) -> "Supervision | None":
        """As the environment of a service says; None outside of one."""
        address = environment.get("NOTIFY_SOCKET", "")
        if not address:
            return None
        own = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period = environment.get("WATCHDOG_USEC", "") if own else ""
        return cls(address, int(period) / 1e6 if period.isdigit() and int(period) else None, vitals)

    @property
    def tick_seconds(self) -> float:
        """How often it is told: at least twice within what systemd waits."""
        return min(TICK_SECONDS, (self.watchdog_seconds or TICK_SECONDS) / 2)

    def tell(self) -> None:
        """Whatever is news, and that it lives. What was ready once stays so for systemd, which knows no way back."""
        condition = self.vitals.now()
        status = condition.reason if condition.ready else f"not ready: {condition.reason}"
        news = ["READY=1"] if condition.ready and not self._was_ready else []
        news += [f"STATUS={' '.join(status.split())}"] if status != self._status else []
        if self._send(news):
            self._was_ready, self._status = self._was_ready or condition.ready, status
        self.tell_alive()

    def tell_alive(self) -> None:
        """A sign of life where the worker gives one; who is not ready yet asks for more time by it."""
        if not self.vitals.now().alive:
            return
        if self.watchdog_seconds is not None:
            self._send(["WATCHDOG=1"])
        if not self._was_ready:
            self._send([f"EXTEND_TIMEOUT_USEC={STARTING_SECONDS * 1e6:.0f}"])

    def tell_end(self) -> None:
        """The worker was asked to end, and does what it must before."""
        self._send(["STOPPING=1", "STATUS=ending"])

    def _send(self, news: list[str]) -> bool:
        """Whether it is there; what is not, for a socket that is full or gone, is news again at the next tick."""
        if not news:
            return True
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
                datagrams.settimeout(self.tick_seconds)
                datagrams.sendto("\n".join(news).encode(), address)
        except OSError as error:
            if not self._unheard:
                log.warning("the service manager cannot be told", address=self.address, reason=str(error))
            self._unheard = True
            return False
        return True


@contextmanager
def supervised(vitals: Vitals, stopping: threading.Event) -> Iterator[None]:
    """While inside, systemd is told of a worker where it asked to be; soon after `stopping` is set also that it ends."""
    supervision, over = Supervision.asked_for(os.environ, vitals), threading.Event()
    if supervision is None:
        yield
        return

    def keep_telling() -> None:
        while not (stopping.is_set() or over.is_set()):
            supervision.tell()
            over.wait(supervision.tick_seconds)
        supervision.tell_end()
        while not over.wait(supervision.tick_seconds):
            supervision.tell_alive()

    thread = threading.Thread(target=keep_telling, name="systemd")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
