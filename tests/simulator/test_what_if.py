"""A real run's arrivals under another rule: when each institution trained, by hand, and what may be wrong with a run's folder."""

import json

import pytest
from typer.testing import CliRunner

from operator_console.cli import app
from shared.errors import SettingsError
from shared.messages import encode_model
from shared.plan import AggregationPlan, LocalPlan, Plan, PrivacyPlan
from shared.tasks.models import initial_parameters
from shared.tasks.spec import parse_task
from simulator.what_if import APART_SECONDS, RecordedTiming, Training, read_run, recorded_trainings
from tests.tasks import ONE_COLUMN

RUN_ID = "ab" * 8
SPEC = parse_task(ONE_COLUMN, source="the task")
PLAN = Plan(
    task="t",
    task_hash=SPEC.hash,
    aggregation=AggregationPlan(server_learning_rate=0.8),
    local=LocalPlan(updates=9, steps=2),
    privacy=PrivacyPlan(mechanism="none", epsilon=None),
)


def update(institution, sequence, base, **changes):
    facts = {
        "institution": institution,
        "pseudonym": "ab" * 8,
        "incarnation": 1,
        "sequence": sequence,
        "hash": "",
        "base_version": base,
    }
    folded = {"staleness": 0, "weight_hex": (0.5).hex(), "scale_hex": (1.0).hex()}
    return {**facts, **({} if "outcome" in changes else folded), **changes}


def line(version, seconds, *updates, not_folded=(), **changes):
    facts = {"version": version, "seconds": seconds, "updates": list(updates), "not_folded": list(not_folded)}
    facts |= {"model": "", "model_bytes": 100, "plan_hash": PLAN.hash, "phase": "running", "phase_reason": ""}
    return {**facts, "metrics": {"accuracy": 0.5 + version / 100}, **changes}


LINES = [
    line(0, 0.0),
    line(1, 2.0, update("north", 1, 0)),
    line(2, 3.0, update("north", 2, 1), update("south", 1, 0)),
    line(3, 5.5, update("south", 2, 2), not_folded=[update("north", 3, 2, outcome="rejected", reason="", seconds=6.0)]),
]


def test_a_base_is_taken_when_it_was_there_and_updates_arrive_with_their_version():
    when = recorded_trainings(LINES)
    near = 10 * APART_SECONDS
    times = {name: [(each.began, each.arrived) for each in own] for name, own in when.items()}
    assert times["north"] == [
        pytest.approx((0.0, 2.0), abs=near),
        pytest.approx((2.0, 3.0), abs=near),
        pytest.approx((3.0, 6.0), abs=near),  # refused in the run, and may not be under another rule
    ]
    assert times["south"] == [pytest.approx((0.0, 3.0), abs=near), pytest.approx((3.0, 5.5), abs=near)]
    # in the order in which they were folded, and nobody takes a model before it is there
    assert when["north"][1].arrived < when["south"][0].arrived < when["south"][1].began
    assert when["north"][0].arrived < when["north"][1].began


def test_versions_of_one_millisecond_are_told_apart():
    made = [line(1, 1.0, update("a", 1, 0)), line(2, 1.0, update("b", 1, 0)), line(3, 1.0, update("a", 2, 1))]
    when = recorded_trainings([line(0, 0.0), *made])
    assert when["a"][0].arrived < when["a"][1].began < when["b"][0].arrived < when["a"][1].arrived


def test_an_old_lineage_tells_no_base_of_what_was_refused():
    refused = update("north", 1, 0, outcome="stale", reason="")
    del refused["base_version"]
    assert recorded_trainings([line(0, 0.0), line(1, 1.0, not_folded=[refused])]) == {}


def test_who_is_held_up_arrives_as_much_later():
    timing = RecordedTiming([[Training(1.0, 3.0), Training(4.0, 9.0)]])
    assert timing.there_from(0, 0.0) == 1.0
    assert timing.end_of(0, 1.0) == (3.0, True)
    assert timing.there_from(0, 6.0) == 6.0
    assert timing.end_of(0, 6.0) == (11.0, True)
    assert timing.there_from(0, 12.0) is None


