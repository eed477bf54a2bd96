"""`fedqueue sweep`: the grid, the order of its rows, and the sentence on what to found with."""

import json

import pytest
import typer
from typer.testing import CliRunner

from operator_console.cli import app
from operator_console.simulate_command import numbers
from operator_console.sweep_command import Grid, Row, Setting, Swept, advice, in_order
from shared.plan import AggregationPlan
from simulator import engine
from tests.operator_console.test_simulate import SCENARIO

OWN = Setting("credit", 1.0, 1, 0.5, own=True)
OTHER = Setting("credit", 0.3, 2, 0.0)
THIRD = Setting("credit", 3.0, 4, 0.5)


def row(setting, *figures, seconds=()):
    return Row(setting, figures, seconds)


def swept(*rows, seeds=1, planned=None):
    return Swept("auc", None, seeds, in_order(rows, "auc"), planned or len(rows))


def test_rows_are_sorted_by_time_to_the_target_and_then_by_the_last_figure():
    rows = [row(OWN, 0.9), row(OTHER, 0.7, seconds=[5.0]), row(THIRD, 0.8, seconds=[5.0])]
    assert [each.setting for each in in_order(rows, "auc")] == [THIRD, OTHER, OWN]
    assert [each.figure for each in in_order([row(OWN, 2.0), row(OTHER, 1.0), row(THIRD)], "rmse")] == [1.0, 2.0, None]
    assert in_order([row(OTHER), row(OWN)], "auc")[0].setting is OWN


def test_the_sentence_names_what_to_found_with():
    assert advice(swept(row(OWN, 0.8), row(OTHER, 0.9))) == (
        "Found with fedqueue init --rule credit --server-learning-rate 0.3 --buffer-size 2, with staleness_exponent = 0 under "
        "[aggregation] in the task file. One seed may be luck: --seeds 3 tells."
    )
    assert advice(swept(row(OWN, 0.9), row(OTHER, 0.8))).startswith(
        "Nothing does better than the plan's own setting: fedqueue init"
    )
    close = swept(row(OWN, 0.78, 0.82), row(OTHER, 0.81, 0.83), seeds=2)
    assert advice(close).startswith("Nothing is clearly better than the plan's own setting; the best by a hair is fedqueue init")
    assert advice(swept(row(OWN, 0.78, 0.82), row(OTHER, 0.88, 0.92), seeds=2)).startswith("Found with")
    # where all reach the target, the times to it decide
    timed = [row(OWN, 0.8, 0.8, seconds=[5.0, 7.0]), row(OTHER, 0.7, 0.7, seconds=[4.0, 6.0])]
    assert advice(swept(*timed, seeds=2)).startswith("Nothing is clearly better")
    assert advice(swept(row(OWN))) == "No setting has a figure; nothing can be said."
    assert advice(swept(row(OWN, 0.5), planned=7)).endswith("Interrupted: 1 of 7 were tried.")


def test_the_default_grid_is_around_the_plans_own_setting_and_holds_it_once():
    own = AggregationPlan(server_learning_rate=2.0, buffer_size=1)
    settings = Grid().settings(own, 1.0, 20)
    assert settings[0] == Setting("credit", 2.0, 1, 0.5, own=True)
    # 3 rates x 3 buffers x 2 exponents, of which one is the plan's own
    assert len(settings) == len(set(settings)) == 18
    assert sorted({each.server_learning_rate for each in settings}) == [0.6, 2.0, 6.0]
    # buffers of more than half of four institutions are capped at two
    assert {each.buffer_size for each in Grid().settings(own, 1.0, 4)} == {1, 2}
    # another rule has the rate that is usual for it, and what keeps the last of each does not damp it
    latest = Grid(rule="latest-model").settings(own, 1.0, 20)
    assert {each.server_learning_rate for each in latest} == {0.3, 1.0, 3.0}
    assert {each.staleness_exponent for each in latest} == {0.5}


def test_numbers_are_read_once_each_and_wrong_ones_are_named():
    assert list(numbers("0.3, 1,1", option="--x")) == [0.3, 1.0]
    for text, whole in [("a", False), ("1.5", True), ("-1", False), ("inf", False), ("nan", False), ("", False)]:
        with pytest.raises(typer.BadParameter, match="not"):
            numbers(text, option="--x", whole=whole)


def test_the_command_tries_every_setting_and_says_the_same_twice(tmp_path):
    file = tmp_path / "four.toml"
    file.write_text(SCENARIO)
    words = ["sweep", str(file), "--server-learning-rate", "0.5,1", "--buffer-size", "1,2", "--staleness-exponent", "0", "--json"]
    first, second = (CliRunner().invoke(app, words) for _ in range(2))
    assert first.exit_code == 0, first.output
    assert first.stdout == second.stdout
    told = json.loads(first.stdout)
    # the plan's own exponent is 0.5, so it comes beside the grid
    assert len(told["settings"]) == 2 * 2 + 1
    assert told["target"] == 0.5
    assert told["finished"]
    shown = CliRunner().invoke(app, [*words[:-1], "--seeds", "2"])
    assert "[aggregation] in the task file" in shown.stdout
    assert "by seed" in shown.stdout


def test_after_ctrl_c_what_was_tried_is_told(tmp_path, monkeypatch):
    file, runs, real = tmp_path / "four.toml", [], engine.run
    file.write_text(SCENARIO)

    def interrupted(prepared, variant, **rest):
        runs.append(variant)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(prepared, variant, **rest)

    monkeypatch.setattr(engine, "run", interrupted)
    done = CliRunner().invoke(app, ["sweep", str(file)])
    assert done.exit_code == 130
    # four institutions: buffers of 1 and 2, so 3 x 2 x 2 settings
    assert "Interrupted: 2 of 12 were tried." in done.output
