"""What others got wrong in DP-SGD, each as a claim about what comes out of a local training.

Where noise is 1 everywhere (KnownNoise), its share of a delta can be reckoned by hand instead of estimated.
"""

import random
from typing import Any

import numpy as np
import pytest
import torch

from client_worker.mechanism import LocalTraining, charge_of, local_training
from client_worker.noisy_sgd import NoisySgd
from client_worker.randomness import SecureRandom
from client_worker.sampling import Sampler
from client_worker.training import LocalTrainer, local_update
from shared.plan import LocalPlan, PrivacyPlan
from shared.tasks.features import Dataset
from shared.tasks.models import build_model, initial_parameters
from tests.builders import a_plan
from tests.client_worker.trainings import KEY, PERCEPTRON, KnownNoise, everything, flat, local, positives, rows, task, zeros

CPU = torch.device("cpu")


def trained(data: Dataset, settings: LocalTraining, source: SecureRandom, inputs: int = 2) -> np.ndarray:
    spec = task(inputs)
    return flat(LocalTrainer(spec, device="cpu", random=source).local_update(zeros(spec), data, settings))


def a_step(data: Dataset, *, rows_at_once: int | None = None, source: SecureRandom | None = None, **changes: float) -> np.ndarray:
    """One step of a perceptron on all rows; expected rows 20."""
    spec = task(data.features.shape[1], PERCEPTRON)
    sgd = NoisySgd(spec, build_model(spec, seed=1), source or SecureRandom(KEY))
    sgd.rows_at_once = rows_at_once or sgd.rows_at_once
    before = torch.cat([p.detach().ravel().clone() for p in sgd.model.parameters()])
    values = {"learning_rate": 1.0, "clipping_norm": 0.5, "noise_multiplier": 0.0} | changes
    sgd.stepper(expected_rows=20.0, **values)(everything(data))
    return (torch.cat([p.detach().ravel() for p in sgd.model.parameters()]) - before).numpy()


def with_record(data: Dataset, size: float) -> Dataset:
    adversary = np.full((1, data.features.shape[1]), size, dtype=np.float32)
    return Dataset(np.vstack([data.features, adversary]), np.append(data.labels, np.float32(1)))


# The sum is divided by the public expectation, and by nothing that was drawn.


def test_gradients_are_divided_by_the_expected_number_of_rows_and_not_by_the_drawn_one() -> None:
    source, data = KnownNoise(), positives([1e3, 0], [1e3, 0], [1e3, 0], [1e3, 0])
    settings = local(4, sample_rate=0.5, noise_multiplier=0.0)

    norms = [float(np.linalg.norm(trained(data, settings, source))) for _ in range(12)]

    # each drawn row is clipped to norm 1; two are expected
    assert norms == pytest.approx([drawn / 2 for drawn in source.samples], rel=1e-5)
    assert len(set(source.samples)) >= 3


@pytest.mark.parametrize(("clipping_norm", "noise_multiplier", "expected"), [(0.25, 2.0, 10), (3.0, 2.0, 10), (0.25, 0.5, 40)])
def test_noise_is_the_noise_multiplier_times_the_clipping_norm_divided_by_the_expected_rows(
    clipping_norm: float, noise_multiplier: float, expected: int
) -> None:
    settings = local(expected, learning_rate=0.5, clipping_norm=clipping_norm, noise_multiplier=noise_multiplier)

    delta = trained(rows(10, 2, zero=True), settings, KnownNoise())

    # the weights of zero features have no gradient: a delta is -learning rate * noise
    assert delta[:2] == pytest.approx([-0.5 * noise_multiplier * clipping_norm / expected] * 2)


def test_noise_does_not_follow_the_true_number_of_rows() -> None:
    settings = local(10, noise_multiplier=1.0)

    few, many = (trained(rows(count, 2, zero=True), settings, KnownNoise())[:2] for count in (3, 300))

    np.testing.assert_array_equal(few, many)


# Every row's gradient is clipped, as one vector.


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6, 1e30])
def test_one_record_moves_a_step_by_at_most_the_clipping_norm(size: float) -> None:
    data = rows(20, 5)

    moved = np.linalg.norm(a_step(with_record(data, size), learning_rate=2.0) - a_step(data, learning_rate=2.0))

    assert 0 < moved <= 2.0 * 0.5 / 20 * (1 + 1e-4)


