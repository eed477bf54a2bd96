import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from client_worker.mechanism import LocalTraining
from client_worker.training import LocalTrainer
from shared.parameters import Array, Parameters
from shared.tasks.features import Dataset
from shared.tasks.models import initial_parameters
from shared.tasks.spec import TaskSpec, parse_task
from simulator.vectorised import Job, OneAtATime, Stacked, trainer_for

LABELS = {
    "binary": "positive = [1]\nnegative = [0]",
    "multiclass": "classes = [0, 1, 2]",
    "regression": "minimum = -1\nmaximum = 1",
}
SETTINGS = LocalTraining(
    mechanism="none",
    steps=4,
    sample_rate=1.0,
    expected_rows=1.0,
    learning_rate=0.7,
    clipping_norm=0.3,
    noise_multiplier=None,
)


def task(kind: str = "multiclass", model: str = 'type = "mlp"\nhidden = [6, 5]', *, person: str = "") -> TaskSpec:
    text = f"""
name = "t"
kind = "{kind}"
{person}
[label]
column = "y"
{LABELS[kind]}
[[numeric]]
columns = "x0..x3"
minimum = -1
maximum = 1
[model]
{model}
"""
    return parse_task(text, source="task.toml")


def rows(kind: str, count: int, seed: int) -> Dataset:
    random = np.random.default_rng(seed)
    features = random.uniform(-1, 1, (count, 4)).astype(np.float32)
    labels = {
        "binary": (features[:, 0] > 0).astype(np.float32),
        "multiclass": random.integers(3, size=count),
        "regression": features[:, 1],
    }
    return Dataset(features, labels[kind])


def institutions(kind: str, *counts: int) -> list[Dataset]:
    return [rows(kind, count, seed) for seed, count in enumerate(counts)]


def jobs(base: Parameters, trainings: Sequence[Dataset], settings: LocalTraining, *, number: int = 0) -> list[Job]:
    return [
        Job(place, number, base, replace(settings, expected_rows=settings.sample_rate * len(each)))
        for place, each in enumerate(trainings)
    ]


def flat(delta: Parameters) -> Array:
    return np.concatenate([array.ravel() for array in delta.values()])


@pytest.mark.parametrize("mechanism", ["none", "dp-sgd"])
@pytest.mark.parametrize(
    ("kind", "model"),
    [
        ("binary", 'type = "logistic"'),
        ("multiclass", 'type = "logistic"'),
        ("regression", 'type = "linear"'),
        ("binary", 'type = "mlp"\nhidden = [6]'),
        ("multiclass", 'type = "mlp"\nhidden = [6, 5]'),
        ("regression", 'type = "mlp"\nhidden = [6]'),
    ],
)
def test_on_all_rows_and_without_noise_it_is_the_institutions_own_trainer(kind: str, model: str, mechanism: str) -> None:
    spec, trainings = task(kind, model), institutions(kind, 9, 40, 1, 23)
    base = {name: array + np.float32(0.1) for name, array in initial_parameters(spec, 5).items()}
    # at a rate at which nothing diverges, or rounding would be amplified with it
    noise = {"mechanism": mechanism, "noise_multiplier": 1e-12 if mechanism == "dp-sgd" else None, "learning_rate": 0.2}
    wanted = LocalTrainer(spec, device="cpu", private=mechanism == "dp-sgd")

    todo = jobs(base, trainings, replace(SETTINGS, **noise))
    found = Stacked(spec, trainings, seed=0).deltas(todo)

    for job, delta in zip(todo, found, strict=True):
        expected = wanted.local_update(base, trainings[job.place], job.settings)
        assert list(delta) == list(expected)
        np.testing.assert_allclose(flat(delta), flat(expected), rtol=0, atol=2e-6 * np.abs(flat(expected)).max())


def test_each_institution_trains_from_its_own_base() -> None:
    spec, trainings = task(), institutions("multiclass", 12, 12)
    bases = [initial_parameters(spec, seed) for seed in (1, 2)]
    together = [Job(place, 0, base, replace(SETTINGS, expected_rows=12.0)) for place, base in enumerate(bases)]

    found = Stacked(spec, trainings, seed=0).deltas(together)

    alone = [Stacked(spec, trainings, seed=0).deltas([job])[0] for job in together]
    for delta, expected in zip(found, alone, strict=True):
        np.testing.assert_allclose(flat(delta), flat(expected), atol=1e-6)


