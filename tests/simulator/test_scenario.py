from importlib.resources import files
from pathlib import Path, PurePosixPath

import pytest

from shared.errors import SettingsError
from shared.plan import Plan
from shared.tasks.spec import Aggregation, TaskSpec, Training
from simulator.plans import AS_MANY_AS_THERE_IS_TIME_FOR, plan_of
from simulator.population import synthetic_task
from simulator.scenario import Scenario, Synthetic, parse_scenario

BASE = """
name = "s"
[synthetic]
inputs = 3
[population]
institutions = 4
[ending]
updates = 10
"""


def parsed(text: str = BASE) -> Scenario:
    return parse_scenario(text, source="s.toml")


def fault(text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        parsed(text)
    return str(caught.value)


def plan(text: str = "", *, variant: int = 0, **task: object) -> Plan:
    spec = synthetic_task(Synthetic(inputs=3))
    scenario = parsed(BASE + text)
    suggested: TaskSpec = spec.model_copy(update=task)
    return plan_of(scenario.plan, scenario.variants[variant], suggested, institutions=4)


SCENARIOS = sorted(Path(str(files("simulator") / "scenarios")).glob("*.toml"))


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda file: file.stem)
def test_the_scenarios_that_come_along_can_be_read_and_planned(file: Path) -> None:
    scenario = parse_scenario(file.read_text(), source=str(file))

    assert scenario.name == file.stem
    assert scenario.synthetic is not None
    for variant in scenario.variants:
        spec = synthetic_task(scenario.synthetic)
        assert plan_of(scenario.plan, variant, spec, institutions=3).aggregation.rule == variant.aggregation.rule


def test_three_scenarios_come_along() -> None:
    assert [file.stem for file in SCENARIOS] == ["coming-and-going", "slow-half", "ten-thousand"]


def test_every_wrong_key_has_a_line_that_names_it() -> None:
    text = BASE.replace("inputs = 3", "imputs = 3").replace("updates = 10", 'updates = "ten"')

    lines = fault(text).splitlines()

    assert len(lines) == 2
    assert lines[0] == "s.toml: unknown key 'synthetic.imputs'; did you mean inputs?"
    assert lines[1].startswith("s.toml: key 'ending.updates': ")


def test_a_wrong_key_of_a_plan_to_compare_is_named_with_its_place() -> None:
    assert "'compare.1.aggregation.rul'" in fault(
        BASE + '[[compare]]\nname="a"\n[[compare]]\nname="b"\naggregation={rul="credit"}'
    )


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[synthetic]\ninputs = 3", "", "not none"),
        ("[synthetic]", 'data_folder = "d"\n[synthetic]', "not data_folder and synthetic"),
        ("institutions = 4", "", "population.institutions is missing"),
        ("institutions = 4", "institutions = 4\npoison = { institutions = 5 }", "more than the 4 that there are"),
        ("updates = 10", "", "say where the run ends"),
        ("institutions = 4", 'institutions = 4\nspeed = { distribution = "list" }', "needs each_seconds"),
        ("institutions = 4", "institutions = 4\nspeed = { each_seconds = [1.0] }", "each_seconds has no meaning"),
        ("institutions = 4", 'institutions = 4\nsize = { distribution = "list" }', "needs relative"),
        ("institutions = 4", "institutions = 4\nspeed = { spread = 1.0 }", "must be below 1"),
        ("institutions = 4", "institutions = 4\ndropout = { leave_share = 0.1 }", "needs leave_after_seconds"),
        ("institutions = 4", "institutions = 4\ndropout = { away_share = 0.1, away_seconds = 1.0 }", "needs there_seconds"),
    ],
)
def test_what_does_not_agree_is_said_in_words(old: str, new: str, said: str) -> None:
    assert said in fault(BASE.replace(old, new))


def test_a_data_folder_is_divided_already() -> None:
    text = 'name = "s"\ndata_folder = "d"\n[population]\ndirichlet_alpha = 1.0\n[ending]\nupdates = 1'

    assert "population.dirichlet_alpha has no meaning with a data_folder" in fault(text)


def test_two_plans_of_one_name_could_not_be_told_apart() -> None:
    assert "two plans to compare are named 'a'" in fault(BASE + '[[compare]]\nname="a"\n[[compare]]\nname="a"')


