"""`fedqueue privacy`: what an institution is told of a plan before it trains, and of its ledger afterwards."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from rich.table import Table

from broker_config.logins import load, save
from client_worker.ledger import Ledger
from client_worker.ledger_audit import WrongLedgerError
from client_worker.ledger_rows import Totals
from client_worker.mechanism import Charge
from client_worker.policy import Policy
from operator_console.init_command import init
from operator_console.privacy_commands import accept_dataset, export, plan, show, verify
from operator_console.privacy_forecast import cost_text, course_table, facts_table, forecast, shown
from operator_console.simulated_cost import simulated_cost
from shared.errors import BrokerUnavailableError, SettingsError, TopologyError
from shared.plan import LocalPlan, PrivacyPlan, SimulatedCost
from tests.builders import RUN, a_plan
from tests.client_worker.test_cli import SETTINGS, TASK
from tests.client_worker.test_ledger_audit import change, grown, names

PAGE = Path(__file__).parents[2] / "docs" / "ledger.md"
# 20 Gaussians on all rows at epsilon 3, delta 1e-5 need a noise multiplier of 6.219
FULL_BATCH = a_plan(privacy=PrivacyPlan(epsilon=3.0), local=LocalPlan(updates=20, steps=1, sample_rate=1.0))
SWEEP = [
    {"epsilon": None, "noise_multiplier": None, "metrics": {"auc": 0.779, "log_loss": 0.437}},
    {"epsilon": 3.0, "noise_multiplier": 7.4, "metrics": {"auc": 0.769, "log_loss": 0.453}},
]


def told(chosen=FULL_BATCH, totals=None, policy=None, *, num_examples=1000, count_epsilon=None):
    return forecast(
        chosen, policy or Policy(), totals or Totals(), unit="record", num_examples=num_examples, count_epsilon=count_epsilon
    )


def text(table: Table) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    console.file.close()
    return re.sub(" +", " ", console.export_text())


def test_epsilon_is_told_after_every_planned_update():
    found = told()
    assert [number for number, _ in found.after] == list(range(1, 21))
    assert found.noise_multiplier == pytest.approx(6.219, rel=2e-3)
    # two columns of the golden table, by scaling: mu of 20 updates is that of one at sqrt(20) times less noise
    assert 0.99 * 3 <= found.after[-1][1] <= 3
    assert all(before < after for (_, before), (_, after) in zip(found.after, found.after[1:], strict=False))


def test_the_noise_of_a_coordinate_follows_from_public_figures():
    """lr 1 x 6.219 x C 1 x sqrt(1 step) / (1.0 x 1000 rows)."""
    assert told().noise_std == pytest.approx(6.219 / 1000, rel=2e-3)
    assert told(num_examples=None).noise_std is None
    assert "known once the number of examples is drawn" in text(facts_table(told(num_examples=None)))


def test_what_is_spent_already_is_where_the_course_begins():
    fresh = told()
    assert fresh.noise_multiplier is not None
    half_way = Totals(charges=[Charge(fresh.noise_multiplier, 1.0, 1)] * 10, reservations=10)
    found = told(totals=half_way)
    assert (found.done, found.spent) == (10, fresh.after[9][1])
    assert found.after == fresh.after[10:]


def test_an_update_that_the_budget_does_not_reach_is_marked():
    found = told(totals=Totals(carried=1.0))
    assert found.after[0][1] == pytest.approx(1.0 + told().after[0][1])
    assert "none: this update will not be trained" in text(course_table(found))
    assert found.after[-1][1] > 3.0
    assert "none: this update will not be trained" not in text(course_table(told()))


def test_a_count_that_is_still_to_be_drawn_is_in_the_course_and_not_yet_spent():
    to_come = told(count_epsilon=0.5, num_examples=None)
    drawn = told(totals=Totals(counted=104, count_epsilon=0.5), count_epsilon=0.5)
    assert to_come.after == drawn.after
    assert (to_come.spent, drawn.spent) == (0.0, 0.5)
    assert 0.98 * 3 <= to_come.after[-1][1] <= 3


def test_every_update_up_to_twenty_is_shown_and_of_more_about_twenty_and_the_last():
    assert list(shown(1, 20)) == list(range(1, 21))
    many = shown(1, 1000)
    assert (len(many), many[0], many[-1]) == (20, 1, 1000)
    assert list(shown(21, 20)) == []


def test_the_whole_plan_for_a_replaced_record_costs_more():
    # sigma 10, 50 steps: 2.943225 by adding a record, 6.57297 by replacing one
    chosen = a_plan(privacy=PrivacyPlan(epsilon=2.943226), local=LocalPlan(updates=5, steps=10, sample_rate=1.0))
    assert told(chosen).replaced == pytest.approx(6.573, rel=2e-3)


@pytest.mark.parametrize(
    ("policy", "limit"),
    [
        (Policy(max_epsilon=1.0), "max_epsilon"),
        (Policy(max_target_delta=1e-6), "max_target_delta"),
        (Policy(min_noise_multiplier=7.0), "min_noise_multiplier"),
        (Policy(mechanisms=("update-gaussian",)), "mechanisms"),
        (Policy(max_target_delta=0.1), "target_delta"),
    ],
)
def test_a_plan_that_the_policy_refuses_is_still_shown_with_the_limit(policy, limit):
    found = told(policy=policy, num_examples=100_000 if limit == "target_delta" else 1000)
    assert found.refused is not None
    assert found.refused.limit == limit
    assert len(found.after) == 20


@pytest.mark.parametrize(
    ("privacy", "local", "limit"),
    [
        (PrivacyPlan(epsilon=3.0), LocalPlan(steps=10**9), "max_steps"),
        (PrivacyPlan(epsilon=3.0), LocalPlan(sample_rate=1e-300), "sample_rate"),
        (PrivacyPlan(epsilon=1e-5, target_delta=1e-12), LocalPlan(updates=1000, steps=100, sample_rate=1.0), "epsilon"),
    ],
    ids=["steps", "sample rate", "epsilon"],
)
def test_a_plan_that_cannot_be_accounted_is_refused_and_not_computed(privacy, local, limit):
    found = told(a_plan(privacy=privacy, local=local))
    assert found.refused is not None
    assert (found.refused.limit, found.noise_multiplier, found.after) == (limit, None, ())
    assert "dp-sgd" in text(facts_table(found))


def test_a_plan_without_noise_has_no_course():
    found = told(a_plan())
    assert (found.noise_multiplier, found.after) == (None, ())
    assert found.refused is not None
    assert "allow_no_privacy" in found.refused.limit
    assert "none" in text(facts_table(found))


def test_a_plan_for_whole_institutions_says_so():
    chosen = a_plan(privacy=PrivacyPlan(mechanism="update-gaussian", epsilon=3.0), local=LocalPlan(updates=20, steps=50))
    found = told(chosen)
    assert "the institution as a whole, added or removed" in text(facts_table(found))
    assert found.noise_multiplier == pytest.approx(6.219, rel=2e-3)  # one Gaussian for an update, whatever its steps


def test_the_operators_simulation_is_told_as_what_it_is():
    assert cost_text(FULL_BATCH) == "the operator ran no simulation"
    measured = FULL_BATCH.model_copy(update={"simulated": SimulatedCost(metric="auc", without_noise=0.779, with_noise=0.769)})
    assert cost_text(measured) == "auc 0.779 without noise, 0.769 with it: measured by the operator's simulation"


def test_the_figures_of_a_simulation_are_those_of_the_plans_epsilon(tmp_path):
    file = tmp_path / "epsilon.json"
    file.write_text(json.dumps(SWEEP))
    assert simulated_cost(file, 3.0) == SimulatedCost(metric="auc", without_noise=0.779, with_noise=0.769)
    regression = [{"epsilon": each["epsilon"], "metrics": {"auc": None, "mae": 2.5}} for each in SWEEP]
    file.write_text(json.dumps(regression))
    assert simulated_cost(file, 3.0).metric == "mae"


@pytest.mark.parametrize(
    ("content", "epsilon", "reason"),
    [
        (json.dumps(SWEEP), 1.0, "holds runs at epsilon 3 and one without noise; the plan's epsilon is 1"),
        (json.dumps(SWEEP[1:]), 3.0, "and none without noise"),
        (json.dumps(SWEEP), None, "the plan's epsilon is none"),
        ("[1]", 3.0, "cannot be read as an epsilon.json"),
        ("", 3.0, "cannot be read as an epsilon.json"),
        (json.dumps([{"epsilon": each["epsilon"], "metrics": {}} for each in SWEEP]), 3.0, "has none of auc"),
    ],
)
def test_a_simulation_of_something_else_is_refused(tmp_path, content, epsilon, reason):
    file = tmp_path / "epsilon.json"
    file.write_text(content)
    with pytest.raises(SettingsError, match=re.escape(reason)):
        simulated_cost(file, epsilon)


@pytest.mark.rabbitmq
def test_the_plan_is_read_from_the_broker_and_held_against_the_policy(broker_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    simulation = tmp_path / "epsilon.json"
    simulation.write_text(json.dumps(SWEEP))
    init(task="heart-disease", institution=["north"], folder=broker_folder, epsilon="3", updates=4, simulation=simulation)
    config = broker_folder / "institutions" / "north" / "client.toml"
    config.write_text(config.read_text().replace("# num_examples = 1000", "num_examples = 1000"))
    before = sorted(config.parent.iterdir())
    plan(config=config)
    out = capsys.readouterr().out
    assert re.search(r"expected cost\W+auc 0\.779 without noise", out)
    assert "The policy allows this plan." in out
    assert "Spent so far: epsilon 0.000, by 0 local trainings." in out
    assert sorted(config.parent.iterdir()) == before
    config.write_text(config.read_text().replace("max_epsilon = 3.0", "max_epsilon = 0.5"))
    with pytest.raises(typer.Exit) as ended:
        plan(config=config)
    assert ended.value.exit_code == 1
    assert "The policy refuses this plan, by max_epsilon: the plan asks for epsilon 3.0" in capsys.readouterr().out

    config.write_text(config.read_text().replace('pseudonym = "', 'pseudonym = "0000000000000000" # "'))
    with pytest.raises(TopologyError, match="is not a member of this federation"):
        plan(config=config)
    away = load(broker_folder).model_copy(update={"amqp": "amqp://127.0.0.1:1/away"})
    save(away, tmp_path / "elsewhere")
    config.write_text(re.sub(r'url = ".*"', 'url = "amqp://127.0.0.1:1/away"', config.read_text()))
    with pytest.raises(BrokerUnavailableError, match=r"connect to 127\.0\.0\.1:1 "):
        plan(config=config)


@pytest.fixture
def bank(tmp_path):
    for name, content in {"task.toml": TASK, "training.csv": "a,y\n10,1\n0,0\n", "client.toml": SETTINGS}.items():
        (tmp_path / name).write_text(content)
    grown(tmp_path / "state")
    return tmp_path / "client.toml"


def test_the_rows_are_shown_with_what_they_cost(bank, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show(config=bank)
    lines = [re.sub(r"\s+", " ", line).strip() for line in capsys.readouterr().out.splitlines()]
    assert any(re.fullmatch(r"3 \S+ \S+ COUNTED number of examples, released: 104 0\.1", line) for line in lines)
    assert any(re.fullmatch(r"4 \S+ \S+ RESERVED 1 dp-sgd on version , 1 steps 1 4\.477", line) for line in lines)
    assert any(re.fullmatch(r"10 \S+ \S+ SETTLED 1 aggregated", line) for line in lines)


def test_the_verdict_is_one_line(bank, capsys):
    verify(state_folder=bank.parent / "state")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ok: 11 rows, 3 trainings reserved, 3 updates sealed, 3 kept as sealed, spent: epsilon ")


def test_a_wrong_ledger_ends_with_code_1_and_the_row(bank):
    change(bank.parent / "state" / "ledger.sqlite", ("DELETE FROM ledger WHERE number = 6",))
    with pytest.raises(WrongLedgerError, match="row 7 does not follow") as ended:
        verify(config=bank)
    assert ended.value.exit_code == 1


def test_an_auditor_needs_only_the_lines_of_the_page(bank, tmp_path):
    export(config=bank, out=tmp_path / "rows.jsonl")
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(program.splitlines()) <= 12
    sound = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert sound.stdout.startswith("11 rows, the last is ")
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    for broken in ([*lines[:5], *lines[6:]], [*lines[:3], lines[3].replace("4.47", "3.47"), *lines[4:]], [lines[1], lines[0]]):
        (tmp_path / "rows.jsonl").write_text("\n".join(broken))
        found = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert re.search(r"AssertionError: row \d+ (does not follow|was altered)", found.stderr)


def test_without_a_file_the_rows_go_to_standard_output_and_nothing_is_made(bank, capsys):
    before = names(bank.parent)
    export(config=bank)
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["number"] for line in lines] == list(range(1, 12))
    assert names(bank.parent) == before


def test_the_ledger_is_named_in_one_of_two_ways(bank):
    for named in ({}, {"config": bank, "state_folder": bank.parent}):
        with pytest.raises(SettingsError, match="one of them"):
            show(**named)
    with pytest.raises(SettingsError, match="the worker writes it at its first start"):
        show(state_folder=bank.parent)


def test_another_training_file_is_accepted_by_a_row_and_spends_the_same_budget(bank, capsys):
    accept_dataset(config=bank)
    assert "before it was ffffffffffff by record. Everything spent before stays spent." in capsys.readouterr().out
    accept_dataset(config=bank)
    assert "nothing was written" in capsys.readouterr().out
    ledger = Ledger(bank.parent / "state" / "ledger.sqlite", run_id=RUN, institution="bank-a", incarnation=1)
    assert ledger.totals.dataset is not None
    assert ledger.totals.dataset["fingerprint"] != "f" * 64
    assert (ledger.totals.reservations, ledger.totals.counted) == (3, 104)
    (bank.parent / "training.csv").write_text("a,y\n1,1\n0,0\n")
    with pytest.raises(SettingsError, match="this institution's worker runs already"):
        accept_dataset(config=bank)
    ledger.close()


def test_before_the_first_start_there_is_nothing_to_accept(tmp_path):
    for name, content in {"task.toml": TASK, "training.csv": "a,y\n10,1\n0,0\n", "client.toml": SETTINGS}.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(SettingsError, match="names no training file yet"):
        accept_dataset(config=tmp_path / "client.toml")
    assert not (tmp_path / "state").exists()
