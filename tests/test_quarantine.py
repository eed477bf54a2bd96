"""From the first bad update to the release, with real workers: what the gate holds back, and what everybody does about it."""

from contextlib import ExitStack

import pytest

from shared.parameters import Parameters
from tests.builders import NAMES, a_plan, an_operation, array
from tests.conftest import MemoryServer
from tests.running import Leader, Watch, Worker, begin, give_order, local_data, require_each_once

TARGETS = {"bank-a": 1.0, "bank-b": 2.0, "bank-c": 60.0}
"""Between 1 and 2 all models are equally good; bank-c mixes up a unit."""


def log_loss(model: Parameters) -> float:
    return float(max(0.0, abs(float(model["w"][0]) - 1.5) - 0.5))


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def test_a_bank_with_bad_data_is_confined_trains_no_more_and_takes_part_again_once_it_is_released(tmp_path, stack):
    server, targets = MemoryServer(), dict(TARGETS)
    begin(server, a_plan())
    watch = Watch(server.connect("operator"))
    trained = []

    def half_way(name: str):
        def train(model, _settings, _stop):
            trained.append((name, dict(targets)[name]))
            return {"w": ((targets[name] - model["w"]) * array(0.5)).astype("float32")}

        return train

    with Leader(server, tmp_path / "aggregator", gate=log_loss):
        for name in NAMES:
            data = local_data(name, train=half_way(name))
            stack.enter_context(Worker(server, name, tmp_path, data=data))
        assert watch.until(lambda: watch.entry("bank-c").quarantined)
        confined, version = watch.entry("bank-c"), watch.head.manifest.version
        assert watch.until(lambda: watch.head.manifest.version >= version + 20), "the others go on"
        assert watch.entry("bank-c").watermark <= confined.watermark + 1, "one may have been under way"
        assert [name for name, _ in trained].count("bank-c") <= watch.entry("bank-c").watermark + 1
        assert 0.9 <= watch.model()["w"][0] <= 2.1
        targets["bank-c"] = 1.2
        give_order(server, an_operation("release", 1, institution="bank-c"))
        assert watch.until(lambda: watch.entry("bank-c").counters.aggregated >= confined.counters.aggregated + 3)
        assert not watch.entry("bank-c").quarantined
    require_each_once(watch)