@pytest.mark.parametrize("mechanism", ["none", "dp-sgd", "update-gaussian"])
def test_samples_and_noise_do_not_depend_on_what_is_trained_beside(mechanism: str) -> None:
    spec, trainings = task(), institutions("multiclass", 50, 7, 90, 30)
    noise = {"mechanism": mechanism, "noise_multiplier": None if mechanism == "none" else 1.5, "sample_rate": 0.3}
    todo = jobs(initial_parameters(spec, 1), trainings, replace(SETTINGS, **noise))
    stacked = Stacked(spec, trainings, seed=3)

    together, apart = stacked.deltas(todo), [stacked.deltas([job])[0] for job in todo]

    for delta, expected in zip(together, apart, strict=True):
        np.testing.assert_allclose(flat(delta), flat(expected), atol=1e-5)


def test_the_next_training_draws_other_samples() -> None:
    spec, trainings = task(), institutions("multiclass", 40)
    base, settings = initial_parameters(spec, 1), replace(SETTINGS, sample_rate=0.5)
    stacked = Stacked(spec, trainings, seed=0)

    first, again, second, other_seed = (
        trainer.deltas(jobs(base, trainings, settings, number=number))[0]
        for trainer, number in ((stacked, 0), (stacked, 0), (stacked, 1), (Stacked(spec, trainings, seed=1), 0))
    )

    assert flat(first).tobytes() == flat(again).tobytes()
    assert not np.allclose(flat(first), flat(second))
    assert not np.allclose(flat(first), flat(other_seed))


def test_a_sample_is_poisson_and_its_sum_is_divided_by_what_was_expected() -> None:
    # a linear model at 0 with features 0 and labels 1: one step moves the bias by rate x 2 x drawn / expected, and nothing else
    spec = task("regression", 'type = "linear"')
    trainings = [Dataset(np.zeros((30, 4), np.float32), np.ones(30, np.float32))]
    base = initial_parameters(spec, 0)
    settings = replace(SETTINGS, steps=1, sample_rate=0.2, learning_rate=0.5, expected_rows=6.0)

    found = Stacked(spec, trainings, seed=0).deltas([Job(0, number, base, settings) for number in range(4000)])

    drawn = np.array([delta["bias"][0] for delta in found]) * 6.0
    np.testing.assert_allclose(drawn, np.rint(drawn), atol=1e-4)
    assert drawn.mean() == pytest.approx(6.0, abs=0.15)
    assert drawn.var() == pytest.approx(30 * 0.2 * 0.8, rel=0.1)
    assert not any(delta["weight"].any() for delta in found)


def test_a_step_without_rows_moves_nothing_and_one_with_noise_is_noise() -> None:
    spec, trainings = task(), institutions("multiclass", 5)
    base, rare = initial_parameters(spec, 1), replace(SETTINGS, sample_rate=1e-9, expected_rows=1.0)
    noisy = replace(rare, mechanism="dp-sgd", noise_multiplier=2.0)
    stacked = Stacked(spec, trainings, seed=0)

    (still,), (moved,) = stacked.deltas([Job(0, 0, base, rare)]), stacked.deltas([Job(0, 0, base, noisy)])

    assert not flat(still).any()
    # lr x noise multiplier x clipping norm x sqrt(steps) / expected rows = 0.7 x 2 x 0.3 x 2
    assert flat(moved).std() == pytest.approx(0.84, rel=0.25)  # of 77 numbers


def test_noise_has_the_deviation_of_dp_sgd() -> None:
    spec, trainings = task(), institutions("multiclass", 20)
    settings = replace(SETTINGS, mechanism="dp-sgd", noise_multiplier=1e4, sample_rate=0.5, expected_rows=10.0)

    found = Stacked(spec, trainings, seed=0).deltas([Job(0, n, initial_parameters(spec, 1), settings) for n in range(300)])

    noise = np.concatenate([flat(delta) for delta in found])
    assert noise.std() == pytest.approx(0.7 * 1e4 * 0.3 * math.sqrt(4) / 10.0, rel=0.015)
    assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(noise.size)
    assert abs(np.corrcoef(flat(found[0]), flat(found[1]))[0, 1]) < 0.4


def test_one_record_moves_a_step_by_the_clipping_norm_at_most() -> None:
    spec = task("regression", 'type = "linear"')
    record = Dataset(np.full((1, 4), 1e6, np.float32), np.array([-1.0], np.float32))
    settings = replace(SETTINGS, mechanism="dp-sgd", noise_multiplier=1e-12, steps=1, expected_rows=5.0)
    base = {"weight": np.ones((1, 4), np.float32), "bias": np.zeros(1, np.float32)}

    (delta,) = Stacked(spec, [record], seed=0).deltas([Job(0, 0, base, settings)])

    assert np.linalg.norm(flat(delta)) == pytest.approx(0.7 * 0.3 / 5.0, rel=1e-4)


