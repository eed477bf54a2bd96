"""The client worker: session after session, each over a fresh connection, until it is asked to end."""

import threading
from collections.abc import Callable

import structlog

from broker_config.reconnect import persist
from client_worker.local_work import LocalWork
from client_worker.session import Session
from shared.broker import Broker
from shared.errors import BrokerUnavailableError

log = structlog.get_logger()


def run(connect: Callable[[], Broker], work: LocalWork, stopping: threading.Event) -> None:
    """Takes part until `stopping` is set, or the run is finished and the member leaves then.

    Training goes on while the broker is away. Raises only what a person must look at.
    """

    def session() -> None:
        broker = connect()
        current = Session(work, broker)
        try:
            current.open()
            _attend(current, work, stopping)
        finally:
            broker.close()

    try:
        persist(session, stopping)
    finally:
        stopping.set()
        work.close()


def _attend(session: Session, work: LocalWork, stopping: threading.Event) -> None:
    try:
        while not stopping.is_set():
            session.step()
            if session.finished and work.member.leave_when_finished:
                stopping.set()
    except BrokerUnavailableError as error:
        log.warning("session ended", error=type(error).__name__, reason=str(error))
