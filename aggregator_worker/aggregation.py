"""Staleness-weighted asynchronous FedAvg: numbers in, numbers out.

weight = server learning rate x share of the data x staleness weight; model += weight x delta. An institution's share is its
number of examples over that of all active ones, so that one fresh update from each adds up to exactly FedAvg
(McMahan et al. 2017, algorithm 1). Staleness weights: Xie, Koyejo & Gupta 2019 (FedAsync), section 5.2.
"""

from collections.abc import Mapping

import numpy as np

from shared.compact import Delta, blocks
from shared.lineage import takes_part
from shared.messages import Entry
from shared.parameters import BLOCK, Array
from shared.plan import AggregationPlan, StalenessRule


def staleness_weight(
    function: str, staleness: int, *, exponent: float = 0.5, hinge_slope: float = 10.0, hinge_threshold: int = 4
) -> float:
    """1 when fresh, never rising: constant 1; polynomial (1+s)^-exponent; hinge 1 up to the threshold, then 1/(slope(s-t)+1)."""
    match function:
        case "constant":
            return 1.0
        case "polynomial":
            return float((1.0 + staleness) ** -exponent)
        case "hinge":
            late = staleness - hinge_threshold
            return 1.0 if late <= 0 else 1.0 / (hinge_slope * late + 1.0)
    raise ValueError(f"no staleness function is called {function!r}")


def rule_weight(rule: StalenessRule, staleness: int) -> float:
    """The staleness weight under a plan's rule."""
    return staleness_weight(
        rule.function,
        staleness,
        exponent=rule.exponent,
        hinge_slope=rule.hinge_slope,
        hinge_threshold=rule.hinge_threshold,
    )


def share(num_examples: int, table: Mapping[str, Entry]) -> float:
    """An institution's part of the data of all active members. One that has not yet said how much it has counts as average."""
    # whose budget is spent keeps its share: the others' weights must not jump at that moment, and what it gave before must go on
    # counting like the rest
    active = [entry for entry in table.values() if entry.active and not entry.removed]
    known = [entry.num_examples for entry in active if entry.num_examples is not None]
    average = sum(known) / len(known) if known else float(num_examples)
    return num_examples / (sum(known) + average * (len(active) - len(known)))


def update_weight(plan: AggregationPlan, *, staleness: int, data_share: float) -> float:
    """The factor of one delta, rounded to float32: what the manifest records is what is multiplied."""
    weight = plan.server_learning_rate * data_share * rule_weight(plan.staleness, staleness)
    return float(np.float32(weight))


def buffer_target(plan: AggregationPlan, table: Mapping[str, Entry], plan_hash: str) -> int:
    """K, capped at half of those that take part so that nobody waits for a slow one, unless the plan wants exactly K."""
    if plan.exact_buffer:
        return plan.buffer_size
    giving = sum(takes_part(entry, plan_hash) for entry in table.values())
    return min(plan.buffer_size, max(1, giving // 2))


def fold_in_place(model: Mapping[str, Array], delta: Delta, weight: float) -> None:
    """model += weight x delta, the product rounded to float32 before it is added: replay repeats these two operations.

    A scaled number is rounded to float32 before it is multiplied. No more than a block of it exists as float32.
    """
    factor, product = np.float32(weight), np.empty(BLOCK, dtype=np.float32)
    for name, array in model.items():
        into = array.reshape(-1)
        for start, add in zip(range(0, into.size, BLOCK), blocks(delta[name]), strict=True):
            part = into[start : start + BLOCK]
            np.multiply(add, factor, out=product[: part.size])
            np.add(part, product[: part.size], out=part)


def scale_in_place(arrays: Mapping[str, Array], factor: float) -> None:
    """Every value times the factor, both as float32."""
    for array in arrays.values():
        np.multiply(array, np.float32(factor), out=array)
