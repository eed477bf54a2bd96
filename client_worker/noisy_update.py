"""Noise on a whole update: what leaves is nearly the same whether or not the institution took part."""

from collections.abc import Mapping

import numpy as np
import structlog

from client_worker.randomness import SecureRandom
from shared.parameters import Array

log = structlog.get_logger()


def noised_update(
    delta: Mapping[str, Array], *, clipping_norm: float, noise_multiplier: float, random: SecureRandom
) -> dict[str, Array]:
    """delta * min(1, clipping norm / ||delta||) + noise multiplier * clipping norm * z, z standard normal.

    The norm is over all parameters together (McMahan et al. 2018, algorithm 1, with one institution a round). All is added
    in float64 and rounded to float32 last. A delta that is not finite counts as zero, as an update that never comes would
    tell of the data too.
    """
    flat = np.concatenate([array.ravel() for array in delta.values()]).astype(np.float64)
    if not np.isfinite(flat).all():
        log.warning("the update is not finite and leaves as noise alone; lower the learning rate")
        flat = np.zeros_like(flat)
    clipped = flat * (clipping_norm / max(clipping_norm, float(np.linalg.norm(flat))))
    noised = clipped + noise_multiplier * clipping_norm * random.gaussian(flat.size)
    ends = np.cumsum([array.size for array in delta.values()])[:-1]
    pieces = np.split(noised.astype(np.float32), ends)
    return {name: piece.reshape(array.shape) for (name, array), piece in zip(delta.items(), pieces, strict=True)}
