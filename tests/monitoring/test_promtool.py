"""Prometheus' own check of names, kinds and help texts, on everything that both workers can tell."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from aggregator_worker import figures, metrics
from aggregator_worker.metrics import AggregatorMetrics
from client_worker import metrics as client_metrics
from client_worker.metrics import ClientMetrics
from monitoring.figures import Figure, families
from monitoring.own_state import OWN_FIGURES
from tests.watching import program


def told_in_full(all_figures: tuple[Figure, ...], *histograms: Histogram) -> bytes:
    """The text of a scrape in which every figure has a sample."""
    registry = CollectorRegistry()
    registry.register(Everything(all_figures))
    for each in histograms:
        registry.register(each)
    return generate_latest(registry)


@dataclass(frozen=True)
class Everything(Collector):
    """Figures whose labels all take some word, and whose value is 1."""

    all_figures: tuple[Figure, ...]

    def collect(self) -> Iterator[Metric]:
        for each in self.all_figures:
            sample = (["word"] * len(each.labels), 1.0)
            yield from families([replace(each, of=lambda _value, sample=sample: [sample])], None)


LEADER, CLIENT = AggregatorMetrics(), ClientMetrics()


@pytest.mark.parametrize(
    "text",
    [
        told_in_full((*OWN_FIGURES, *metrics.OWN_FIGURES, *figures.FIGURES), LEADER.staleness, LEADER.commit_seconds),
        told_in_full((*OWN_FIGURES, *client_metrics.FIGURES), CLIENT.training_seconds),
    ],
    ids=["aggregator", "client"],
)
def test_prometheus_has_nothing_to_say_against_the_figures(text: bytes) -> None:
    checked = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_it_would_say_something() -> None:
    text = told_in_full((Figure("fedqueue_updates_ms", "", lambda _value: []),))

    checked = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, check=False)

    assert checked.returncode != 0
