import subprocess
import sys

import numpy as np
import pytest
from torch import nn

from client_worker.course import Course
from client_worker.training import LocalTrainer, TrainingStoppedError, choose_device, local_update
from shared.errors import FederationError, SettingsError
from shared.tasks.features import Dataset
from shared.tasks.models import initial_parameters
from tests.client_worker.trainings import flat, local, rows, task


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


def test_only_parameters_leave() -> None:
    spec = task(3, f'type = "{__name__}:grouped"')

    delta = local_update(spec, initial_parameters(spec, 0), rows(20, 3), local(20, noise_multiplier=1.0))

    assert list(delta) == ["0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in delta.values())


def grouped(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), nn.GroupNorm(2, 4), nn.Linear(4, outputs))


@pytest.mark.parametrize(
    ("mechanism", "noise_multiplier"), [("dp-sgd", None), ("update-gaussian", None), ("none", 1.0)], ids=lambda value: str(value)
)
def test_a_missing_noise_multiplier_never_passes_for_training_without_noise(
    mechanism: str, noise_multiplier: float | None
) -> None:
    settings = local(5, mechanism=mechanism, noise_multiplier=noise_multiplier)

    with pytest.raises(ValueError, match="does not go with the noise multiplier"):
        local_update(task(2), initial_parameters(task(2), 0), rows(5, 2), settings)


def test_nothing_is_left_over_from_one_update_to_the_next() -> None:
    # No momentum, no statistics: the same base, rows and plan give the same bits, whatever was trained in between.
    spec, data = task(3, 'type = "mlp"\nhidden = [4]'), rows(20, 3)
    trainer = LocalTrainer(spec, device="cpu", private=True)
    base, other = initial_parameters(spec, 0), initial_parameters(spec, 1)
    first, _, again = (trainer.local_update(start, data, local(20, steps=5)) for start in (base, other, base))
    noisy = local(20, steps=5, noise_multiplier=0.0)
    first_clipped, _, again_clipped = (trainer.local_update(start, data, noisy) for start in (base, other, base))

    np.testing.assert_array_equal(flat(first), flat(again))
    np.testing.assert_array_equal(flat(first_clipped), flat(again_clipped))


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
        local_update(task(2), initial_parameters(task(2), 0), rows(5, 2), local(5, steps=10), Course(should_stop))
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
