import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from client_worker.noisy_sgd import NoisySgd
from client_worker.randomness import SecureRandom
from client_worker.sampling import Sample
from client_worker.training import LocalTrainer, LocalTraining, TrainingStoppedError, choose_device, local_update
from shared.errors import FederationError, SettingsError
from shared.tasks.features import Dataset
from shared.tasks.models import build_model, initial_parameters
from shared.tasks.spec import TaskSpec, parse_task

KEY = bytes(range(32))


def task(inputs: int, model: str = 'type = "logistic"') -> TaskSpec:
    text = f"""
name = "t"
kind = "binary"
[label]
column = "y"
positive = [1]
[[numeric]]
columns = "x1..x{inputs}"
minimum = -1
maximum = 1
[model]
{model}
"""
    return parse_task(text, source="task.toml")


def local(rows: float, **changes: float | str | None) -> LocalTraining:
    """One step on every row without noise; `rows` is the public number of examples."""
    values = {"steps": 1, "sample_rate": 1.0, "learning_rate": 1.0, "clipping_norm": 1.0, "noise_multiplier": None} | changes
    values.setdefault("mechanism", "none" if values["noise_multiplier"] is None else "dp-sgd")
    return LocalTraining(expected_rows=values["sample_rate"] * rows, **values)  # type: ignore[arg-type,operator]


def rows(count: int, inputs: int, *, zero: bool = False) -> Dataset:
    rng = np.random.default_rng(3)
    features = np.zeros((count, inputs)) if zero else rng.uniform(-1, 1, (count, inputs))
    return Dataset(features.astype(np.float32), (rng.random(count) < 0.4).astype(np.float32))


def everything(rows: Dataset) -> Sample:
    return Sample(torch.from_numpy(rows.features), torch.from_numpy(rows.labels), len(rows))


def flat(delta: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.ravel() for array in delta.values()])


def test_a_step_without_noise_is_the_gradient_by_hand() -> None:
    data = Dataset(np.array([[1, 0], [0, -1]], dtype=np.float32), np.array([1, 0], dtype=np.float32))

    delta = local_update(task(2), initial_parameters(task(2), 0), data, local(2, learning_rate=4.0))

    # at zero both probabilities are 1/2: the mean of (p - y) x is (-1/2 * (1, 0) + 1/2 * (0, -1)) / 2
    np.testing.assert_allclose(delta["weight"], [[1.0, 1.0]], atol=1e-6)
    np.testing.assert_allclose(delta["bias"], [0.0], atol=1e-6)


def test_the_delta_is_trained_minus_base() -> None:
    base = {"weight": np.full((1, 2), 3.0, dtype=np.float32), "bias": np.zeros(1, dtype=np.float32)}
    data = Dataset(np.array([[1, 0]] * 4, dtype=np.float32), np.ones(4, dtype=np.float32))

    delta = local_update(task(2), base, data, local(4, steps=3))

    assert 0 < delta["weight"][0, 0] < 1
    assert delta["weight"][0, 1] == 0
    assert base["weight"].tolist() == [[3.0, 3.0]]


def test_noise_has_the_standard_deviation_of_the_mechanism() -> None:
    # Zero features leave every weight but the bias without a gradient, so that what it gets is noise alone.
    inputs, steps, noise, clipping_norm, learning_rate, rate, count = 100_000, 4, 1.5, 0.7, 0.3, 0.5, 40
    settings = local(
        count, steps=steps, sample_rate=rate, learning_rate=learning_rate, clipping_norm=clipping_norm, noise_multiplier=noise
    )
    trainer = LocalTrainer(task(inputs), device="cpu", random=SecureRandom(KEY))
    base, data = initial_parameters(task(inputs), 0), rows(count, inputs, zero=True)

    first, second = (trainer.local_update(base, data, settings)["weight"].ravel() for _ in range(2))

    expected = learning_rate * noise * clipping_norm * steps**0.5 / (rate * count)
    assert first.std() == pytest.approx(expected, rel=0.01)
    assert stats.kstest(first / expected, "norm").pvalue > 1e-3
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.02


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e6])
def test_one_record_moves_a_step_by_at_most_the_clipping_norm(size: float) -> None:
    spec, clipping_norm, learning_rate = task(5, 'type = "mlp"\nhidden = [4]'), 0.5, 2.0
    base, data = initial_parameters(spec, 1), rows(20, 5)
    adversary = Dataset(
        np.vstack([data.features, np.full((1, 5), size, dtype=np.float32)]), np.append(data.labels, np.float32(1))
    )
    settings = {"learning_rate": learning_rate, "clipping_norm": clipping_norm, "noise_multiplier": 0.0}

    def step(rows: Dataset) -> np.ndarray:
        # The same denominator for both: the mechanism divides by the expected sample size, which is public.
        sgd = NoisySgd(spec, build_model(spec, seed=1), SecureRandom(KEY))
        sgd.stepper(expected_rows=20.0, **settings)(everything(rows))
        return np.concatenate([p.detach().numpy().ravel() for p in sgd.model.parameters()])

    moved = np.linalg.norm(step(adversary) - step(data))

    assert 0 < moved <= learning_rate * clipping_norm / 20 * (1 + 1e-4)
    assert np.linalg.norm(step(data) - flat(base)) > 0