def test_all_layers_together_are_clipped_to_the_norm_and_not_each_of_them() -> None:
    # Clipped array by array, the four arrays of a perceptron would reach twice the norm.
    data = Dataset(np.full((1, 5), 100.0, dtype=np.float32), np.ones(1, dtype=np.float32))

    assert np.linalg.norm(a_step(data, clipping_norm=0.01)) == pytest.approx(0.01 / 20, rel=1e-3)


def test_a_large_gradient_does_not_silence_the_others_as_clipping_the_mean_would() -> None:
    # gradients -(1e6, 0, 1)/2 and -(0, 1, 1)/2, the last coordinate being the bias
    delta = trained(positives([1e6, 0], [0, 1]), local(2, noise_multiplier=0.0), KnownNoise())

    assert delta == pytest.approx([1 / 2, 0.5 / 2, 0.5 / 2], abs=1e-5)


def test_opposite_gradients_are_clipped_before_they_cancel() -> None:
    # Two records of norm 1e6 leave no mean to clip; taking one away must not uncover the other's 1e6.
    data = positives([1e6, 0], [-1e6, 0], [0, 0.5])
    without = positives([1e6, 0], [0, 0.5])
    settings = local(2, noise_multiplier=0.0)

    moved = np.linalg.norm(trained(data, settings, KnownNoise()) - trained(without, settings, KnownNoise()))

    assert moved <= 1 / 2 * (1 + 1e-5)


@pytest.mark.parametrize("others", [0, 1, 5])
def test_a_record_whose_gradient_is_no_number_neither_stops_the_update_nor_moves_it(others: int) -> None:
    # If it did, whoever made the model that it fails on would learn from the silence that the record is there.
    good = [[0.5, 0.5]] * others
    settings = local(5, noise_multiplier=0.0)

    with_it = trained(positives([float("inf"), 0.0], *good), settings, KnownNoise())
    without = trained(positives(*good), settings, KnownNoise()) if good else np.zeros(3)

    np.testing.assert_array_equal(with_it, without)


def test_a_gradient_that_is_no_number_spoils_no_other_piece_of_its_sample() -> None:
    data = rows(9, 3)
    spoilt = with_record(with_record(data, float("inf")), 0.5)

    pieces = a_step(spoilt, rows_at_once=4)

    np.testing.assert_allclose(pieces, a_step(with_record(data, 0.5)), atol=1e-7)


# Every step is noised and counted once, whatever it drew and however it was computed.


def planned(mechanism: str, *, sample_rate: float) -> tuple[LocalTraining, int]:
    plan = a_plan(privacy=PrivacyPlan(mechanism=mechanism), local=LocalPlan(steps=7, sample_rate=sample_rate))
    return local_training(plan, 1.0, 10), charge_of(plan, 1.0).steps


@pytest.mark.parametrize(("mechanism", "charged"), [("dp-sgd", 7), ("update-gaussian", 1)])
@pytest.mark.parametrize("sample_rate", [1e-9, 0.5, 1.0], ids=["nothing drawn", "half drawn", "everything drawn"])
def test_noise_is_drawn_as_often_as_it_is_charged_also_where_no_row_is_drawn(
    mechanism: str, charged: int, sample_rate: float
) -> None:
    settings, steps = planned(mechanism, sample_rate=sample_rate)
    source = KnownNoise()

    trained(rows(10, 2), settings, source)

    assert source.normals == [3] * charged  # for all parameters at once
    assert steps == charged
    assert len(source.samples) == 7


@pytest.mark.parametrize("rows_at_once", [1, 7, 24])
def test_a_sample_taken_in_pieces_is_one_step_with_one_noise(rows_at_once: int) -> None:
    data, source = rows(25, 3), KnownNoise()

    pieces = a_step(data, rows_at_once=rows_at_once, source=source, noise_multiplier=1.0)

    np.testing.assert_allclose(pieces, a_step(data, source=KnownNoise(), noise_multiplier=1.0), atol=1e-7)
    assert source.normals == [21]


# What is drawn is a Poisson sample: not a batch of fixed size, and not a walk through shuffled rows.


