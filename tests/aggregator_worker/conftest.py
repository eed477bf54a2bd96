from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aggregator_worker.counter import Counter


@pytest.fixture
def counter(tmp_path: Path) -> Iterator[Counter]:
    """A desk over the memory broker."""
    counter = Counter(tmp_path)
    yield counter
    counter.desk.close()
