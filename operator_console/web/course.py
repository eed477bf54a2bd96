"""A run of any length in bounded memory: the newest links whole, and of every version its figures and its place. Pure."""

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from operator_console.history import History
from shared.broker import Delivery
from shared.messages import ManifestRecord

KEPT_LINKS = 1000
MOST_POINTS = 600
DIGITS = 6
"""Significant digits of a figure on its way to a browser."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the manifests of a version stand: the first one's offset in the lineage, and the hashes of all."""

    offset: int
    hashes: tuple[str, ...]


class Course:
    """Takes the records of a lineage in order. One that is read again changes nothing."""

    def __init__(self, names: Mapping[str, str], *, kept: int = KEPT_LINKS) -> None:
        self.history = History(names, kept=kept)
        self.stalenesses: Counter[int] = Counter()
        self._versions, self._at_ms = array("q"), array("q")
        self._figures: dict[str, array[float]] = {}
        self._offsets = array("q")
        self._hashes: list[list[bytes]] = []

    def take(self, record: ManifestRecord, delivery: Delivery) -> None:
        """The callback of a LineageReader."""
        before = self.history.head
        self.history.take(record, delivery)
        head = self.history.head
        if head is None or head is before:
            return
        manifest = head.manifest
        self.stalenesses.update(each.staleness for each in manifest.settled if each.outcome == "aggregated")
        if before is None or before.manifest.version != manifest.version:
            self._begin(manifest.version, head.at_ms, delivery.offset or 0)
            self._measure(manifest.metrics)
        self._hashes[-1].append(bytes.fromhex(head.hash))

    def _begin(self, version: int, at_ms: int, offset: int) -> None:
        self._versions.append(version)
        self._at_ms.append(at_ms)
        self._offsets.append(offset)
        self._hashes.append([])

    def _measure(self, metrics: Mapping[str, float | None]) -> None:
        count = len(self._versions)
        for name in metrics:
            self._figures.setdefault(name, array("d", [math.nan] * (count - 1)))
        for name, figures in self._figures.items():
            value = metrics.get(name)
            figures.append(math.nan if value is None else value)

    @property
    def metric_names(self) -> list[str]:
        """The held-out figures that any version had."""
        return list(self._figures)

    def line(self, version: int) -> dict[str, Any] | None:
        """A version's line of the lineage, where its links are still in memory."""
        links = self.history.links
        if len(self._versions) > 1 and len(links) > 1 and version <= links[1].manifest.version and self._is_cut:
            return None
        return self.history.line(version)

    @property
    def _is_cut(self) -> bool:
        return sum(map(len, self._hashes)) > len(self.history.links)

    def place(self, version: int) -> Place | None:
        """Where to read a version again; None for one that never was."""
        index = self._index(version)
        if index is None:
            return None
        return Place(self._offsets[index], tuple(each.hex() for each in self._hashes[index]))

    def _index(self, version: int) -> int | None:
        """Versions grow by one each, from wherever the lineage begins."""
        index = version - self._versions[0] if self._versions else -1
        return index if 0 <= index < len(self._versions) and self._versions[index] == version else None

    def points(self, first: str, *, most: int = MOST_POINTS) -> list[dict[str, Any]]:
        """The figures of the versions that have any, oldest first.

        Of more than `most`, each stretch of versions gives the two with its lowest and highest `first`, so that no peak is lost;
        the first and the last version are always there.
        """
        measured = [index for index in range(len(self._versions)) if any(map(math.isfinite, self._at(index)))]
        return [self._point(index) for index in _thinned(measured, self._figures.get(first), most)]

    def _at(self, index: int) -> list[float]:
        return [figures[index] for figures in self._figures.values()]

    def _point(self, index: int) -> dict[str, Any]:
        values = {
            name: rounded(value) for name, value in zip(self._figures, self._at(index), strict=True) if math.isfinite(value)
        }
        return {"version": self._versions[index], "seconds": self.seconds(self._at_ms[index]), "values": values}

    def seconds(self, at_ms: int) -> float:
        """Since version 0."""
        return round((at_ms - self._at_ms[0]) / 1000, 3)


def _thinned(indexes: Sequence[int], figures: "array[float] | None", most: int) -> list[int]:
    if len(indexes) <= most:
        return list(indexes)
    stretches = most // 2
    kept = {indexes[0], indexes[-1]}
    for number in range(stretches):
        stretch = indexes[number * len(indexes) // stretches : (number + 1) * len(indexes) // stretches]
        finite = [index for index in stretch if figures is not None and math.isfinite(figures[index])]
        if figures is None or not finite:
            kept.add(stretch[-1])
            continue
        kept |= {min(finite, key=figures.__getitem__), max(finite, key=figures.__getitem__)}
    return sorted(kept)


def rounded(value: float) -> float:
    """A figure with as many digits as a browser shows."""
    return float(f"{value:.{DIGITS}g}")
