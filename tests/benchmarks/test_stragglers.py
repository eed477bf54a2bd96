import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks import stragglers
from benchmarks.stragglers_run import Outcome, Setting, history, run
from benchmarks.stragglers_work import Rows, accuracy, first_model, model_of_zeros, parts, reached, sleeps, split, trainer
from shared import messages
from shared.errors import FederationError
from shared.messages import Location, ManifestRecord, Settlement
from shared.plan import AggregationPlan
from tests.builders import a_blob, a_manifest, name_of

KEYS = {"rule", "buffer_size", "time_to_target_seconds", "synchronous_seconds", "ratio", "updates_used", "seeds"}


@pytest.fixture(scope="module")
def digits() -> tuple[Rows, Rows]:
    return split()


def test_the_split_has_1437_rows_to_train_on_and_of_every_digit_a_fifth_to_judge_by(digits):
    train, test = digits
    assert (len(train), len(test)) == (1437, 360)
    of_all = np.bincount(train.digits) + np.bincount(test.digits)
    np.testing.assert_array_equal(of_all, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])  # as scikit-learn documents them
    assert np.abs(np.bincount(test.digits) - of_all * 360 / 1797).max() < 1
    assert (train.pixels.min(), train.pixels.max(), train.pixels.dtype) == (0.0, 1.0, np.float32)


def test_every_row_is_dealt_to_one_institution(digits):
    dealt = parts(digits[0].digits, 8)
    np.testing.assert_array_equal(np.sort(np.concatenate(dealt)), np.arange(1437))


def test_the_partition_is_the_one_that_the_figures_are_of(digits):
    dealt = parts(digits[0].digits, 8)
    assert [len(places) for places in dealt] == [72, 338, 239, 246, 103, 236, 83, 120]
    assert np.bincount(digits[0].at(dealt[7]).digits, minlength=10).tolist() == [10, 12, 25, 14, 19, 14, 11, 2, 5, 8]


def test_rows_come_back_from_their_file(tmp_path, digits):
    digits[1].save(tmp_path / "rows.npz")
    found = Rows.load(tmp_path / "rows.npz")
    np.testing.assert_array_equal(found.pixels, digits[1].pixels)
    np.testing.assert_array_equal(found.digits, digits[1].digits)


def test_speeds_are_the_benchmarks_own_or_spread_in_equal_ratios():
    assert sleeps(8, None) == [0.05, 0.05, 0.05, 0.05, 0.1, 0.1, 0.5, 2.0]
    assert sleeps(3, 100.0) == pytest.approx([0.05, 0.5, 5.0])


def test_a_training_is_two_passes_of_gradient_descent():
    # Behind hidden units of zero only the last bias moves. One row of digit 3, at equal outputs: minus 0.3 (0.1 - [digit is 3]),
    # then with softmax(0.27) = e^0.27 / (e^0.27 + 9 e^-0.03) = 0.13042, and 0.09662 for each of the others.
    delta = trainer(Rows(np.ones((1, 64), np.float32), np.array([3])), seed=0)(model_of_zeros())
    expected = np.full(10, -0.03 - 0.3 * 0.09662)
    expected[3] = 0.27 + 0.3 * (1 - 0.13042)
    np.testing.assert_allclose(delta["2.bias"], expected, atol=1e-5)
    assert not delta["0.weight"].any()


def test_batches_are_of_32_rows():
    # The gradient of a batch is a mean: of 33 rows alike, two batches a pass are four steps like those of a single row.
    def bias(rows: int) -> float:
        alike = Rows(np.zeros((rows, 64), np.float32), np.full(rows, 3))
        return float(trainer(alike, seed=0)(model_of_zeros())["2.bias"][3])

    assert bias(32) == pytest.approx(bias(1))
    assert bias(33) > bias(32) + 0.3


def test_accuracy_is_the_share_of_rows_that_are_told_right(digits):
    always_three = model_of_zeros()
    always_three["2.bias"][3] = 1.0
    assert accuracy(always_three, Rows(np.zeros((4, 64), np.float32), np.array([3, 1, 3, 3]))) == 0.75


def test_the_numpy_model_that_judges_is_the_torch_model_that_trains():
    torch = pytest.importorskip("torch")
    model, pixels = first_model(1), np.random.default_rng(0).uniform(0, 1, (50, 64)).astype(np.float32)
    layer = torch.nn.functional.linear
    tensors = {name: torch.from_numpy(array) for name, array in model.items()}
    hidden = torch.relu(layer(torch.from_numpy(pixels), tensors["0.weight"], tensors["0.bias"]))
    told = layer(hidden, tensors["2.weight"], tensors["2.bias"]).argmax(dim=1).numpy()
    assert len(set(told.tolist())) > 1
    assert accuracy(model, Rows(pixels, told)) == 1.0


