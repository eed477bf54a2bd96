"""What a simulated run gives: values alone, the same to the bit for the same scenario."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shared.parameters import Array
from shared.plan import RuleName
from shared.tasks.spec import LOWER_IS_BETTER

Figures = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Point:
    """The global model at one moment of a run. `updates` are all that arrived so far, refused ones included.

    `bytes_up` are the bodies of these updates, and `bytes_down` those of the models that trainings began from; manifests, and
    models that an institution reads without training on them, are not counted.
    """

    seconds: float
    updates: int
    version: int
    bytes_up: int
    bytes_down: int
    metrics: Figures


@dataclass(frozen=True, slots=True)
class Contribution:
    """One institution's part in a run. Shares are of the total of all institutions, from 0 to 1.

    `weight_share` is of the weights that were folded, after any scaling down; `mean_staleness` is in versions, over the updates
    that were folded; `usual_seconds` is what one local training takes it.
    """

    institution: str
    examples: int
    data_share: float
    weight_share: float
    usual_seconds: float
    updates: int
    aggregated: int
    mean_staleness: float | None
    poisoned: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class RunResult:
    """One plan's run. `points` begin with version 0 and end with the last version; `ended` says why there is no more.

    `metric` is the figure to look at first. `outcomes` counts updates by what became of them. `noise_multiplier` is std /
    clipping norm, None without noise. `buffer_size` is K as the plan says it.
    """

    scenario: str
    name: str
    rule: RuleName
    buffer_size: int
    metric: str
    points: tuple[Point, ...]
    contributions: tuple[Contribution, ...]
    outcomes: Mapping[str, int]
    ended: str
    noise_multiplier: float | None
    parameters: Mapping[str, Array]

    @property
    def final(self) -> Point:
        """The last version's."""
        return self.points[-1]

    @property
    def best(self) -> Point:
        """That with the best first figure, the earliest of equals; the first of all where no point has one."""
        return max(self.points, key=lambda point: _merit(self.metric, point))

    def reached(self, value: float, *, metric: str = "", evaluations: int = 1) -> Point | None:
        """The first point at which the figure was at least as good as `value` so many times in a row; None if there is none.

        `metric` is the run's own unless given.
        """
        name, row = metric or self.metric, 0
        wanted = -value if name in LOWER_IS_BETTER else value
        for point in self.points:
            row = row + 1 if _merit(name, point) >= wanted else 0
            if row == evaluations:
                return point
        return None


def weight_share(contributions: Sequence[Contribution], *, slower_than_seconds: float) -> float:
    """The part of all weight that the institutions have whose trainings usually take longer than that."""
    return sum(each.weight_share for each in contributions if each.usual_seconds > slower_than_seconds)


def data_share(contributions: Sequence[Contribution], *, slower_than_seconds: float) -> float:
    """The part of all examples that these institutions have."""
    return sum(each.data_share for each in contributions if each.usual_seconds > slower_than_seconds)


def _merit(metric: str, point: Point) -> float:
    figure = point.metrics.get(metric)
    if figure is None:
        return float("-inf")
    return -figure if metric in LOWER_IS_BETTER else figure
