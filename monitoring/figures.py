"""Figures that are read off a value when somebody asks: a table of what each is called, means, and is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

Value = TypeVar("Value")
Sample = tuple[Sequence[str], float]
"""The labels' values, and the figure."""


@dataclass(frozen=True, slots=True)
class Figure(Generic[Value]):
    """A gauge, or a counter where its name ends in _total. `of` gives its samples, none where there is nothing to tell."""

    name: str
    text: str
    of: Callable[[Value], Iterable[Sample]]
    labels: tuple[str, ...] = ()


def one(number: float | None) -> list[Sample]:
    """The only sample of a figure without labels, if it is known."""
    return [] if number is None else [((), float(number))]


def families(figures: Iterable[Figure[Value]], value: Value) -> Iterator[Metric]:
    """What a registry's collector gives."""
    for figure in figures:
        kind = CounterMetricFamily if figure.name.endswith("_total") else GaugeMetricFamily
        family = kind(figure.name, figure.text, labels=figure.labels)
        for labels, number in figure.of(value):
            family.add_metric(labels, number)
        if family.samples:
            yield family