@pytest.fixture
def folder(tmp_path):
    """A run of two institutions as a demonstration leaves it, with the lineage above."""
    tmp_path.joinpath("task.toml").write_text(ONE_COLUMN)
    tmp_path.joinpath("held_out.csv").write_text(rows(40, 3))
    for number, name in enumerate(("north", "south")):
        place = tmp_path / "data" / name
        place.mkdir(parents=True)
        place.joinpath("training.csv").write_text(rows(30, number))
    tmp_path.joinpath("summary.json").write_text(json.dumps({"run_id": RUN_ID, "seed": 5}))
    write(tmp_path, LINES)
    return tmp_path


def rows(number, seed):
    values = [((7 * place + 3 * seed) % 20) / 20 for place in range(number)]
    return "x,y\n" + "".join(f"{value},{int(value > 0.5)}\n" for value in values)


def write(folder, lines):
    first = {**lines[0], "model": encode_model(RUN_ID, initial_parameters(SPEC, 5)).hash, "plan": PLAN.model_dump()}
    folder.joinpath("lineage.jsonl").write_text("".join(json.dumps(each) + "\n" for each in [first, *lines[1:]]))


def test_the_run_as_it_was_is_told_from_its_lineage(folder):
    was = read_run(folder).as_it_was(update_bytes=10.0)
    assert [(point.seconds, point.updates, point.bytes_up, point.bytes_down) for point in was.points] == [
        (0.0, 0, 0, 0),
        (2.0, 1, 10, 100),
        (3.0, 3, 30, 300),
        (5.5, 5, 50, 500),
    ]
    assert was.outcomes == {"aggregated": 4, "rejected": 1}
    assert [(each.institution, each.weight_share) for each in was.contributions] == [("north", 0.5), ("south", 0.5)]
    assert was.final.metrics == {"accuracy": 0.53}


def test_every_recorded_training_is_done_again_under_another_rule(folder):
    run = read_run(folder)
    found = run.under("fedasync", AggregationPlan(rule="fedasync", server_learning_rate=0.6))
    assert found.final.updates == 5
    assert found.final.seconds == pytest.approx(6.0, abs=1e-4)
    assert {each.institution: each.updates for each in found.contributions} == {"north": 3, "south": 2}
    twice = run.under("fedasync", AggregationPlan(rule="fedasync", server_learning_rate=0.6))
    assert [point.metrics for point in twice.points] == [point.metrics for point in found.points]


def test_bases_are_the_newest_versions_at_their_recorded_times(folder):
    # K = 1: 4 or 5 versions; south's first was made on version 0 and arrives third, two versions late
    run = read_run(folder)
    south = run.under("credit", PLAN.aggregation).contributions[1]
    # its second is made on what it became itself, fresh but for what came in between: nothing
    assert south.mean_staleness == pytest.approx((2 + 0) / 2)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "summary.json").unlink(), "summary.json"),
        (lambda folder: (folder / "lineage.jsonl").write_text('{"version"'), "cut short"),
        (
            lambda folder: (folder / "summary.json").write_text(json.dumps({"run_id": "cd" * 8, "seed": 5})),
            "do not give version 0",
        ),
        (lambda folder: (folder / "data/north/training.csv").unlink(), "no rows of north"),
        (lambda folder: write(folder, [LINES[0], {**LINES[1], "roll_back": {}}]), "roll-back"),
        (lambda folder: write(folder, [LINES[0], {**LINES[1], "plan_hash": "other"}]), "more than one plan"),
        (lambda folder: write(folder, LINES[1:]), "begin with version 0"),
    ],
)
def test_what_is_wrong_with_a_run_folder_is_said(spoil, said, folder):
    spoil(folder)
    with pytest.raises(SettingsError, match=said):
        read_run(folder)


def test_the_command_shows_the_run_as_it_was_beside_the_rules(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("what-if")
    words = ["simulate", "--from-lineage", str(folder), "--out", str(out), "--json"]
    told = json.loads(CliRunner().invoke(app, [*words, "--rule", "fedasync", "--rule", "credit"]).stdout)
    assert [(plan["name"], plan["recorded"]) for plan in told["plans"]] == [
        ("as it was", True),
        ("credit, again", False),
        ("fedasync", False),
    ]
    assert [plan["server_learning_rate"] for plan in told["plans"]] == [0.8, 0.8, SPEC.aggregation.rate_for("fedasync")]
    assert any("drawn anew" in note for note in told["notes"])
    other = json.loads(CliRunner().invoke(app, [*words, "--rule", "credit", "--buffer-size", "2"]).stdout)
    assert [(plan["name"], plan["buffer_size"]) for plan in other["plans"]] == [("as it was", 1), ("credit", 2)]
