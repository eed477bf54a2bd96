"""How much privacy a mechanism has lost at least, from one run: Steinke, Nasr and Jagielski (2023, arXiv 2305.08846).

m canaries are each included by an independent fair coin. Whoever sees what was published gives each a score, and guesses of
some whether they were in. A mechanism that is (epsilon, delta)-DP allows only so many correct guesses. No I/O here.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr
from sklearn.metrics import roc_auc_score, roc_curve

CONFIDENCE = 0.95
ESTIMATE_CONFIDENCE = 0.999
"""An exact mechanism's estimate lies above its epsilon half of the time, so only what is well above says anything."""
MOST_GUESSED = 0.45
"""The largest share guessed each way: of 1,000 canaries or more, fewer are in with a chance below 1e-3."""
BISECTIONS = 30
Scores = NDArray[np.float64]
Coins = NDArray[np.bool_]


class Guesses(NamedTuple):
    """So many of the highest scores are guessed as in, so many of the lowest as out; of the canaries between nothing is said."""

    highest: int
    lowest: int

    @property
    def total(self) -> int:
        """The paper's r."""
        return self.highest + self.lowest


class Membership(NamedTuple):
    """How well a score tells who was in: area under the ROC curve, and the true positives at 1 % false ones."""

    auc: float
    tpr_at_1_percent_fpr: float


class Bound(NamedTuple):
    """What guesses have shown of epsilon, and what they would have shown, had all been correct."""

    epsilon: float
    guesses: Guesses
    correct: int
    provable: float


class GaussianEstimate(NamedTuple):
    """Epsilon as the scores show it if their noise is Gaussian and independent: the estimate, and 99.9 % sure, at least what.

    Not a theorem about every mechanism, as the one-run bound is, but far closer where the assumption holds.
    """

    epsilon: float
    at_least: float


def p_value(canaries: int, guesses: int, correct: int, *, epsilon: float, target_delta: float) -> float:
    """An upper bound on the chance of so many correct guesses or more, if the mechanism is (epsilon, target delta)-DP.

    With W ~ Binomial(guesses, e^epsilon / (1 + e^epsilon)): P[W >= v] + 2 m delta max_i P[v - i <= W < v] / i (the paper's
    theorem for approximate DP; appendix D has the same as a program). Raises ValueError unless correct <= guesses <= canaries.
    """
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} correct of {guesses} guesses about {canaries} canaries cannot be")
    accuracy = 1.0 / (1.0 + math.exp(-epsilon))
    pure = float(stats.binom.sf(correct - 1, guesses, accuracy))
    just_below = stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, accuracy)
    steepest = float(np.max(np.cumsum(just_below) / np.arange(1, correct + 1), initial=0.0))
    return min(1.0, pure + 2.0 * canaries * target_delta * steepest)


def epsilon_lower_bound(
    canaries: int, guesses: int, correct: int, *, target_delta: float, confidence: float = CONFIDENCE
) -> float:
    """The largest epsilon that so many correct guesses refute; 0 where they refute none.

    `guesses` must have been fixed before the scores were seen: the best of several is no longer at this confidence.
    """

    def refuted(epsilon: float) -> bool:
        return p_value(canaries, guesses, correct, epsilon=epsilon, target_delta=target_delta) < 1.0 - confidence

    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2.0 * high
    for _ in range(BISECTIONS):  # `low` is refuted throughout, so that it is a bound whatever the p-value's shape
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


@functools.lru_cache(maxsize=64)
def plan_guesses(canaries: int, separation: float, *, target_delta: float) -> tuple[Guesses, ...]:
    """The numbers of guesses, fixed by public figures before there is a score.

    The first promises the highest bound of a mechanism that keeps its word. So few guesses, of the most telling scores, can show
    no large epsilon: the second promises the highest bound of a mechanism with half of its noise, and the third is nearly all
    canaries. `separation` is by how many standard deviations of its noise a canary moves its score; infinite without noise.
    """
    counts = sorted({max(1, int(share * canaries)) for share in np.geomspace(1e-3, MOST_GUESSED, 40)})

    def most_promising(separation: float) -> int:
        def promise(count: int) -> float:
            correct = math.floor(2 * count * _accuracy(count / canaries, separation))
            return epsilon_lower_bound(canaries, 2 * count, correct, target_delta=target_delta)

        return max(counts, key=promise)

    chosen = {most_promising(separation), most_promising(2 * separation), counts[-1]}
    return tuple(Guesses(count, count) for count in sorted(chosen))