def test_a_scenario_that_compares_nothing_has_one_plan_named_after_its_rule() -> None:
    scenario = parsed(BASE + '[plan.aggregation]\nrule = "fedbuff"')

    assert [variant.name for variant in scenario.variants] == ["fedbuff"]


def test_paths_begin_at_the_scenarios_own_folder() -> None:
    table = 'name = "s"\n[table]\ntask_file = "t.toml"\nrows_file = "/data/r.csv"\n[population]\ninstitutions = 2'

    within = parsed(f"{table}\n[ending]\nupdates = 1").within(PurePosixPath("here"))

    assert within.table is not None
    assert (within.table.task_file, within.table.rows_file) == ("here/t.toml", "/data/r.csv")


def test_a_variant_lies_over_the_plan_and_the_plan_over_the_task() -> None:
    task = {"aggregation": Aggregation(server_learning_rate=3.0, staleness_exponent=0.7), "training": Training(steps=7)}
    text = '[plan.aggregation]\nbuffer_size = 4\nrule = "fedbuff"\n[[compare]]\nname = "a"\naggregation = { rule = "fedasync" }'

    found = plan(text, **task)

    assert found.aggregation.rule == "fedasync"
    assert found.aggregation.buffer_size == 4
    assert found.aggregation.server_learning_rate == 0.6  # the task's 3 was found to suit another rule
    assert found.aggregation.staleness.exponent == 0.7
    assert found.local.steps == 7


def test_a_plan_that_names_no_rate_has_the_one_that_it_would_be_founded_with() -> None:
    task = {"aggregation": Aggregation(server_learning_rate=3.0)}

    assert plan("", **task).aggregation.server_learning_rate == 3.0
    fedbuff = plan('[plan.aggregation]\nrule = "fedbuff"', **task).aggregation
    assert (fedbuff.server_learning_rate, fedbuff.buffer_size) == (0.5, 10)
    whole_rounds = plan('[plan.aggregation]\nrule = "fedbuff"\nbuffer_size = 2\nexact_buffer = true', **task).aggregation
    assert whole_rounds.server_learning_rate == 1.0


def test_one_key_of_the_staleness_rule_leaves_the_others_as_they_are() -> None:
    found = plan("[plan.aggregation]\nstaleness = { max_staleness = 9 }", aggregation=Aggregation(staleness_exponent=0.7))

    assert (found.aggregation.staleness.max_staleness, found.aggregation.staleness.exponent) == (9, 0.7)


def test_what_variant_and_plan_say_together_is_checked() -> None:
    text = '[plan.aggregation]\nserver_momentum = 0.9\n[[compare]]\nname = "adam"\naggregation = { server_adam = {} }'

    with pytest.raises(SettingsError, match=r"plan 'adam': .*exclude each other"):
        plan(text)


def test_false_switches_off_what_a_plan_may_leave_out() -> None:
    found = plan('[plan.defence]\nnorm_cap = false\n[[compare]]\nname = "a"\ndefence = { strikes = false }')

    assert (found.defence.norm_cap, found.defence.strikes, found.defence.gate_tolerance) == (None, None, 0.01)


def test_without_a_word_on_privacy_there_is_no_noise_and_no_budget() -> None:
    found = plan()

    assert (found.privacy.mechanism, found.privacy.epsilon) == ("none", None)
    assert found.local.updates == AS_MANY_AS_THERE_IS_TIME_FOR


def test_an_epsilon_asks_for_dp_sgd_within_the_tasks_updates() -> None:
    found = plan("[plan.privacy]\nepsilon = 1.5", training=Training(updates=12, clipping_norm=0.4))

    assert (found.privacy.mechanism, found.privacy.epsilon, found.privacy.clipping_norm) == ("dp-sgd", 1.5, 0.4)
    assert found.local.updates == 12


def test_an_epsilon_switched_off_in_a_variant_takes_its_noise_away() -> None:
    found = plan('[plan.privacy]\nepsilon = 1.5\n[[compare]]\nname = "no noise"\nprivacy = { epsilon = false }')

    assert (found.privacy.mechanism, found.privacy.epsilon) == ("none", None)