@pytest.mark.parametrize(("held", "place"), [(1, 1), (2, 2), (3, 6), (4, None)])
def test_a_target_is_held_by_so_many_evaluations_in_a_row(held, place):
    figures = [0.9, 0.95, 0.96, 0.949, 0.95, 0.99, 0.95]
    assert reached(figures, target=0.95, held=held) == place


def test_a_target_that_is_reached_again_counts_from_the_first_time():
    assert reached([0.95, 0.2, 0.95], target=0.95, held=1) == 0


def a_record(version: int, phase: str = "running", aggregated: int = 0, refused: int = 0) -> ManifestRecord:
    settled = [
        Settlement(institution=name_of("bank-a"), incarnation=1, sequence=1, hash="", outcome=outcome)  # type: ignore[arg-type]
        for outcome, count in (("aggregated", aggregated), ("rejected", refused))
        for _ in range(count)
    ]
    manifest = a_manifest(version, phase=phase, settled=settled, model=a_blob(f"model {version}"))
    return messages.manifest_record(1, manifest, Location(offset=0, chunks=1))


def test_the_clock_starts_when_training_is_let_begin_and_updates_are_those_folded_until_then():
    stream = [
        (10.0, a_record(0)),
        (11.0, a_record(0, "paused")),
        (12.0, a_record(0, "paused")),
        (20.0, a_record(0)),
        (20.5, a_record(1, aggregated=2)),
        (20.6, a_record(1, refused=1)),
        (21.0, a_record(2, aggregated=1, refused=1)),
    ]
    begun_at, versions = history(stream)
    assert begun_at == 20.0
    assert [(each.at_seconds, each.updates) for each in versions] == [(20.5, 2), (21.0, 3)]
    assert versions[1].model == a_blob("model 2").hash


def test_a_run_that_was_never_let_begin_has_no_clock():
    with pytest.raises(FederationError, match="when training was let begin"):
        history([(10.0, a_record(0)), (11.0, a_record(0, "paused"))])


def outcomes(*taken: float | None) -> list[Outcome]:
    return [Outcome(each, 10 * place, place, 0.96) for place, each in enumerate(taken, start=1)]


def test_json_has_the_keys_that_are_asked_for_and_the_ratio_of_the_medians():
    found = stragglers.figures(AggregationPlan(buffer_size=2), Setting(), outcomes(1.0, 4.0, 2.0), outcomes(20.0, 24.0, 22.0))
    told = json.loads(json.dumps(asdict(found)))
    assert set(told) >= KEYS
    assert told["time_to_target_seconds"] == {"median": 2.0, "min": 1.0, "max": 4.0}
    assert (told["rule"], told["buffer_size"], told["seeds"]) == ("credit", 2, 3)
    assert (told["synchronous_seconds"], told["ratio"], told["updates_used"]) == (22.0, 11.0, 20)


def test_a_seed_that_did_not_reach_the_target_is_slower_than_every_other():
    found = stragglers.figures(
        AggregationPlan(), Setting(limit_seconds=60.0), outcomes(1.0, None, 3.0), outcomes(None, None, 9.0)
    )
    assert found.time_to_target_seconds == {"median": 3.0, "min": 1.0, "max": None}
    assert (found.synchronous_seconds, found.ratio, found.updates_used, found.synchronous_updates_used) == (None, None, 20, None)
    assert stragglers.row(found) == "| credit | 1 | 1 | 3.00 | 1.00 to over 60 | 20 | over 60 | - |"


def test_the_command_line_changes_what_it_names_of_the_rules_own_settings():
    def plan(*words: str) -> AggregationPlan:
        return stragglers.chosen_plan(stragglers.options(list(words)))

    assert plan() == AggregationPlan()
    assert plan("--rule", "fedbuff") == stragglers.SUITED["fedbuff"]
    changed = plan("--rule", "fedbuff", "--buffer-size", "3", "--server-learning-rate", "0.5")
    assert (changed.rule, changed.buffer_size, changed.server_learning_rate) == ("fedbuff", 3, 0.5)


@pytest.mark.long
def test_three_institutions_reach_an_easy_target_over_rabbitmq_in_less_time_than_a_slow_one_takes_once():
    found = run(AggregationPlan(), Setting(target=0.5, institutions=3, spread=400.0), seed=0)
    assert found.seconds is not None
    assert found.seconds < 20.0  # what the slowest of them sleeps in its first round
    assert 0 < found.version <= found.updates
    assert found.best_accuracy >= 0.5
