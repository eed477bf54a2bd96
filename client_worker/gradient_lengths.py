"""How long the gradients of a training are before and after clipping: for the institution alone, and no part of what leaves."""

from collections.abc import Sequence

import torch

from client_worker.course import Norms


class GradientLengths:
    """Adds up over steps, on the gradients' own device; nothing is read back before the end."""

    def __init__(self, clipping_norm: float) -> None:
        self._clipping_norm = clipping_norm
        self._count = 0
        self._sums: torch.Tensor | None = None
        self._largest: torch.Tensor | None = None

    def add(self, gradients: Sequence[torch.Tensor]) -> None:
        """Gradients of the same units, a tensor for each parameter; one that is not finite counts as zero, as it is taken."""
        if not len(gradients[0]):
            return
        of_parameters = torch.stack([each.detach().flatten(1).norm(2, dim=1) for each in gradients], dim=1)
        lengths = of_parameters.norm(2, dim=1).nan_to_num(nan=0.0, posinf=0.0)
        after = lengths.clamp(max=self._clipping_norm)
        sums = torch.stack([lengths.sum(), after.sum(), (lengths > self._clipping_norm).sum()]).to(torch.float64)
        largest = lengths.max()
        self._sums = sums if self._sums is None else self._sums + sums
        self._largest = largest if self._largest is None else torch.maximum(self._largest, largest)
        self._count += len(lengths)

    def norms(self) -> Norms | None:
        """What they were on average; None where no unit was drawn."""
        if self._sums is None or self._largest is None:
            return None
        before, after, clipped = self._sums.tolist()
        return Norms("gradients", before / self._count, after / self._count, float(self._largest), int(clipped), self._count)
