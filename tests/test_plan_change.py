"""Another plan comes into force while a run goes on: no manifest belongs to two, nothing is lost, and a replay goes across."""

import re
import secrets
from contextlib import closing

import numpy as np
import pytest

from aggregator_worker.plan_change import PlanChange, demand_changeable
from broker_config.connection import connect
from broker_config.logins import load
from client_worker.policy import Policy
from operator_console.init_command import init
from operator_console.lineage_commands import verify
from operator_console.plan_commands import change, changed, differences, show
from operator_console.recorded_run import recorded_run
from operator_console.replay_command import rebuilt, replay
from shared.errors import BrokerUnavailableError, SettingsError
from shared.messages import Operation
from shared.plan import Ending, LocalPlan, PrivacyPlan
from simulator.refold import again, events_of
from tests.aggregator_worker.counter import Counter, update
from tests.builders import BY_PSEUDONYM, NAMES, a_federation, a_plan, a_standing, an_update, array, commit, small_limits
from tests.conftest import MemoryServer
from tests.leading import give, leading
from tests.running import Hand, Leader, Watch, Worker, begin, give_order, local_data

PLAN = a_plan({"server_learning_rate": 1 / 3})
TWICE = PLAN.model_copy(update={"aggregation": PLAN.aggregation.model_copy(update={"server_learning_rate": 2 / 3})})


def order_for(present, wanted, run_id="ab" * 8):
    arguments = PlanChange(instead_of=present.hash, plan=wanted.model_dump()).model_dump()
    return Operation(run_id=run_id, operation_id=secrets.token_hex(16), kind="change-plan", arguments=arguments)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task_hash": "1" * 64}, "task_hash cannot change while a run goes on: institutions describe their rows by it"),
        ({"limits": small_limits()}, "limits cannot change while a run goes on: the broker's queues were made for them"),
        ({"broadcast": "bfloat16"}, "broadcast cannot change"),
        ({"ending": Ending(metric="auc")}, r"ending.metric cannot change .* the best version was chosen by it"),
        ({"aggregation": {"rule": "latest-model"}}, "aggregation.rule cannot change .* keeps other arrays than fedbuff"),
        ({"aggregation": {"server_momentum": 0.9}}, "aggregation.server_momentum cannot change"),
        ({}, "this is the plan in force already"),
    ],
)
def test_what_needs_other_arrays_or_other_queues_does_not_change_while_a_run_goes_on(changes, sentence):
    changes = {**changes, **({"aggregation": a_plan(changes["aggregation"]).aggregation} if "aggregation" in changes else {})}
    with pytest.raises(SettingsError, match=sentence):
        demand_changeable(PLAN, PLAN.model_copy(update=changes))


def test_the_manifest_of_a_new_plan_makes_no_version_and_the_next_update_weighs_what_the_new_plan_says():
    # 100 of 1000 examples, times 3 that count, times the rate of 1/3 and then of 2/3
    federation = a_federation({"w": array(0)}, PLAN)
    federation.change_plan(TWICE)
    record = commit(federation)
    assert (record.manifest.version, record.manifest.plan_hash, record.manifest.settled) == (0, TWICE.hash, [])
    assert record.manifest.plan == TWICE
    assert federation.plan == TWICE
    assert federation.state.plan == TWICE.aggregation
    assert commit(federation).manifest.plan is None


def test_a_plan_does_not_change_in_a_manifest_that_settles_updates(tmp_path):
    counter = Counter(tmp_path)
    counter.send(update(counter), 1, 1)
    with pytest.raises(ValueError, match="between two manifests"):
        counter.federation.change_plan(TWICE)
    counter.desk.close()


def test_what_was_folded_under_the_old_plan_gets_a_manifest_of_its_own_first(tmp_path):
    counter = Counter(tmp_path)
    old = counter.plan
    wanted = old.model_copy(update={"defence": old.defence.model_copy(update={"strikes": 5})})
    counter.send(update(counter), 1, 1)  # one of the two that make a version
    counter.follow(order_for(old, wanted))
    head = counter.federation.head.manifest
    assert (head.version, head.plan_hash, [each.outcome for each in head.settled]) == (1, old.hash, ["aggregated"])
    assert counter.commit().manifest.plan_hash == wanted.hash
    counter.desk.close()


def test_an_order_that_looked_at_another_plan_or_ends_the_run_by_rows_that_nobody_has_is_refused(tmp_path):
    old = a_plan(limits=small_limits(), ending=Ending(metric="auc"))
    counter = Counter(tmp_path, plan=old)

    def answer(order):
        counter.follow(order)
        outcome = counter.federation.pending.operations[-1]
        return outcome.applied, outcome.reason

    by_rows, by_number = (
        old.model_copy(update={"ending": Ending(metric="auc", **each)}) for each in ({"patience": 3}, {"updates": 3})
    )
    assert answer(order_for(TWICE, old)) == (False, "the plan was changed since the operator looked")
    assert "held-out rows" in answer(order_for(old, by_rows))[1]
    empty = Operation(run_id="ab" * 8, operation_id="2" * 32, kind="change-plan", arguments={"plan": {}})
    assert answer(empty)[1].startswith("the order holds no plan")
    assert counter.federation.plan == old
    assert answer(order_for(old, by_number)) == (True, f"plan {old.hash[:12]} is followed by {by_number.hash[:12]}")
    counter.desk.close()


