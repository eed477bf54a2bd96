"""The loss of each kind of task, summed over rows or for each row."""

from typing import Literal

import torch
from torch.nn import functional

from shared.tasks.spec import Kind


def loss(kind: Kind, outputs: torch.Tensor, labels: torch.Tensor, *, reduction: Literal["sum", "none"] = "sum") -> torch.Tensor:
    """Logistic loss, cross-entropy, or squared error on the scaled label; `outputs` is (rows, outputs)."""
    match kind:
        case "binary":
            return functional.binary_cross_entropy_with_logits(outputs[:, 0], labels, reduction=reduction)
        case "multiclass":
            return functional.cross_entropy(outputs, labels, reduction=reduction)
        case "regression":
            return functional.mse_loss(outputs[:, 0], labels, reduction=reduction)
