"""A leader of a founded federation, on a thread of this process, from the settings that `fedqueue init` wrote."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from aggregator_worker.cli import term_settings
from aggregator_worker.settings import AggregatorSettings
from aggregator_worker.worker import run
from broker_config.connection import connect
from broker_config.service import read_settings


@contextmanager
def leading(folder: Path) -> Iterator[None]:
    """While inside, an aggregator leads, and must not fail."""
    settings, stopping, failures = read_settings(AggregatorSettings, folder / "aggregator.toml"), threading.Event(), []

    def lead() -> None:
        try:
            term = term_settings(settings, stopping)
            run(lambda: connect(settings.broker, name="test/aggregator", guard=term.guard), term, stopping)
        except BaseException as error:
            failures.append(error)
            raise

    thread = threading.Thread(target=lead)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join(30)
        assert not thread.is_alive()
        assert failures == []
