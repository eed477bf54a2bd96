"""DP-SGD steps by opacus, with noise from a cryptographic generator instead of torch's."""

import warnings
from collections.abc import Callable

import structlog
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import nn

from client_worker.gradient_lengths import GradientLengths
from client_worker.model_check import require_gradients_of_rows, require_supported_layers
from client_worker.randomness import SecureRandom
from client_worker.sampling import Sample, summed_loss
from shared.tasks.spec import TaskSpec

GRADIENT_NUMBERS_AT_ONCE = 2**25  # 128 MiB of per-example gradients; a larger sample is taken in pieces

log = structlog.get_logger()


class SecureOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Opacus's clipping and scaling; the noise is drawn in float64 from `random`, for all parameters at once."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, random: SecureRandom, lengths: GradientLengths | None = None, **settings: float
    ) -> None:
        super().__init__(optimizer, **settings)
        self._secure_random = random
        self._lengths = lengths

    def clip_and_accumulate(self) -> None:
        """Adds up clipped gradients; one that is not finite counts as zero.

        Opacus would turn it into a NaN of the whole sum, and an update that never comes would tell that the record is there.
        """
        if self._lengths is not None:
            self._lengths.add(self.grad_samples)
        before = [None if p.summed_grad is None else p.summed_grad.clone() for p in self.params]
        super().clip_and_accumulate()
        if all(bool(p.summed_grad.isfinite().all()) for p in self.params):
            return
        log.warning("a gradient is not finite and counts as zero; the learning rate may be too high")
        finite = torch.stack([samples.flatten(1).isfinite().all(1) for samples in self.grad_samples]).all(0)
        for parameter, earlier in zip(self.params, before, strict=True):
            parameter.summed_grad = earlier
            parameter.grad_sample = parameter.grad_sample.clone()  # opacus takes no gradient twice, and marks what it took
            parameter.grad_sample[~finite] = 0.0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Sets `grad` to the summed clipped gradients plus Gaussian noise of std noise_multiplier * max_grad_norm.

        On the CPU whatever the model's device, and rounded to its type after the addition: the float32 numbers next to a
        noise that was rounded before it would tell which sums it was added to.
        """
        std = self.noise_multiplier * self.max_grad_norm
        noise = torch.from_numpy(self._secure_random.gaussian(sum(p.numel() for p in self.params)) * std)
        position = 0
        for parameter in self.params:
            piece = noise[position : position + parameter.numel()].view_as(parameter)
            noised = parameter.summed_grad.to("cpu", torch.float64).view_as(parameter) + piece
            parameter.grad = noised.to(parameter)
            position += parameter.numel()


class NoisySgd:
    """A model, given on the CPU, whose backward pass keeps the gradient of each example.

    Raises SettingsError for a model whose gradients opacus cannot take one by one.
    """

    def __init__(self, spec: TaskSpec, model: nn.Module, random: SecureRandom) -> None:
        self.model = model
        self._spec = spec
        self._random = random
        require_supported_layers(spec, model)
        self._with_gradients = GradSampleModule(model, batch_first=True, loss_reduction="sum", strict=True)
        if ":" in spec.model.type:
            require_gradients_of_rows(spec, self._with_gradients)
        self._parameters = [p for p in self._with_gradients.parameters() if p.requires_grad]
        self.rows_at_once = max(1, GRADIENT_NUMBERS_AT_ONCE // sum(p.numel() for p in self._parameters))

    def stepper(
        self,
        *,
        learning_rate: float,
        clipping_norm: float,
        noise_multiplier: float,
        expected_rows: float,
        lengths: GradientLengths | None = None,
    ) -> Callable[[Sample], None]:
        """A function that does one step on a sample, also on one without rows: that is noise alone.

        `lengths` hears how long the gradients are.
        """
        optimizer = SecureOptimizer(
            torch.optim.SGD(self._parameters, lr=learning_rate),
            random=self._random,
            lengths=lengths,
            noise_multiplier=noise_multiplier,
            max_grad_norm=clipping_norm,
            expected_batch_size=expected_rows,
        )

        def step(sample: Sample) -> None:
            pieces = list(sample.pieces(self.rows_at_once))
            for number, piece in enumerate(pieces, start=1):
                optimizer.zero_grad()
                self._keep_gradients(piece)
                optimizer.signal_skip_step(number < len(pieces))
                optimizer.step()
            optimizer.zero_grad()

        return step

    def _keep_gradients(self, sample: Sample) -> None:
        """Leaves in `grad_sample` the gradient of each unit: (units, *shape of the parameter)."""
        if sample.owners is None and sample.units:
            self._backward(sample)
            return
        sums = [parameter.new_zeros((sample.units, *parameter.shape)) for parameter in self._parameters]
        for chunk in sample.chunks(self.rows_at_once):
            self._backward(chunk)
            for parameter, total in zip(self._parameters, sums, strict=True):
                total.index_add_(0, chunk.owners, parameter.grad_sample)
                parameter.grad_sample = None
        for parameter, total in zip(self._parameters, sums, strict=True):
            parameter.grad_sample = total

    def _backward(self, sample: Sample) -> None:
        with warnings.catch_warnings():
            # Features need no gradient, which the hooks of opacus mention at every backward pass.
            warnings.filterwarnings("ignore", message="Full backward hook is firing", category=UserWarning)
            summed_loss(self._spec.kind, self._with_gradients(sample.features), sample).backward()  # type: ignore[no-untyped-call]
