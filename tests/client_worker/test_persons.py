"""Where the task names a column of persons, the unit of privacy is a person with all its rows."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client_worker.course import Course
from client_worker.local_data import open_data
from client_worker.noisy_sgd import NoisySgd
from client_worker.randomness import SecureRandom
from client_worker.sampling import Sample, Sampler
from client_worker.settings import ClientSettings
from client_worker.training import LocalTrainer
from shared.settings import load
from shared.tasks.features import Dataset
from shared.tasks.models import build_model
from tests.client_worker.test_cli import SETTINGS, TASK
from tests.client_worker.trainings import KEY, PERCEPTRON, KnownNoise, flat, local, positives, rows, task, zeros

CPU = torch.device("cpu")


def trained(data: Dataset, units: float, source: SecureRandom | None = None, **changes: float | str | None) -> np.ndarray:
    spec = task(data.features.shape[1], person="id")
    trainer = LocalTrainer(spec, device="cpu", random=source or SecureRandom(KEY))
    return flat(trainer.local_update(zeros(spec), data, local(units, **changes)))


def of_persons(data: Dataset, persons: list[int]) -> Dataset:
    return Dataset(data.features, data.labels, np.array(persons))


def joined(first: Dataset, second: Dataset) -> Dataset:
    assert first.persons is not None
    assert second.persons is not None
    arrays = zip((first.features, first.labels, first.persons), (second.features, second.labels, second.persons), strict=True)
    return Dataset(*(np.concatenate(pair) for pair in arrays))


@pytest.mark.parametrize("size", [0.3, 1e6])
def test_a_person_with_fifty_rows_moves_a_step_by_at_most_the_clipping_norm(size: float) -> None:
    others = of_persons(rows(20, 3), [number // 2 for number in range(20)])
    person = positives(*[[size, -size, size]] * 50, persons=[10] * 50)
    settings = {"clipping_norm": 0.5, "learning_rate": 2.0, "noise_multiplier": 0.0}

    moved = np.linalg.norm(trained(joined(others, person), 10, **settings) - trained(others, 10, **settings))

    # a tenth of the persons is expected at each step; fifty rows clipped one by one would move it fifty times as far
    assert 0.5 * 2.0 * 0.5 / 10 < moved <= 2.0 * 0.5 / 10 * (1 + 1e-5)


def test_a_persons_gradient_is_the_mean_over_its_rows_clipped_as_one() -> None:
    # gradients -(3, 0, 1)/2 and -(0, 2, 1)/2 of one person, mean (3, 2, 2)/4 of norm sqrt(17)/4; another has -(0, 0, 1)/2
    data = positives([3, 0], [0, 0], [0, 2], persons=[0, 1, 0])

    whole = trained(data, 2, noise_multiplier=0.0, clipping_norm=10.0)
    clipped = trained(data, 2, noise_multiplier=0.0, clipping_norm=0.6)

    assert whole == pytest.approx(np.array([3 / 4, 2 / 4, 2 / 4 + 1 / 2]) / 2)
    assert clipped == pytest.approx((0.6 * np.array([3, 2, 2]) / 17**0.5 + [0, 0, 1 / 2]) / 2, abs=1e-6)


@pytest.mark.parametrize("mechanism", ["none", "update-gaussian"])
def test_without_noise_on_each_step_a_persons_rows_are_averaged_too(mechanism: str) -> None:
    sigma = None if mechanism == "none" else 0.0
    data = positives([3, 0], [0, 0], [0, 2], persons=[0, 1, 0])

    delta = trained(data, 2, mechanism=mechanism, noise_multiplier=sigma, clipping_norm=10.0)

    assert delta == pytest.approx(np.array([3 / 4, 2 / 4, 2 / 4 + 1 / 2]) / 2)


def test_rows_that_are_there_twice_change_nothing() -> None:
    once = of_persons(rows(6, 3), [0, 0, 1, 2, 2, 2])
    settings = {"noise_multiplier": 1.0, "steps": 3, "sample_rate": 0.5}

    np.testing.assert_allclose(trained(joined(once, once), 3, **settings), trained(once, 3, **settings), atol=1e-6)


def test_noise_is_that_of_the_public_number_of_persons() -> None:
    data = of_persons(rows(30, 2, zero=True), [number // 10 for number in range(30)])

    delta = trained(data, 3, KnownNoise(), sample_rate=0.5, noise_multiplier=2.0)

    assert delta[:2] == pytest.approx([-2.0 / (0.5 * 3)] * 2)


def test_all_rows_of_a_person_are_drawn_or_none_and_each_person_with_the_sample_rate() -> None:
    persons, draws, rate = np.array([2, 0, 1, 2, 2, 0]), 4000, 0.3
    data = Dataset(np.arange(6, dtype=np.float32)[:, None], np.zeros(6, dtype=np.float32), persons)
    sampler, drawn = Sampler(data, rate, random=SecureRandom(KEY), device=CPU), np.zeros((draws, 6))
    for each in drawn:
        sample = sampler.draw()
        which = sample.features[:, 0].to(torch.int64).numpy()
        each[which] += 1
        assert sample.units == len(set(persons[which]))
        assert sample.owners is not None
        assert sample.weights is not None
        # numbered from 0 in ascending order, and weighed 1 / rows of that person
        assert sample.owners.tolist() == sorted(sample.owners.tolist())
        assert set(sample.owners.tolist()) == set(range(sample.units))
        assert np.bincount(sample.owners, weights=sample.weights, minlength=sample.units) == pytest.approx([1.0] * sample.units)

    assert drawn.max() == 1
    for same in ([0, 3, 4], [1, 5]):
        assert (drawn[:, same] == drawn[:, same[:1]]).all()
    # binomial within five standard deviations; two persons together with rate^2
    assert np.abs(drawn.mean(0) - rate).max() < 5 * (rate * (1 - rate) / draws) ** 0.5
    assert abs((drawn[:, 0] * drawn[:, 1]).mean() - rate**2) < 5 * (rate**2 * (1 - rate**2) / draws) ** 0.5


@pytest.mark.parametrize("rows_at_once", [1, 3, 11, 1000])
def test_pieces_that_cut_a_person_in_two_give_the_same_step(rows_at_once: int) -> None:
    data = of_persons(rows(25, 3), [0] * 12 + [1] + [2, 3, 4, 5] * 3)
    spec = task(3, PERCEPTRON, person="id")
    trainer = LocalTrainer(spec, device="cpu", random=KnownNoise())
    trainer._noisy.rows_at_once = rows_at_once

    found = flat(trainer.local_update(zeros(spec), data, local(6, clipping_norm=0.2, noise_multiplier=1.0)))

    expected = LocalTrainer(spec, device="cpu", random=KnownNoise())
    by_one = flat(expected.local_update(zeros(spec), data, local(6, clipping_norm=0.2, noise_multiplier=1.0)))
    np.testing.assert_allclose(found, by_one, atol=1e-6)


def test_a_large_person_is_clipped_once_and_not_once_for_each_piece() -> None:
    spec, sgd_norm = task(2, person="id"), 0.5
    sgd = NoisySgd(spec, build_model(spec, seed=0), KnownNoise())
    sgd.rows_at_once = 4
    person = Sample(torch.full((10, 2), 1e6), torch.ones(10), 1, torch.zeros(10, dtype=torch.int64), torch.full((10,), 0.1))

    sgd.stepper(learning_rate=1.0, clipping_norm=sgd_norm, noise_multiplier=0.0, expected_rows=1.0)(person)

    moved = torch.cat([p.detach().ravel() for p in sgd.model.parameters()])
    assert float(moved.norm()) == pytest.approx(sgd_norm, rel=1e-4)


def test_rows_that_do_not_say_whose_they_are_are_not_trained_on() -> None:
    with pytest.raises(ValueError, match="does not say whose its rows are"):
        trained(rows(5, 2), 5)


def test_one_row_each_with_persons_is_training_by_records() -> None:
    data, settings = rows(12, 3), {"noise_multiplier": 1.0, "steps": 4, "sample_rate": 0.5}
    plain = LocalTrainer(task(3), device="cpu", random=SecureRandom(KEY))

    by_records = flat(plain.local_update(zeros(task(3)), data, local(12, **settings)))

    np.testing.assert_allclose(trained(of_persons(data, list(range(12))), 12, **settings), by_records, atol=1e-6)


def test_an_institution_whose_task_names_persons_states_them_as_its_unit(tmp_path: Path) -> None:
    for name, text in {
        "task.toml": TASK.replace('kind = "binary"', 'kind = "binary"\nperson = "id"'),
        "training.csv": "a,id,y\n10,x,1\n0,y,0\n3,x,1\n",
    }.items():
        (tmp_path / name).write_text(text)

    data = open_data(load(ClientSettings, SETTINGS, path=tmp_path / "client.toml"))

    assert (data.unit, data.units) == ("person", 2)
    delta = data.train({"weight": np.zeros((1, 1)), "bias": np.zeros(1)}, local(2, noise_multiplier=1.0), Course())
    assert np.isfinite(flat(delta)).all()