def inclusions(rate: float, count: int, draws: int) -> np.ndarray:
    """(draws, rows): 1 where a row was drawn; rows are told apart by their feature."""
    data = Dataset(np.arange(count, dtype=np.float32)[:, None], np.zeros(count, dtype=np.float32))
    sampler, drawn = Sampler(data, rate, random=SecureRandom(KEY), device=CPU), np.zeros((draws, count))
    for each in drawn:
        each[sampler.draw().features[:, 0].to(torch.int64).numpy()] += 1
    return drawn


def test_each_row_is_in_each_sample_with_the_charged_rate_independently_of_all_else() -> None:
    rate, count, draws = 0.2, 50, 4000
    drawn = inclusions(rate, count, draws)

    assert drawn.max() == 1  # nothing twice
    # binomial: five standard deviations
    assert np.abs(drawn.sum(0) - draws * rate).max() < 5 * (draws * rate * (1 - rate)) ** 0.5
    assert drawn.sum(1).var() == pytest.approx(count * rate * (1 - rate), rel=0.1)
    # two rows of one sample, and one row of two samples: rate^2 of all pairs, within five standard deviations
    both = 5 * (rate**2 * (1 - rate**2) / draws) ** 0.5
    assert abs((drawn[:, 0] * drawn[:, 1]).mean() - rate**2) < both
    assert abs((drawn[1:, 0] * drawn[:-1, 0]).mean() - rate**2) < both


@pytest.mark.parametrize("mechanism", ["dp-sgd", "none"])
def test_a_training_draws_at_the_rate_that_is_charged(mechanism: str) -> None:
    plan = a_plan(privacy=PrivacyPlan(mechanism=mechanism), local=LocalPlan(steps=200, sample_rate=0.1))
    source = KnownNoise()

    trained(rows(50, 2), local_training(plan, None if mechanism == "none" else 1.0, 50), source)

    # 10,000 chances of 0.1; five standard deviations
    assert sum(source.samples) == pytest.approx(10_000 * charge_of(plan, 1.0).sample_rate, abs=5 * (10_000 * 0.1 * 0.9) ** 0.5)


# Nothing that can be guessed has a say.


def refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("a generator that can be guessed was asked")


@pytest.mark.parametrize("mechanism", ["dp-sgd", "update-gaussian", "none"])
def test_no_generator_of_torch_or_numpy_is_asked(mechanism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, settings = task(5), local(20, mechanism=mechanism, steps=3, sample_rate=0.5, noise_multiplier=1.0)
    if mechanism == "none":
        settings = local(20, steps=3, sample_rate=0.5)
    trainer, data = LocalTrainer(spec, device="cpu"), rows(20, 5)
    for name in ("normal", "randn", "rand", "randperm", "bernoulli", "multinomial", "randn_like"):
        monkeypatch.setattr(torch, name, refuse)
    monkeypatch.setattr(torch.Tensor, "normal_", refuse)
    monkeypatch.setattr(np.random, "default_rng", refuse)
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002  # it is what is watched

    trainer.local_update(zeros(spec), data, settings)

    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002


@pytest.mark.parametrize("mechanism", ["dp-sgd", "update-gaussian"])
def test_seeding_torch_numpy_and_python_repeats_nothing(mechanism: str) -> None:
    deltas = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        random.seed(0)
        settings = local(20, mechanism=mechanism, noise_multiplier=1.0)
        deltas.append(flat(local_update(task(50), zeros(task(50)), rows(20, 50), settings)))

    assert not np.isclose(*deltas).any()


def test_the_same_trainer_draws_new_noise_for_every_update() -> None:
    trainer, settings = LocalTrainer(task(50), device="cpu"), local(20, noise_multiplier=1.0)

    first, second = (flat(trainer.local_update(zeros(task(50)), rows(20, 50), settings)) for _ in range(2))

    assert not np.isclose(first, second).any()


# Nothing but parameters leaves.


def test_an_update_holds_the_parameters_of_the_model_and_nothing_else() -> None:
    spec = task(3, PERCEPTRON)
    base = initial_parameters(spec, 0)
    wanted = {name: (array.shape, np.dtype(np.float32)) for name, array in base.items()}
    noisy = {"noise_multiplier": 1.0}

    for settings in (local(20), local(20, **noisy), local(20, mechanism="update-gaussian", **noisy)):
        delta = local_update(spec, base, rows(20, 3), settings)

        assert {name: (array.shape, array.dtype) for name, array in delta.items()} == wanted
