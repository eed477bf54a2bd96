"""`fedqueue simulate SCENARIO.toml`: the same files every time, figures that add up, and a sentence for whatever is wrong."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from broker_config.logins import load, save
from operator_console.cli import app
from operator_console.init_command import init
from operator_console.simulate_command import folder_name, present
from operator_console.simulation_page import lead
from operator_console.simulation_records import Comparison, Tried, document, sheets, slow_half, target_point
from shared.errors import DataError, SettingsError
from shared.plan import AggregationPlan
from simulator import engine
from simulator.results import Contribution, Point, RunResult
from simulator.scenario import Target, parse_scenario
from tests.leading import make_three_versions
from tests.tasks import ONE_COLUMN

SCENARIO = """
name = "four"
seed = 3
[synthetic]
inputs = 3
rows_each = 20
test_rows = 60
[population]
institutions = 4
speed = { distribution = "ratio", ratio = 5 }
[ending]
updates = 16
[evaluation]
every_updates = 4
[target]
value = 0.5
[[compare]]
name = "credit"
[[compare]]
name = "fedbuff, 2"
aggregation = { rule = "fedbuff", buffer_size = 2, server_learning_rate = 0.5 }
"""
FILES = {"results.json", "points.csv", "institutions.csv", "simulation.html", "final-figure.svg", "slow-half.svg"} | {
    f"figure-by-{what}.svg" for what in ("seconds", "updates", "bytes")
}


def fedqueue(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def scenario(tmp_path):
    file = tmp_path / "four.toml"
    file.write_text(SCENARIO)
    return file


def contribution(name, seconds, data, weight):
    return Contribution(name, 10, data, weight, seconds, 1, 1, 0.0)


def a_run(name, *points, contributions=None, **changes):
    """Points are (seconds, updates, accuracy); 100 bytes up and 50 down for each update."""
    made = tuple(Point(s, n, n, 100 * n, 50 * n, {"accuracy": figure}) for s, n, figure in points)
    facts = {"scenario": "s", "rule": "credit", "buffer_size": 1, "metric": "accuracy", "outcomes": {"aggregated": 4, "stale": 2}}
    facts |= {"ended": "4 updates have arrived", "noise_multiplier": None, "parameters": {}}
    return RunResult(**{"name": name, "points": made, "contributions": contributions or HALVES, **facts, **changes})


HALVES = (
    contribution("a", 1.0, 0.2, 0.3),
    contribution("b", 1.0, 0.3, 0.3),
    contribution("c", 2.0, 0.1, 0.3),
    contribution("d", 9.0, 0.4, 0.1),
)
FAST = a_run("fast", (0.0, 0, 0.5), (1.0, 2, 0.8), (2.0, 4, 0.7), contributions=HALVES)
SLOW = a_run("slow", (0.0, 0, 0.5), (3.0, 2, 0.75), (6.0, 20_000_000, 0.9), contributions=HALVES)


def compared(*results, target=0.75, planned=None, **changes):
    aim = None if target is None else Target(value=target)
    tried = [Tried(result, AggregationPlan(server_learning_rate=0.5)) for result in results]
    return Comparison("two", 1, tried, planned or len(tried), aim, **changes)


def test_the_same_command_twice_gives_the_same_files_byte_for_byte(scenario, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        done = fedqueue("simulate", scenario, "--out", folder)
        assert done.exit_code == 0, done.output
    first, second = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert first.keys() == FILES
    assert first == second


def test_the_files_agree_and_the_page_needs_nothing_from_outside(scenario, tmp_path):
    done = fedqueue("simulate", scenario, "--out", tmp_path / "out", "--json")
    told = json.loads(done.stdout)
    assert told == json.loads((tmp_path / "out/results.json").read_text())
    assert (told["schema"], told["finished"], [plan["name"] for plan in told["plans"]]) == (1, True, ["credit", "fedbuff, 2"])
    for plan in told["plans"]:
        assert plan["final"]["updates"] == 16
        assert plan["final"] == plan["points"][-1]
        assert plan["slow_half"]["data_share"] == pytest.approx(0.5, abs=0.2)
    assert [plan["server_learning_rate"] for plan in told["plans"]] == [1.0, 0.5]
    page = (tmp_path / "out/simulation.html").read_text()
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "http" not in re.sub(r"http://www\\.w3\\.org/\\S+", "", page)
    assert "prefers-color-scheme: dark" in page
    assert "fedbuff, 2" in page
    for file in (tmp_path / "out").glob("*.svg"):
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
        assert "prefers-color-scheme: dark" in file.read_text()
    points = (tmp_path / "out/points.csv").read_text().splitlines()
    assert points[0].startswith("plan,seconds,updates,version,bytes_up,bytes_down,accuracy,")
    assert len(points) - 1 == sum(len(plan["points"]) for plan in told["plans"])
    institutions = (tmp_path / "out/institutions.csv").read_text().splitlines()
    assert len(institutions) == 1 + 2 * 4


def test_the_slow_half_is_what_takes_longer_than_the_median():
    # the median of 1, 1, 2 and 9 is 1.5: c and d, with 0.1 + 0.4 of the data and 0.3 + 0.1 of the weight
    half = slow_half(HALVES)
    assert (half.weight_share, half.data_share) == (pytest.approx(0.4), pytest.approx(0.5))
    assert slow_half(HALVES[:2]) is None


def test_the_table_tells_what_it_took_and_what_it_came_to():
    until, end = sheets(compared(FAST, SLOW))
    assert until.title == "until accuracy 0.75"
    # 2 updates of 150 bytes both ways: 0.0003 MB
    assert until.rows[0] == ["fast", "credit", "1", "0.5", "1.0", "2", "0.0003"]
    assert until.rows[1][4:] == ["3.0", "2", "0.0003"]
    assert end.rows[0] == ["fast", "2.0", "4", "2", "0.0006", "0.7000", "40.0 / 50.0 %"]
    assert end.rows[1][4:6] == ["3,000.0", "0.9000"]
    never, _ = sheets(compared(FAST, target=0.85))
    assert never.rows[0][4:] == ["never", "-", "-"]
    assert len(sheets(compared(FAST, target=None))[0].head) == 4


def test_the_finding_is_who_reached_the_target_first_or_else_who_ended_best():
    assert lead(compared(SLOW, FAST)) == "fast reaches accuracy 0.75 first, after 1.0 virtual seconds."
    twin = a_run("twin", (1.0, 1, 0.9))
    assert lead(compared(FAST, SLOW, twin)) == "fast and twin reach accuracy 0.75 first, after 1.0 virtual seconds."
    assert lead(compared(FAST, target=0.95)) == "No plan reaches accuracy 0.95."
    assert lead(compared(FAST, SLOW, target=None)) == "slow ends best, at accuracy 0.9000."
    nothing = a_run("none", (0.0, 0, None))
    assert lead(compared(nothing, target=None)) == "No plan has a figure."
    assert target_point(compared(nothing), nothing) is None


def test_a_figure_that_is_smaller_when_better_is_read_that_way():
    points = [(Point(1.0, 1, 1, 0, 0, {"rmse": 3.0}),), (Point(1.0, 1, 1, 0, 0, {"rmse": 2.0}),)]
    runs = [a_run(name, metric="rmse", points=made) for name, made in zip(("far", "near"), points, strict=True)]
    assert lead(compared(*runs, target=None)) == "near ends best, at RMSE 2.0000."
    assert lead(compared(*runs, target=2.5)) == "near reaches RMSE 2.5 first, after 1.0 virtual seconds."


def test_after_ctrl_c_the_finished_plans_are_there_and_it_says_so(scenario, tmp_path, monkeypatch):
    real, runs = engine.run, []

    def interrupted(prepared, variant, **rest):
        runs.append(variant.name)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return real(prepared, variant, **rest)

    monkeypatch.setattr(engine, "run", interrupted)
    done = fedqueue("simulate", scenario, "--out", tmp_path / "out")
    assert done.exit_code == 130
    assert "Interrupted: 1 of 2 plans are finished, the rest is missing." in done.output
    told = json.loads((tmp_path / "out/results.json").read_text())
    assert (told["finished"], len(told["plans"])) == (False, 1)
    assert "1 of 2 plans are finished" in (tmp_path / "out/simulation.html").read_text()


def test_after_ctrl_c_before_the_first_plan_nothing_is_written(scenario, tmp_path, monkeypatch):
    def interrupted(*_given, **_named):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "run", interrupted)
    done = fedqueue("simulate", scenario, "--out", tmp_path / "out")
    assert done.exit_code == 130
    assert "nothing is written" in done.output
    assert not (tmp_path / "out").exists()


TABLE = """
name = "own"
[table]
task_file = "task.toml"
rows_file = "rows.csv"
[population]
institutions = 2
[ending]
updates = 4
"""


@pytest.mark.parametrize(
    ("rows", "said"),
    [("", "rows.csv"), ("x,y\\n", "rows.csv"), ("x,y\\n0.5,1\\nnan,0\\n0.2,1\\n", "x"), ("x\\n0.5\\n", "y")],
)
def test_rows_that_cannot_be_used_are_named(rows, said, tmp_path):
    (tmp_path / "s.toml").write_text(TABLE)
    (tmp_path / "task.toml").write_text(ONE_COLUMN)
    (tmp_path / "rows.csv").write_text(rows)
    done = fedqueue("simulate", tmp_path / "s.toml", "--out", tmp_path / "out")
    assert isinstance(done.exception, SettingsError | DataError), done.output
    assert said in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_whatever_is_wrong_with_the_words_is_said_before_anything_runs(scenario, tmp_path):
    missing = fedqueue("simulate", tmp_path / "nothing.toml").exception
    assert isinstance(missing, SettingsError)
    assert "nothing.toml" in str(missing)
    (tmp_path / "wrong.toml").write_text(SCENARIO.replace("updates = 16", "updtes = 16"))
    unknown = fedqueue("simulate", tmp_path / "wrong.toml").exception
    assert "unknown key 'ending.updtes'" in str(unknown)
    for words, said in [
        ([], "give a scenario file"),
        ([scenario, "--from-lineage", tmp_path], "give a scenario file"),
        ([scenario, "--rule", "credit"], "[[compare]]"),
        (["--from-lineage", tmp_path, "--rule", "median"], "'median' is none of credit, fedasync"),
    ]:
        done = fedqueue("simulate", *words)
        assert done.exit_code == 2
        assert said in done.output
    empty = fedqueue("simulate", "--from-lineage", tmp_path).exception
    assert "holds neither a run's lineage.jsonl nor a federation.json" in str(empty)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="choose another --out"):
        present(compared(FAST), tmp_path / "file", as_json=False)


def test_a_title_makes_a_folder_that_every_system_takes():
    assert folder_name("Twenty banks: 1/3 slow") == "twenty-banks-1-3-slow"
    assert folder_name("...") == "simulation"


def test_figures_that_are_missing_are_null_and_no_nan(tmp_path):
    for figure in (None, float("inf"), float("nan")):
        told = document(compared(a_run("none", (0.0, 0, figure))))
        assert told["plans"][0]["final"]["metrics"] == {"accuracy": None}
    present(compared(a_run("none", (0.0, 0, None), contributions=HALVES)), tmp_path / "out", as_json=True)


@pytest.mark.rabbitmq
def test_a_federations_sealed_updates_are_weighed_again_and_it_says_that_this_is_no_training(broker_folder, capsys):
    # one institution gives 1/7, 2/7 and 3/7 for every parameter: in all 6/7 of weight 1 under credit, half of it at rate 0.5
    init(task="heart-disease", institution=["north"], folder=broker_folder, epsilon="none", journal="20MiB", rule="credit")
    make_three_versions(broker_folder)
    capsys.readouterr()
    words = ["simulate", "--from-lineage", broker_folder, "--rule", "fedasync", "--server-learning-rate", "0.5"]
    told = json.loads(fedqueue(*words, "--json").stdout)
    was, half = told["plans"]
    assert told["run"] == "3 sealed updates from version 0 on; under the run's own plan each version equal to the bit."
    assert (was["plan"], was["moved"], was["versions"], was["weight_shares"]) == ("as it was", 0.0, 3, {"north": 1.0})
    assert (half["plan"], half["server_learning_rate"], half["versions"]) == ("fedasync", 0.5, 3)
    assert half["moved"] == pytest.approx(0.5, rel=1e-5)
    shown = fedqueue(*words).stdout
    assert "This is not a re-training: every update was computed on the models of the real run." in shown
    logins = load(broker_folder)
    save(logins.model_copy(update={"limits": replace(logins.limits, journal_stream_bytes=None)}), broker_folder)
    assert "keeps no journals" in str(fedqueue(*words).exception)


def test_the_scenario_of_the_page_is_one():
    page = (Path(__file__).parents[2] / "docs/simulator.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    scenario = parse_scenario(text, source="the page")
    assert len(scenario.variants) == 6
    printed = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[0]
    assert all(variant.name in printed for variant in scenario.variants)
