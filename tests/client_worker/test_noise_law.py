"""The law of the noise, with fixed keys: a test that passes once passes for ever."""

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats
from torch import nn

from client_worker.mechanism import local_training, statement_of
from client_worker.noisy_sgd import SecureOptimizer
from client_worker.randomness import SecureRandom
from client_worker.training import LocalTrainer
from shared.noise import noise_std
from shared.plan import LocalPlan, PrivacyPlan
from tests.builders import a_plan
from tests.client_worker.trainings import KEY, flat, local, rows, task, zeros

SMALLEST_P = 1e-3
WIDE = 100_000


def two_updates(mechanism: str, **changes: float) -> tuple[np.ndarray, np.ndarray, float]:
    """What two updates add to weights without a gradient, and the standard deviation that is stated in public figures."""
    plan = a_plan(
        privacy=PrivacyPlan(mechanism=mechanism, clipping_norm=0.7),
        local=LocalPlan(**({"steps": 4, "sample_rate": 0.5, "learning_rate": 0.3} | changes)),
    )
    spec, count = task(WIDE), 40
    trainer = LocalTrainer(spec, device="cpu", random=SecureRandom(KEY), private=mechanism == "dp-sgd")
    settings = local_training(plan, 1.5, count)
    # Zero features leave every weight without a gradient, so that what it gets is noise alone.
    first, second = (trainer.local_update(zeros(spec), rows(count, WIDE, zero=True), settings)["weight"][0] for _ in range(2))
    stated = noise_std(statement_of(plan, 1.5, epsilon_spent=1.0, unit="record"), plan, count)
    return first, second, stated or 0.0


@pytest.mark.parametrize(
    ("mechanism", "expected"),
    # learning rate * noise multiplier * clipping norm * sqrt(steps) / (sample rate * examples); noise multiplier * clipping norm
    [("dp-sgd", 0.3 * 1.5 * 0.7 * 2 / 20), ("update-gaussian", 1.5 * 0.7)],
)
def test_an_updates_noise_is_gaussian_and_as_large_as_stated_and_new_each_time(mechanism: str, expected: float) -> None:
    first, second, stated = two_updates(mechanism)

    assert stated == pytest.approx(expected)
    for noise in (first, second):
        assert noise.std() == pytest.approx(expected, rel=0.01)
        assert stats.kstest(noise / expected, "norm").pvalue > SMALLEST_P
        assert abs(np.corrcoef(noise[:-1], noise[1:])[0, 1]) < 0.015
    # five standard errors of a correlation of independent numbers
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(WIDE)


def test_a_steps_noise_does_not_depend_on_what_was_drawn() -> None:
    _, _, few = two_updates("dp-sgd", sample_rate=0.05)
    noise, _, _ = two_updates("dp-sgd", sample_rate=0.05)

    # expected rows 2; a division by the drawn ones, of which there are 0 to 6, would be far off
    assert few == pytest.approx(0.3 * 1.5 * 0.7 * 2 / 2)
    assert noise.std() == pytest.approx(few, rel=0.01)


def test_steps_that_draw_no_row_still_add_noise() -> None:
    spec = task(20_000)
    trainer = LocalTrainer(spec, device="cpu", random=SecureRandom(KEY))

    delta = trainer.local_update(zeros(spec), rows(10, 20_000), local(10, steps=9, sample_rate=1e-9, noise_multiplier=2.0))

    # nine steps of noise 2 divided by the expected 1e-8 rows
    assert flat(delta).std() == pytest.approx(3 * 2.0 / 1e-8, rel=0.03)


def test_a_number_of_noise_is_half_the_sum_of_four_by_box_and_muller() -> None:
    stream = Cipher(algorithms.ChaCha20(KEY, bytes(16)), mode=None).encryptor().update(bytes(32))
    words = [int.from_bytes(stream[place : place + 8], "little") for place in range(0, 32, 8)]
    first, second, third, fourth = ((word // 2**11 + 1) / 2**53 for word in words)
    pairs = [(first, third), (second, fourth)]
    draws = [math.sqrt(-2 * math.log(u)) * turn(2 * math.pi * v) for u, v in pairs for turn in (math.cos, math.sin)]

    assert SecureRandom(KEY).gaussian(1)[0] == pytest.approx(sum(draws) / 2, rel=1e-12)


def noised(sums: torch.Tensor, std: float) -> torch.Tensor:
    """What opacus's step makes of summed gradients, before it divides them."""
    weight = nn.Parameter(torch.zeros_like(sums))
    optimizer = SecureOptimizer(
        torch.optim.SGD([weight], lr=1.0),
        random=SecureRandom(KEY),
        noise_multiplier=std,
        max_grad_norm=1.0,
        expected_batch_size=1.0,
    )
    weight.summed_grad = sums  # type: ignore[attr-defined]  # where opacus keeps them
    optimizer.add_noise()
    assert weight.grad is not None
    return weight.grad


def test_noise_is_added_before_it_is_rounded() -> None:
    count, std = 2000, 1.5
    sums = torch.from_numpy(np.random.default_rng(0).normal(0, 3, count).astype(np.float32))
    noise = SecureRandom(KEY).gaussian(count) * std
    once = (sums.numpy().astype(np.float64) + noise).astype(np.float32)
    twice = sums.numpy() + noise.astype(np.float32)

    found = noised(sums, std).numpy()

    assert (once != twice).sum() > count / 20
    np.testing.assert_array_equal(found, once)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("mechanism", ["dp-sgd", "update-gaussian"])
def test_a_gpu_gets_the_noise_that_a_cpu_gets(mechanism: str) -> None:
    spec, data = task(2000), rows(40, 2000)
    settings = local(40, mechanism=mechanism, steps=3, sample_rate=0.5, noise_multiplier=100.0)

    one, other = (
        flat(LocalTrainer(spec, device=device, random=SecureRandom(KEY)).local_update(zeros(spec), data, settings))
        for device in ("cpu", "cuda")
    )

    assert one.std() > 1
    np.testing.assert_allclose(one, other, atol=1e-4)
