import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import SettingsError
from shared.tasks.models import build_model, initial_parameters, load_parameters, to_parameters
from shared.tasks.spec import TaskSpec, parse_task


def task(model: str, kind: str = 'kind = "multiclass"', label: str = "classes = [0, 1, 2]") -> TaskSpec:
    text = f"""
name = "t"
{kind}
[label]
column = "y"
{label}
[[numeric]]
columns = "x0..x3"
minimum = 0
maximum = 1
[model]
{model}
"""
    return parse_task(text, source="task.toml")


def normalised(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.BatchNorm1d(6), nn.Linear(6, outputs))


def grouped(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.GroupNorm(2, 6), nn.Linear(6, outputs))


def no_module(inputs: int, outputs: int) -> int:
    return inputs + outputs


def test_a_logistic_model_begins_at_zero() -> None:
    parameters = initial_parameters(task('type = "logistic"'), 3)

    assert {name: array.shape for name, array in parameters.items()} == {"weight": (3, 4), "bias": (3,)}
    assert not any(array.any() for array in parameters.values())


def test_hidden_sizes_make_the_layers_of_a_perceptron() -> None:
    parameters = initial_parameters(task('type = "mlp"\nhidden = [5, 2]'), 0)

    assert [array.shape for array in parameters.values()] == [(5, 4), (5,), (2, 5), (2,), (3, 2), (3,)]


def test_the_seed_alone_decides_the_initial_parameters() -> None:
    spec = task('type = "mlp"\nhidden = [5]')
    torch.manual_seed(1)
    first = initial_parameters(spec, 7)
    torch.manual_seed(2)
    again, other = initial_parameters(spec, 7), initial_parameters(spec, 8)

    np.testing.assert_array_equal(first["0.weight"], again["0.weight"])
    assert not np.array_equal(first["0.weight"], other["0.weight"])


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_model(task('type = "mlp"\nhidden = [5]'), seed=9)

    assert torch.rand(1) == expected


def test_parameters_come_back_as_they_were_loaded() -> None:
    spec = task('type = "mlp"\nhidden = [5]')
    model, wanted = build_model(spec, seed=0), initial_parameters(spec, 1)
    load_parameters(model, wanted)

    found = to_parameters(model)

    assert list(found) == list(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == np.float32
        assert found[name].flags.c_contiguous


def test_copied_parameters_do_not_change_with_the_model() -> None:
    model = build_model(task('type = "logistic"'), seed=0)
    before = to_parameters(model)
    load_parameters(model, {name: array + 1 for name, array in before.items()})

    assert not before["weight"].any()


def test_a_function_of_ones_own_makes_the_model() -> None:
    parameters = initial_parameters(task(f'type = "{__name__}:grouped"'), 0)

    assert parameters["2.weight"].shape == (3, 6)


def test_batch_normalisation_is_refused_with_its_remedy() -> None:
    with pytest.raises(SettingsError, match=r"buffer '1\.running_mean'.*GroupNorm"):
        build_model(task(f'type = "{__name__}:normalised"'), seed=0)


def mixing(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6), nn.BatchNorm1d(6, track_running_stats=False), nn.Linear(6, outputs))


def test_batch_normalisation_without_running_statistics_is_refused_too() -> None:
    with pytest.raises(SettingsError, match=r"layer '1' \(BatchNorm1d\) mixes rows; use torch.nn.GroupNorm"):
        build_model(task(f'type = "{__name__}:mixing"'), seed=0)


def trunk_and_head(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 6).requires_grad_(False), nn.Linear(6, outputs))


def test_frozen_parameters_do_not_travel_and_are_the_same_on_every_machine() -> None:
    spec = task(f'type = "{__name__}:trunk_and_head"')
    model, again = build_model(spec, seed=0), build_model(spec, seed=0)
    parameters = initial_parameters(spec, 5)
    load_parameters(model, parameters)

    assert list(parameters) == ["1.weight", "1.bias"]
    assert torch.equal(model[0].weight, again[0].weight)  # type: ignore[index]  # a Sequential
    np.testing.assert_array_equal(to_parameters(model)["1.weight"], parameters["1.weight"])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module_here:build", "PYTHONPATH"),
        ("json:no_such_function", "has no function 'no_such_function'"),
        (f"{__name__}:no_module", "it must return a torch.nn.Module"),
    ],
)
def test_a_function_that_cannot_be_used_is_refused(name: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        build_model(task(f'type = "{name}"'), seed=0)
