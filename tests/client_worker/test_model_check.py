"""Models whose rows DP-SGD cannot tell apart are refused by the layer's name, with what to use instead."""

import numpy as np
import pytest
import torch
from opacus.layers import DPGRU, DPLSTM, DPRNN, DPMultiheadAttention
from torch import nn

from client_worker.training import LocalTrainer
from shared.errors import SettingsError
from shared.tasks.models import initial_parameters
from tests.client_worker.trainings import KnownNoise, flat, local, rows, task


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.Module], inputs: int, outputs: int) -> None:
        super().__init__()
        self.cells = layer(inputs, 4, batch_first=True)
        self.last = nn.Linear(4, outputs)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.last(self.cells(rows[:, None, :].repeat(1, 3, 1))[0][:, -1])


class Attentive(nn.Module):
    def __init__(self, layer: type[nn.Module], outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(1, 4)
        self.attention = layer(4, 2, batch_first=True)
        self.last = nn.Linear(4, outputs)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        tokens = self.first(rows[:, :, None])
        return self.last(self.attention(tokens, tokens, tokens)[0].mean(1))


class Around(nn.Module):
    """A linear layer with something before and after it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(inputs))
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.after(self.linear(self.before(rows) * self.scale))

    def before(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def after(self, rows: torch.Tensor) -> torch.Tensor:
        return rows


class Centred(Around):
    def before(self, rows: torch.Tensor) -> torch.Tensor:
        return rows - rows.mean(0)


class Levelled(Around):
    def after(self, rows: torch.Tensor) -> torch.Tensor:
        return rows / rows.abs().max()


class Careless(Around):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.forgotten = nn.Linear(2, 2)


class OwnBatchNorm(nn.BatchNorm1d):
    pass


def lstm(inputs: int, outputs: int) -> nn.Module:
    return Recurrent(nn.LSTM, inputs, outputs)


def gru(inputs: int, outputs: int) -> nn.Module:
    return Recurrent(nn.GRU, inputs, outputs)


def rnn(inputs: int, outputs: int) -> nn.Module:
    return Recurrent(nn.RNN, inputs, outputs)


def attention(inputs: int, outputs: int) -> nn.Module:
    return Attentive(nn.MultiheadAttention, outputs)


def transformer(inputs: int, outputs: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(inputs, 1, 4, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (1, inputs)), layer, nn.Flatten(), nn.Linear(inputs, outputs))


def dropout(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), nn.Dropout(0.1), nn.Linear(4, outputs))


def batch_norm(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, outputs))


def own_batch_norm(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 4), OwnBatchNorm(4, track_running_stats=False), nn.Linear(4, outputs))


def zeros_behind(inputs: int, outputs: int) -> nn.Module:
    """Mixes rows before two layers of zeros, through which neither an output nor a gradient shows it at first."""
    model = nn.Sequential(Centred(inputs, 4), nn.Linear(4, 4), nn.Linear(4, outputs))
    for layer in (model[1], model[2]):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("lstm", r"the layer 'cells' \(LSTM\) .*use opacus.layers.DPLSTM"),
        ("gru", r"the layer 'cells' \(GRU\) .*use opacus.layers.DPGRU"),
        ("rnn", r"the layer 'cells' \(RNN\) .*use opacus.layers.DPRNN"),
        ("attention", r"the layer 'attention' \(MultiheadAttention\) .*use opacus.layers.DPMultiheadAttention"),
        ("transformer", r"the layer '1.self_attn' \(MultiheadAttention\) .*use opacus.layers.DPMultiheadAttention"),
        ("Centred", r"rows are mixed; build it of Linear"),
        ("Levelled", r"rows are mixed; build it of Linear"),
        ("zeros_behind", r"rows are mixed; build it of Linear"),
        ("Careless", r"parameter 'forgotten.weight' has no part in its output; remove or freeze it"),
        ("dropout", r"draws random numbers while it trains; with DP-SGD, remove the dropout"),
        ("batch_norm", r"the layer '1' \(BatchNorm1d\) mixes rows; use torch.nn.GroupNorm"),
        ("own_batch_norm", r"the layer '1' \(OwnBatchNorm\) mixes rows; use torch.nn.GroupNorm"),
    ],
)
def test_a_model_whose_rows_cannot_be_told_apart_is_refused_with_the_remedy(model: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        LocalTrainer(task(3, f'type = "{__name__}:{model}"'), device="cpu")


@pytest.mark.parametrize("model", ["batch_norm", "own_batch_norm"])
@pytest.mark.parametrize("mechanism", ["none", "update-gaussian"])
def test_batch_normalisation_is_refused_under_every_mechanism(model: str, mechanism: str) -> None:
    spec = task(3, f'type = "{__name__}:{model}"')
    settings = local(5, mechanism=mechanism, noise_multiplier=None if mechanism == "none" else 1.0)

    with pytest.raises(SettingsError, match=r"use torch\.nn\.GroupNorm"):
        LocalTrainer(spec, device="cpu", private=False).local_update({}, rows(5, 3), settings)


@pytest.mark.parametrize("mechanism", ["none", "update-gaussian"])
def test_dropout_may_stay_where_no_gradient_of_a_row_is_bounded(mechanism: str) -> None:
    spec = task(3, f'type = "{__name__}:dropout"')
    settings = local(5, mechanism=mechanism, noise_multiplier=None if mechanism == "none" else 1.0)

    delta = LocalTrainer(spec, device="cpu", private=False).local_update(initial_parameters(spec, 0), rows(5, 3), settings)

    assert np.isfinite(flat(delta)).all()


def dp_lstm(inputs: int, outputs: int) -> nn.Module:
    return Recurrent(DPLSTM, inputs, outputs)


def dp_gru(inputs: int, outputs: int) -> nn.Module:
    return Recurrent(DPGRU, inputs, outputs)


def dp_rnn(inputs: int, outputs: int) -> nn.Module:
    return Recurrent(DPRNN, inputs, outputs)


def dp_attention(inputs: int, outputs: int) -> nn.Module:
    return Attentive(DPMultiheadAttention, outputs)


def convolutional(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, inputs)),
        nn.Conv1d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm1d(4),
        nn.LayerNorm(inputs),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * inputs, outputs),
    )


@pytest.mark.parametrize("model", ["dp_lstm", "dp_gru", "dp_rnn", "dp_attention", "convolutional", "Around"])
def test_what_is_named_as_a_remedy_trains_and_one_record_moves_it_by_the_clipping_norm_at_most(model: str) -> None:
    spec = task(3, f'type = "{__name__}:{model}"')
    trainer = LocalTrainer(spec, device="cpu", random=KnownNoise())
    base, settings = initial_parameters(spec, 1), local(10, clipping_norm=0.01, noise_multiplier=0.0)

    more, fewer = (flat(trainer.local_update(base, rows(count, 3), settings)) for count in (1, 0))

    assert np.linalg.norm(fewer) == 0
    assert 0 < np.linalg.norm(more) <= 0.01 / 10 * (1 + 1e-3)


def frozen(inputs: int, outputs: int) -> nn.Module:
    trunk = nn.Linear(inputs, 4).requires_grad_(False)
    return nn.Sequential(trunk, nn.Tanh(), nn.Linear(4, outputs))


@pytest.mark.parametrize("mechanism", ["dp-sgd", "update-gaussian", "none"])
def test_frozen_parameters_neither_travel_nor_get_noise(mechanism: str) -> None:
    spec = task(3, f'type = "{__name__}:frozen"')
    source = KnownNoise()
    settings = local(5, mechanism=mechanism, noise_multiplier=None if mechanism == "none" else 1.0)

    delta = LocalTrainer(spec, device="cpu", random=source).local_update(initial_parameters(spec, 0), rows(5, 3), settings)

    assert list(delta) == ["2.weight", "2.bias"]
    assert source.normals == ([] if mechanism == "none" else [5])