def test_a_gradient_that_is_not_finite_counts_as_zero_under_dp_sgd() -> None:
    spec = task("regression", 'type = "linear"')
    features = np.array([[3e38, 3e38, 0, 0], [0, 0, 0, 0]], np.float32)
    settings = replace(SETTINGS, mechanism="dp-sgd", noise_multiplier=1e-12, steps=1, expected_rows=2.0)
    base = {"weight": np.full((1, 4), 2.0, np.float32), "bias": np.zeros(1, np.float32)}

    (delta,) = Stacked(spec, [Dataset(features, np.ones(2, np.float32))], seed=0).deltas([Job(0, 0, base, settings)])

    # of the other row only the bias has a gradient, 2 x (0 - 1), clipped to 0.3
    assert delta["bias"][0] == pytest.approx(0.7 * 0.3 / 2.0, rel=1e-5)
    assert np.abs(delta["weight"]).max() < 1e-9


def test_noise_on_the_whole_update_follows_its_clipping() -> None:
    spec, trainings = task(), institutions("multiclass", 20)
    base = initial_parameters(spec, 1)
    plain = replace(SETTINGS, expected_rows=20.0)
    noised = replace(plain, mechanism="update-gaussian", clipping_norm=1e-3, noise_multiplier=1e-9)
    stacked = Stacked(spec, trainings, seed=0)

    (whole,), (clipped,) = stacked.deltas([Job(0, 0, base, plain)]), stacked.deltas([Job(0, 0, base, noised)])

    assert np.linalg.norm(flat(whole)) > 1e-2
    assert np.linalg.norm(flat(clipped)) == pytest.approx(1e-3, rel=1e-5)
    np.testing.assert_allclose(flat(clipped) / 1e-3, flat(whole) / np.linalg.norm(flat(whole)), atol=1e-5)


def test_numbers_that_overflow_are_never_published() -> None:
    spec, trainings = task("regression", 'type = "linear"'), institutions("regression", 5, 5)
    wild = replace(SETTINGS, steps=60, learning_rate=1e4)

    found = Stacked(spec, trainings, seed=0).deltas(jobs(initial_parameters(spec, 0), trainings, wild))

    assert found == [{}, {}]


def test_a_model_of_ones_own_is_trained_by_the_institutions_own_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 3), nn.ReLU(), nn.Linear(3, outputs))

    module = ModuleType("own_model")
    module.__dict__["build"] = build
    monkeypatch.setitem(sys.modules, "own_model", module)
    spec, trainings = task(model='type = "own_model:build"'), institutions("multiclass", 8, 15)
    base = initial_parameters(spec, 2)
    todo = jobs(base, trainings, SETTINGS)

    trainer = trainer_for(spec, trainings, seed=0, private=False)
    found = trainer.deltas(todo)

    assert isinstance(trainer, OneAtATime)
    own = LocalTrainer(spec, device="cpu", private=False)
    for job, delta in zip(todo, found, strict=True):
        expected = own.local_update(base, trainings[job.place], job.settings)
        assert flat(delta).tobytes() == flat(expected).tobytes()


def test_persons_with_several_records_are_trained_one_institution_at_a_time() -> None:
    spec = task(person='person = "who"')
    data = rows("multiclass", 12, 0)
    persons = Dataset(data.features, data.labels, np.arange(12) // 3)
    settings = replace(SETTINGS, mechanism="dp-sgd", noise_multiplier=1.0, expected_rows=4.0)
    todo = [Job(0, 0, initial_parameters(spec, 1), settings)]

    trainers = [trainer_for(spec, [persons], seed=seed, private=True) for seed in (0, 0, 1)]
    first, again, other = (trainer.deltas(todo)[0] for trainer in trainers)

    assert all(isinstance(trainer, OneAtATime) for trainer in trainers)
    assert flat(first).tobytes() == flat(again).tobytes()
    assert not np.allclose(flat(first), flat(other))


def test_rows_that_are_parts_of_one_array_are_not_copied() -> None:
    whole = rows("multiclass", 30, 0)
    parts = [Dataset(whole.features[first:last], whole.labels[first:last]) for first, last in ((0, 10), (10, 30))]

    in_order, turned = Stacked(task(), parts, seed=0), Stacked(task(), parts[::-1], seed=0)

    assert in_order._features.data_ptr() == torch.from_numpy(whole.features).data_ptr()
    assert torch.equal(turned._features[:20], torch.from_numpy(whole.features[10:]))
