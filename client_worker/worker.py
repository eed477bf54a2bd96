"""The client worker: session after session, each over a fresh connection, until it is asked to end."""

import threading
from collections.abc import Callable
from contextlib import closing

from broker_config.reconnect import persist
from client_worker.local_work import LocalWork
from client_worker.session import Session
from shared.broker import Broker
from shared.errors import BrokerUnavailableError, SettingsError


def run(connect: Callable[[], Broker], work: LocalWork, stopping: threading.Event) -> None:
    """Takes part until `stopping` is set, or the run is finished and the member leaves then.

    Warms up first: who has said hello can train at once. Training goes on while the broker is away. Raises only what a person
    must look at; of a renewed certificate, found half unpacked at a reconnect, the other half is waited for.
    """
    was_connected = False

    @work.gauges.session()
    def session() -> None:
        nonlocal was_connected
        try:
            broker = connect()
        except SettingsError as error:
            if not was_connected:
                raise
            raise BrokerUnavailableError(f"cannot connect again: {error}") from error
        was_connected = True
        with closing(broker):
            current = Session(work, broker)
            current.open()
            while not stopping.is_set():
                current.step()
                if current.finished and work.member.leave_when_finished:
                    stopping.set()

    try:
        if not stopping.is_set():
            work.data.warm_up()
        persist(session, stopping)
    finally:
        work.gauges.vitals.not_ready("ending")
        stopping.set()
        work.close()