def test_a_finished_run_keeps_its_plan(tmp_path):
    counter = Counter(tmp_path)
    counter.order(1, "stop")
    counter.commit()
    counter.follow(order_for(counter.plan, TWICE))
    assert [each.reason for each in counter.federation.pending.operations] == ["the run is finished"]
    counter.desk.close()


def test_whoever_refused_the_old_plan_counts_again_with_nothing_earned_meanwhile(tmp_path):
    counter = Counter(tmp_path)
    old, refuser = counter.plan, "bank-c"
    counter.send(a_standing(refuser, plan_hash=old.hash))
    counter.commit()
    assert counter.federation.weighing.members.giving == 2
    wanted = old.model_copy(update={"defence": old.defence.model_copy(update={"strikes": 5})})
    counter.follow(order_for(old, wanted))
    counter.commit()
    entry, clock = counter.entry(refuser), counter.federation.weighing.clock
    assert (entry.standing, counter.federation.weighing.members.giving) == (None, 3)
    assert (entry.account.carry, entry.account.since_credit) == (0.0, clock.credit)
    counter.desk.close()


def test_a_run_across_a_change_of_plan_is_replayed_to_the_bit_by_each_plan_s_own_rule(journalled, tmp_path):
    # 100, 300 and 600 examples: bank-a weighs 0.1 under the first plan and 0.2 under the second, bank-c 1.2
    begin(journalled, PLAN)
    watch, hands = Watch(journalled.connect("operator")), {name: Hand(journalled, name) for name in NAMES}

    def settled(count):
        assert watch.until(lambda: len(watch.settled) == count)

    with Leader(journalled, tmp_path / "first"):
        hands["bank-a"].send(watch.head, 1, 1.0, 2.0, 3.0, plan_hash=PLAN.hash)
        settled(1)
        before = watch.head
        give_order(journalled, order_for(PLAN, TWICE))
        assert watch.until(lambda: watch.head.manifest.plan_hash == TWICE.hash)
        hands["bank-b"].send(before, 1, 5.0, 5.0, 5.0, plan_hash=PLAN.hash)
        settled(2)
        hands["bank-a"].send(watch.head, 2, 1.0, 1.0, 1.0, plan_hash=TWICE.hash)
        settled(3)
    with Leader(journalled, tmp_path / "another host"):
        hands["bank-c"].send(watch.head, 1, 1.0, 1.0, 1.0, plan_hash=TWICE.hash)
        settled(4)
    assert [(each.outcome, each.reason) for each in watch.settled[1:2]] == [("stale", "made under another plan")]
    weights = [round(float.fromhex(each.weight), 6) for each in watch.settled]
    assert weights == [0.1, 0.0, 0.2, 1.0]  # fedbuff's largest weight is 1
    result = rebuilt(journalled.connect("operator"), BY_PSEUDONYM)
    assert (result.start, result.version, result.replay.folded, result.replay.off_rule) == (0, 3, 3, 0)
    assert result.replay.state.model["w"] == pytest.approx(array(1.3, 1.4, 1.5))

    run = recorded_run(journalled.connect("operator"), BY_PSEUDONYM)
    versions = list(again(run.start, run.links, events_of(run.start, run.links, run.load), run.load))
    assert (run.start.version, run.start.plan) == (1, TWICE)
    assert [each for version in versions for each in version.differences] == []


@pytest.mark.parametrize("step", ["checkpoint", "manifest"])
def test_a_leader_that_falls_between_two_steps_of_the_change_goes_on_under_the_new_plan(tmp_path, step):
    server, falls = MemoryServer(), []
    begin(server, PLAN)
    watch, hand = Watch(server.connect("operator")), Hand(server, "bank-a")

    def fall(done):
        if falls and falls[0] == done:
            falls.clear()
            raise BrokerUnavailableError("the connection is gone")

    with Leader(server, tmp_path, after_step=fall):
        assert watch.until(lambda: watch.head.epoch == 2)
        falls.append(step)
        order = order_for(PLAN, TWICE)
        give_order(server, order)
        assert watch.until(lambda: watch.head.manifest.plan_hash == TWICE.hash and watch.head.epoch == 3)
        hand.send(watch.head, 1, 1.0, 1.0, 1.0, plan_hash=TWICE.hash)
        assert watch.until(lambda: len(watch.settled) == 1)
    told = {done.operation_id: done.applied for record in watch.records for done in record.manifest.operations}
    assert told == {order.operation_id: True}
    assert [round(float.fromhex(each.weight), 6) for each in watch.settled] == [0.2]


