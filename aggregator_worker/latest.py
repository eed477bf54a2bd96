"""What the table rules keep of every institution: the last model that it trained, or the last update that it gave.

Rows are float32 arrays by pseudonym. Sums go over the pseudonyms in order, product and sum as two operations, so that the same
updates give the same bits.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from shared.codec import MAX_TENSORS
from shared.compact import Delta, widened
from shared.parameters import Array, Parameters, copy, zeros

Rows = dict[str, dict[str, Array]]
Shares = Mapping[str, float]


def most_institutions(tensors: int) -> int:
    """For how many a state blob has room, beside the model and an optimiser's two moments of so many tensors each."""
    return (MAX_TENSORS - 1) // tensors - 3


class Direction(Protocol):
    """Where a version's updates lead: pure in all but the rows, which it brings up to date."""

    def __call__(self, model: Parameters, rows: Rows, fresh: Rows, shares: Shares) -> dict[str, Array]:
        """`fresh` are the rows that came for this version, `shares` those of everybody that counts."""


def trained_model(base: Parameters, delta: Delta, scale: float) -> dict[str, Array]:
    """The model that an institution trained: base + scale x delta."""
    wide = widened(delta)
    return {name: base[name] + np.float32(scale) * wide[name] for name in base}


def given_update(delta: Delta, scale: float) -> dict[str, Array]:
    """scale x delta, in full."""
    return {name: np.float32(scale) * array for name, array in widened(delta).items()}


def to_mean_model(model: Parameters, rows: Rows, fresh: Rows, shares: Shares) -> dict[str, Array]:
    """From the model to the mean of the last models by share (ASO-Fed, Chen et al. 2020; AREA, arXiv 2405.10123).

    Who counts anew has the present model for its last one, so that its coming is no jump; a row of one that no longer counts
    is dropped.
    """
    _keep(rows, fresh, shares)
    for pseudonym in shares:
        if pseudonym not in rows:
            rows[pseudonym] = copy(model)
    mean = _weighted(rows, shares, model)
    missing = np.float32(1.0 - sum(shares.values()))
    return {name: (mean[name] + missing * model[name]) - model[name] for name in model}


def to_mean_update(model: Parameters, rows: Rows, fresh: Rows, shares: Shares) -> dict[str, Array]:
    """The mean of the last updates by share, for the part of a cycle that m new ones are, and what these changed in it.

    (m / N) sum p h + sum over the new of p (delta - h). CA2FL (Wang et al. 2024, algorithm 1) by share instead of 1/N, and with
    its server learning rate times m / N: one whole step in each cycle, whatever K is. One that never gave an update has 0.
    """
    nothing = zeros(model)
    arrived = {name: fresh[name] for name in sorted(fresh) if name in shares}
    direction = _weighted({name: row for name, row in rows.items() if name in shares}, shares, model)
    part = np.float32(len(arrived) / len(shares)) if shares else np.float32(0)
    for name, into in direction.items():
        into *= part
        for pseudonym, row in arrived.items():
            into += np.float32(shares[pseudonym]) * (row[name] - rows.get(pseudonym, nothing)[name])
    _keep(rows, fresh, shares)
    return direction


def _keep(rows: Rows, fresh: Rows, shares: Shares) -> None:
    rows.update(fresh)
    for pseudonym in [name for name in rows if name not in shares]:
        del rows[pseudonym]


def _weighted(rows: Rows, shares: Shares, like: Parameters) -> dict[str, Array]:
    total = zeros(like)
    for pseudonym in sorted(rows):
        factor = np.float32(shares[pseudonym])
        for name, into in total.items():
            into += factor * rows[pseudonym][name]
    return total
