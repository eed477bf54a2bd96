"""The aggregator worker: term after term, each over a fresh connection, until it is asked to end."""

import threading
from collections.abc import Callable
from contextlib import closing, suppress

from aggregator_worker.leadership import StoppedError
from aggregator_worker.term import Term, TermSettings
from broker_config.reconnect import persist
from shared.broker import Broker


def run(connect: Callable[[], Broker], settings: TermSettings, stopping: threading.Event) -> None:
    """Leads, or stands by to lead, until `stopping` is set. Raises only what a person must look at."""

    def session() -> None:
        with settings.metrics.vitals.hindered_by_errors(), closing(connect()) as broker, suppress(StoppedError):
            Term(broker, settings).run()

    settings.state_folder.mkdir(parents=True, exist_ok=True)
    persist(session, stopping)
    settings.metrics.vitals.not_ready("ending")
