"""What a model says about rows. Apart from the figures, whose libraries a process that only predicts need not load."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from shared.parameters import Array
from shared.tasks.features import label_scale
from shared.tasks.models import build_model, load_parameters
from shared.tasks.spec import TaskSpec

Floats = NDArray[np.float64]


def predict(spec: TaskSpec, parameters: Mapping[str, Array], features: NDArray[np.float32]) -> Floats:
    """Probability of the positive class (rows,), of every class (rows, classes), or the value in the label's unit (rows,)."""
    model = build_model(spec, seed=0).eval()
    load_parameters(model, parameters)
    with torch.no_grad():
        outputs = model(torch.from_numpy(features)).to(torch.float64)
    if spec.kind == "binary":
        return torch.sigmoid(outputs[:, 0]).numpy()
    if spec.kind == "multiclass":
        return torch.softmax(outputs, dim=1).numpy()
    midpoint, half = label_scale(spec.label)
    return np.asarray(outputs[:, 0].numpy() * half + midpoint)