def _accuracy(share: float, separation: float) -> float:
    """How often the highest `share` of scores is in, if scores are normal, half of them moved up by `separation`."""
    if math.isinf(separation):
        return 1.0

    def excess(threshold: float) -> float:
        return float(ndtr(separation - threshold) + ndtr(-threshold)) / 2 - share

    threshold = brentq(excess, -40.0, 40.0 + separation)
    return float(ndtr(separation - threshold)) / (2 * share)


def correct_guesses(scores: Scores, included: Coins, guesses: Guesses) -> int:
    """How many of the guesses are right. Equal scores are taken in the order of the canaries, which no coin has a part in."""
    order = np.argsort(-scores, kind="stable")
    lowest = order[len(order) - guesses.lowest :]
    return int(included[order[: guesses.highest]].sum() + (~included[lowest]).sum())


def bound(scores: Scores, included: Coins, plan: Sequence[Guesses], *, target_delta: float) -> Bound:
    """The best of the planned numbers of guesses, each tested at its share of the error (Bonferroni), so that 95 % holds for all.

    Scores of several runs that share no canary may be put in one row: each canary is in one run only, so that what all runs
    published together is as private for it as that run.
    """
    confidence = 1.0 - (1.0 - CONFIDENCE) / len(plan)

    def shown(total: int, correct: int) -> float:
        return epsilon_lower_bound(len(scores), total, correct, target_delta=target_delta, confidence=confidence)

    correct = [correct_guesses(scores, included, guesses) for guesses in plan]
    bounds = [shown(guesses.total, right) for guesses, right in zip(plan, correct, strict=True)]
    best = int(np.argmax(bounds))
    return Bound(bounds[best], plan[best], correct[best], max(shown(guesses.total, guesses.total) for guesses in plan))


def membership(scores: Scores, included: Coins) -> Membership:
    """The same scores as an attack on membership (Carlini et al. 2022 ask for the rate at few false positives)."""
    false_positives, true_positives, _ = roc_curve(included, scores)
    return Membership(float(roc_auc_score(included, scores)), float(true_positives[false_positives <= 0.01].max()))


def gaussian_estimate(
    scores: Scores, included: Coins, *, target_delta: float, confidence: float = ESTIMATE_CONFIDENCE
) -> GaussianEstimate:
    """From the distance of the mean scores of both groups, in standard deviations: mu of Gaussian DP (Dong et al. 2022).

    Andrew et al. (2024, arXiv 2302.03098) estimate in this way. The interval is one-sided.
    """
    inside, outside = scores[included], scores[~included]
    spread = math.sqrt((inside.var(ddof=1) * (len(inside) - 1) + outside.var(ddof=1) * (len(outside) - 1)) / (len(scores) - 2))
    distance = float(inside.mean() - outside.mean())
    if spread <= 1e-6 * abs(distance):
        return GaussianEstimate(math.inf, math.inf)
    mu = distance / spread
    error = math.sqrt(1 / len(inside) + 1 / len(outside) + mu**2 / (2 * len(scores)))
    least = mu - float(stats.norm.ppf(confidence)) * error
    return GaussianEstimate(gaussian_epsilon(mu, target_delta), gaussian_epsilon(least, target_delta))


def gaussian_epsilon(mu: float, target_delta: float) -> float:
    """Epsilon of a mechanism that is mu-GDP: Phi(-eps/mu + mu/2) - e^eps Phi(-eps/mu - mu/2) = delta; 0 where it needs none."""

    def excess(epsilon: float) -> float:
        second = math.exp(epsilon + log_ndtr(-epsilon / mu - mu / 2))
        return float(ndtr(-epsilon / mu + mu / 2)) - second - target_delta

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, mu**2 / 2 + 10 * mu + 1))
