"""Handles one update in a process of its own: `python -m aggregator_worker.trial < content`. To live is to pass.

What several aggregators may have died of is tried here first. A content that is refused in the ordinary way passes too: the
aggregator will refuse it with its reason.
"""

import sys
from contextlib import suppress

import numpy as np

from aggregator_worker.aggregation import fold_in_place
from shared import messages
from shared.compact import l2_norm
from shared.errors import RejectedMessageError


def main() -> None:
    """All that the aggregator does with an update's bytes."""
    content = sys.stdin.buffer.read()
    with suppress(RejectedMessageError):
        _, delta = messages.decode_update(content, max_bytes=len(content))
        l2_norm(delta)
        fold_in_place({name: np.zeros(tensor.shape, np.float32) for name, tensor in delta.items()}, delta, 1.0)


if __name__ == "__main__":
    main()
