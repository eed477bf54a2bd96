"""Noise on the whole update: clip to a norm, add Gaussian noise of noise multiplier x clipping norm, once."""

import numpy as np
import pytest

from client_worker.noisy_update import noised_update
from client_worker.randomness import SecureRandom
from client_worker.training import LocalTrainer
from shared.parameters import Array
from tests.client_worker.trainings import KEY, KnownNoise, flat, local, positives, rows, task, zeros


def noised(*arrays: list[float], sigma: float = 0.0, clipping_norm: float = 1.0) -> np.ndarray:
    delta = {str(number): np.array(array, dtype=np.float32) for number, array in enumerate(arrays)}
    return flat(noised_update(delta, clipping_norm=clipping_norm, noise_multiplier=sigma, random=KnownNoise()))


def test_a_long_update_is_shortened_to_the_clipping_norm_all_arrays_together() -> None:
    assert noised([30, 0], [40], clipping_norm=5.0) == pytest.approx([3, 0, 4])


def test_a_short_update_stays_as_it_is() -> None:
    assert noised([0.3, 0], [0.4]) == pytest.approx([0.3, 0, 0.4])
    assert noised([0.0, 0.0]).tolist() == [0.0, 0.0]


def test_a_norm_that_float32_cannot_hold_is_clipped_too() -> None:
    assert noised([3e38, 0], [-3e38]) == pytest.approx([0.5**0.5, 0, -(0.5**0.5)])


def test_noise_is_the_noise_multiplier_times_the_clipping_norm_whatever_the_update_is() -> None:
    for delta in ([30.0, 0.0], [0.0, 0.0], [0.1, 0.2]):
        noise = noised(delta, sigma=2.0, clipping_norm=0.25) - noised(delta, sigma=0.0, clipping_norm=0.25)

        assert noise == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_leaves_as_noise_alone(bad: float) -> None:
    assert noised([bad, 1.0], sigma=2.0).tolist() == [2.0, 2.0]


def test_noise_is_added_in_float64_and_rounded_once() -> None:
    values = np.random.default_rng(0).normal(0, 1, 2000).astype(np.float32)
    clipped = values.astype(np.float64) / np.linalg.norm(values.astype(np.float64))
    noise = SecureRandom(KEY).gaussian(2000) * 0.01
    twice = clipped.astype(np.float32) + noise.astype(np.float32)

    found = noised_update({"w": values}, clipping_norm=1.0, noise_multiplier=0.01, random=SecureRandom(KEY))["w"]

    assert (found != twice).any()
    np.testing.assert_array_equal(found, (clipped + noise).astype(np.float32))


def institution(data: tuple[list[float], ...], **changes: float) -> np.ndarray:
    spec = task(2)
    settings = local(len(data), mechanism="update-gaussian", clipping_norm=0.5, **{"noise_multiplier": 0.0} | changes)
    delta: dict[str, Array] = LocalTrainer(spec, device="cpu", private=False, random=KnownNoise()).local_update(
        zeros(spec), positives(*data), settings
    )
    return flat(delta)


def test_all_that_an_institution_holds_moves_its_update_by_at_most_twice_the_clipping_norm() -> None:
    one = institution(([1e6, 0.0], [1e6, 0.0]), steps=5)
    other = institution(([-1e6, 3.0],), steps=2)

    assert np.linalg.norm(one) <= 0.5 * (1 + 1e-6)
    assert np.linalg.norm(one - other) == pytest.approx(1.0, rel=1e-3)


def test_a_step_is_plain_sgd_without_clipping() -> None:
    # gradients -(0.2, 0, 1)/2 and -(0, 0.4, 1)/2, their sum by the expected two rows, times a learning rate of 0.1
    assert institution(([0.2, 0.0], [0.0, 0.4]), learning_rate=0.1) == pytest.approx([0.005, 0.01, 0.05])


def test_a_learning_rate_that_explodes_publishes_noise_and_not_silence() -> None:
    spec = task(2)
    settings = local(4, mechanism="update-gaussian", noise_multiplier=2.0, steps=3, learning_rate=1e38)
    data = positives(*[[1e20, 1e20]] * 4)

    delta = LocalTrainer(spec, device="cpu", private=False, random=KnownNoise()).local_update(zeros(spec), data, settings)

    assert flat(delta).tolist() == [2.0, 2.0, 2.0]


def test_the_names_and_shapes_are_those_of_the_model() -> None:
    spec = task(3, 'type = "mlp"\nhidden = [4]')
    settings = local(9, mechanism="update-gaussian", noise_multiplier=1.0)

    delta = LocalTrainer(spec, device="cpu", private=False).local_update(zeros(spec), rows(9, 3), settings)

    assert {name: array.shape for name, array in delta.items()} == {name: array.shape for name, array in zeros(spec).items()}
    assert all(array.flags.c_contiguous for array in delta.values())