def test_institutions_hold_the_new_plan_against_their_own_policy_and_go_on_by_themselves(broker_server, tmp_path):
    # the first plan lets each give two updates; the second three, at an epsilon that bank-a's policy does not allow
    noised = PrivacyPlan(epsilon=3.0)
    first = a_plan(privacy=noised, local=LocalPlan(updates=2))
    more = first.model_copy(update={"local": LocalPlan(updates=3), "privacy": PrivacyPlan(epsilon=6.0)})
    begin(broker_server, first)
    watch = Watch(broker_server.connect("operator"))
    strict = {"bank-a": 3.0, "bank-b": 6.0}
    with Leader(broker_server, tmp_path / "aggregator"):
        workers = [worker_of(broker_server, name, tmp_path, max_epsilon) for name, max_epsilon in strict.items()]
        for worker in workers:
            worker.__enter__()
        assert watch.until(lambda: [watch.entry(name).standing for name in strict] == ["budget_spent", "budget_spent"])
        give_order(broker_server, order_for(first, more))
        assert watch.until(lambda: watch.entry("bank-a").standing == "plan_refused")
        assert watch.until(lambda: watch.entry("bank-b").standing_plan == more.hash)
        for worker in workers:
            worker.__exit__()
    assert watch.entry("bank-a").standing_limit == "max_epsilon"
    assert (watch.outcomes("bank-a"), watch.outcomes("bank-b")) == (aggregated(2), aggregated(3))


def worker_of(server, name, folder, max_epsilon):
    return Worker(server, name, folder, data=noisy_data(name), policy=Policy(max_epsilon=max_epsilon))


def noisy_data(name):
    return local_data(name, train=lambda model, *_: {"w": np.random.default_rng(1).normal(0, 1, 3).astype(np.float32)})


def aggregated(count):
    return [(number, "aggregated") for number in range(1, count + 1)]


def test_a_key_is_changed_by_its_name_and_its_value_is_written_as_in_toml():
    wanted = changed(
        PLAN, ["aggregation.staleness.function=constant", "local.updates=40", "defence.norm_cap=none", "local.learning_rate=2"]
    )
    assert list(differences(PLAN, wanted)) == [
        'aggregation.staleness.function: "polynomial" -> "constant"',
        "defence.norm_cap: 3.0 -> none",
        "local.learning_rate: 1.0 -> 2.0",
        "local.updates: 1000 -> 40",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("local.update=40", "a plan has no key 'local.update': did you mean local.updates?"),
        ("local=40", "local: Input should be a valid dictionary"),
        ("local.updates", "'local.updates' is not KEY=VALUE"),
        ("local.updates=many", "local.updates: Input should be a valid integer"),
        ("local.updates=0", "local.updates: Input should be greater than or equal to 1"),
        ("ending.patience=3", "target and patience go by a held-out figure; name it in metric"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence(text, sentence):
    with pytest.raises(SettingsError, match=re.escape(sentence)):
        changed(PLAN, [text])


@pytest.mark.rabbitmq
def test_the_operator_changes_a_founded_federation_s_plan_by_command(broker_folder, capsys):
    init(task="heart-disease", institution=["north"], folder=broker_folder, epsilon="none", journal="20MiB", rule="credit")
    rate = "aggregation.server_learning_rate=0.5"
    with closing(connected(broker_folder)) as operator, leading(broker_folder):
        watch = Watch(operator)
        first = watch.reader.lineage.plan
        give_one(broker_folder, watch, 1)
        capsys.readouterr()
        change([rate], folder=broker_folder, dry_run=True)
        assert capsys.readouterr().out == "aggregation.server_learning_rate: 1.0 -> 0.5\n"
        change([rate], folder=broker_folder, yes=True)
        assert re.search(r"the plan [0-9a-f]{12} is in force from version 1 on", capsys.readouterr().out)
        assert watch.until(lambda: watch.reader.lineage.plan != first)
        give_one(broker_folder, watch, 2)
    show(broker_folder)
    assert "aggregation.server_learning_rate = 0.5\n" in capsys.readouterr().out
    verify(broker_folder)
    replay(version=None, without=None, out=None, folder=broker_folder)
    said = capsys.readouterr().out
    assert "versions 0 to 2: 2 updates folded again, each model equal to the bit" in said
    assert "weights: 2 of 2 are what the plan's rule gives" in said
    assert [float.fromhex(each.weight) for each in watch.settled] == [1.0, 0.5]


def connected(folder):
    return connect(load(folder).settings("operator"), name="test/operator")


def give_one(folder, watch, number):
    manifest = watch.head.manifest
    fields = {"run_id": manifest.run_id, "plan_hash": manifest.plan_hash, "num_examples": 100}
    delta = {name: np.full_like(each, number / 7) for name, each in watch.model().items()}
    give(folder, an_update("north", number, base=watch.head, **fields), delta)
    assert watch.until(lambda: watch.head.manifest.version == number)
