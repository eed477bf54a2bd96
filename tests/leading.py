"""A founded federation, played from the files that `fedqueue init` wrote: its leader on a thread, institutions by hand."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np

from aggregator_worker.cli import term_settings
from aggregator_worker.settings import AggregatorSettings
from aggregator_worker.worker import run
from broker_config.connection import connect
from broker_config.logins import load
from broker_config.service import read_settings
from broker_config.topology import update_queue
from shared.messages import Update
from shared.parameters import Parameters
from tests.builders import an_update, as_messages
from tests.running import Watch


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


def give(folder: Path, update: Update, delta: Parameters) -> None:
    """Publishes an update as its institution's worker does, with the keys of its kit."""
    name = update.institution
    settings = load(folder).settings(name).model_copy(update={"keys_folder": folder / "institutions" / name / "keys"})
    with closing(connect(settings, name=f"test/{name}")) as broker:
        for message in as_messages(update, delta):
            broker.publish(update_queue(name), message)


def make_three_versions(folder: Path) -> list[str]:
    """Each of one update of north: 1/7, 2/7 and 3/7 for every parameter, whose names are returned."""
    with closing(connect(load(folder).settings("operator"), name="test/operator")) as operator, leading(folder):
        watch = Watch(operator)
        for number in (1, 2, 3):
            delta = {name: np.full_like(array, number / 7) for name, array in watch.model().items()}
            run_id = watch.head.manifest.run_id
            give(folder, an_update("north", number, base=watch.head, run_id=run_id, num_examples=100 * number), delta)
            assert watch.until(lambda number=number: watch.head.manifest.version == number)
        return list(watch.model())