def test_the_sum_is_divided_by_the_expected_sample_size_and_not_by_the_drawn_one() -> None:
    # One row whose gradient is clipped to norm 1, drawn or not; expected rows 1/2.
    data = Dataset(np.array([[1e3, 0]], dtype=np.float32), np.ones(1, dtype=np.float32))
    trainer = LocalTrainer(task(2), device="cpu", random=SecureRandom(KEY))
    settings = local(1, sample_rate=0.5, noise_multiplier=0.0)
    base = initial_parameters(task(2), 0)

    norms = {round(float(np.linalg.norm(flat(trainer.local_update(base, data, settings)))), 3) for _ in range(20)}

    assert norms == {0.0, 2.0}


def test_a_step_that_draws_no_row_still_adds_noise() -> None:
    inputs = 20_000
    trainer = LocalTrainer(task(inputs), device="cpu", random=SecureRandom(KEY))

    delta = trainer.local_update(
        initial_parameters(task(inputs), 0), rows(10, inputs), local(10, steps=9, sample_rate=1e-9, noise_multiplier=2.0)
    )

    # nine steps of noise 2 divided by the expected 1e-8 rows
    assert flat(delta).std() == pytest.approx(3 * 2.0 / 1e-8, rel=0.03)


def test_a_large_sample_taken_in_pieces_gives_the_same_step() -> None:
    spec, data = task(3, 'type = "mlp"\nhidden = [2]'), rows(25, 3)

    def step(rows_at_once: int) -> np.ndarray:
        sgd = NoisySgd(spec, build_model(spec, seed=0), SecureRandom(KEY))
        sgd.rows_at_once = rows_at_once
        sgd.stepper(learning_rate=1.0, clipping_norm=0.2, noise_multiplier=1.0, expected_rows=25.0)(everything(data))
        return np.concatenate([p.detach().numpy().ravel() for p in sgd.model.parameters()])

    np.testing.assert_allclose(step(7), step(1000), atol=1e-6)


def test_every_update_draws_new_noise() -> None:
    trainer = LocalTrainer(task(50), device="cpu")
    base, data, settings = initial_parameters(task(50), 0), rows(20, 50), local(20, noise_multiplier=1.0)

    assert not np.array_equal(flat(trainer.local_update(base, data, settings)), flat(trainer.local_update(base, data, settings)))


def test_torchs_own_generator_has_no_say_in_the_noise() -> None:
    base, data, settings = initial_parameters(task(50), 0), rows(20, 50), local(20, noise_multiplier=1.0)
    deltas = []
    for _ in range(2):
        torch.manual_seed(0)
        deltas.append(flat(local_update(task(50), base, data, settings)))

    assert not np.array_equal(*deltas)


def test_only_parameters_leave() -> None:
    spec = task(3, f'type = "{__name__}:grouped"')

    delta = local_update(spec, initial_parameters(spec, 0), rows(20, 3), local(20, noise_multiplier=1.0))

    assert list(delta) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in delta.values())


def grouped(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), nn.GroupNorm(2, 4), nn.Linear(4, outputs))


def normalised(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, outputs))


def test_batch_normalisation_without_buffers_is_refused_too() -> None:
    with pytest.raises(SettingsError, match=r"'1' \(BatchNorm1d\) mixes rows; use torch.nn.GroupNorm"):
        LocalTrainer(task(3, f'type = "{__name__}:normalised"'), device="cpu")


def test_a_learning_rate_that_explodes_is_told_and_nothing_comes_out() -> None:
    data = Dataset(np.full((4, 1), 1e20, dtype=np.float32), np.array([0, 1, 1, 1], dtype=np.float32))

    with pytest.raises(FederationError, match="lower the learning rate"):
        local_update(task(1), initial_parameters(task(1), 0), data, local(4, steps=3, learning_rate=1e30))


def test_a_request_to_stop_is_heard_between_steps() -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(TrainingStoppedError):
        local_update(task(2), initial_parameters(task(2), 0), rows(5, 2), local(5, steps=10), should_stop=should_stop)
    assert len(asked) == 3


def test_training_without_noise_separates_what_can_be_separated() -> None:
    features = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    data = Dataset(features, (features[:, 0] > 0.2).astype(np.float32))

    delta = local_update(task(1), initial_parameters(task(1), 0), data, local(40, steps=2000, learning_rate=5.0))

    assert -delta["bias"][0] / delta["weight"][0, 0] == pytest.approx(0.2, abs=0.03)


def test_a_device_that_is_not_there_is_a_setting_to_correct() -> None:
    with pytest.raises(SettingsError, match="use auto or cpu"):
        choose_device("abacus")


def test_training_without_noise_does_not_load_opacus() -> None:
    code = "import client_worker.training, sys; print('opacus' in sys.modules)"

    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert answer.stdout.strip() == "False"
