"""docs/metrics.md and the registries of both workers name the same metrics, with the same kinds and labels."""

import re
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import Histogram

from aggregator_worker import figures, metrics
from aggregator_worker.metrics import AggregatorMetrics
from client_worker import metrics as client_metrics
from client_worker.metrics import ClientMetrics
from monitoring.figures import Figure
from monitoring.own_state import OWN_FIGURES
from shared.messages import Counters, Phase

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROW = re.compile(r"^\| `(fedqueue_\w+)(?:\{([\w,]+)\})?` \| (\w+) \| (.+) \|$", re.MULTILINE)
Told = set[tuple[str, str, frozenset[str]]]


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def told(title: str) -> Told:
    """Kind, name and labels of each row of a section's table."""
    rows = ROW.findall(section(title))
    return {(kind, name, frozenset(labels.split(",")) if labels else frozenset()) for name, labels, kind, _ in rows}


def text_of(name: str) -> str:
    return next(text for found, _, _, text in ROW.findall(PAGE) if found == name)


def exported(figures: tuple[Figure, ...], *histograms: Histogram) -> Told:
    gauges = {("counter" if each.name.endswith("_total") else "gauge", each.name, frozenset(each.labels)) for each in figures}
    return gauges | {("histogram", family.name, frozenset[str]()) for each in histograms for family in each.collect()}


@pytest.mark.parametrize(
    ("title", "registry"),
    [
        ("Both workers", exported(OWN_FIGURES)),
        (
            "The aggregator",
            exported((*metrics.OWN_FIGURES, *figures.FIGURES), AggregatorMetrics().staleness, AggregatorMetrics().commit_seconds),
        ),
        ("The client", exported(client_metrics.FIGURES, ClientMetrics().training_seconds)),
    ],
)
def test_the_page_and_the_worker_name_the_same_metrics(title: str, registry: Told) -> None:
    assert told(title) == registry


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fedqueue_phase", get_args(Phase)),
        ("fedqueue_updates_total", Counters.model_fields),
        ("fedqueue_client_state", client_metrics.STATES),
        ("fedqueue_client_updates_settled_total", client_metrics.OUTCOMES),
        ("fedqueue_client_trainings_total", ("completed", "abandoned")),
    ],
)
def test_the_page_lists_every_word_that_a_label_takes(name: str, words: tuple[str, ...]) -> None:
    assert set(re.findall(r"`(\w+)`", text_of(name))) == set(words)


def test_every_time_on_the_page_says_which_and_every_length_in_what() -> None:
    for name, _, _, text in ROW.findall(PAGE):
        assert "_timestamp_" not in name or "Unix time" in text, name
        assert not re.search(r"(?<!timestamp)_seconds$", name) or "in seconds" in text, name
