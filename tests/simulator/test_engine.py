from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from client_worker.mechanism import LocalTraining
from client_worker.training import LocalTrainer
from shared.errors import SettingsError
from shared.parameters import Array
from shared.tasks.models import initial_parameters
from simulator import trainings
from simulator.engine import Prepared, compare, prepare, run
from simulator.population import synthetic_task
from simulator.results import Contribution, Point, RunResult, data_share, weight_share
from simulator.scenario import Scenario, Synthetic, parse_scenario
from simulator.timing import End
from simulator.vectorised import BatchTrainer, Job


def scenario(
    plan: str = "",
    *,
    institutions: int = 3,
    speed: str = 'variation = "none"',
    population: str = "",
    ending: str = "updates = 12",
    synthetic: str = "inputs = 4\nrows_each = 20\ntest_rows = 60",
    every_updates: int = 4,
    compared: str = "",
    seed: int = 0,
) -> Scenario:
    text = f"""
name = "s"
seed = {seed}
[synthetic]
{synthetic}
[population]
institutions = {institutions}
{population}
[population.speed]
{speed}
[plan.local]
steps = 2
{plan}
[ending]
{ending}
[evaluation]
every_updates = {every_updates}
{compared}
"""
    return parse_scenario(text, source="s.toml")


class Zeros:
    """Trains nothing, and counts what it is asked for."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def deltas(self, jobs: Sequence[Job]) -> list[dict[str, Array]]:
        self.batches.append([job.place for job in jobs])
        return [{name: np.zeros_like(array) for name, array in job.base.items()} for job in jobs]


def result(wanted: Scenario, *, trainer: BatchTrainer | None = None) -> RunResult:
    return run(prepare(wanted), wanted.variants[0], trainer=trainer)


def bits(found: RunResult) -> bytes:
    return b"".join(array.tobytes() for array in found.parameters.values())


def seconds_of(found: RunResult) -> list[float]:
    return [point.seconds for point in found.points]


def test_updates_arrive_by_their_duration_and_nobody_waits() -> None:
    wanted = scenario(
        institutions=2, speed='variation = "none"\ndistribution = "list"\neach_seconds = [1.0, 2.5]', every_updates=1
    )

    found = result(wanted.model_copy(update={"ending": wanted.ending.model_copy(update={"updates": 7})}), trainer=Zeros())

    assert seconds_of(found) == [0.0, 1.0, 2.0, 2.5, 3.0, 4.0, 5.0, 5.0]
    assert [point.version for point in found.points] == list(range(8))
    assert [each.updates for each in found.contributions] == [5, 2]
    assert [each.usual_seconds for each in found.contributions] == [1.0, 2.5]
    # the fast one's bases are versions 0 1 2 4 5, folded into 0 1 3 4 5; the slow one's 0 and 3, folded into 2 and 6
    assert [each.mean_staleness for each in found.contributions] == [pytest.approx(1 / 5), pytest.approx(2.5)]


@pytest.mark.parametrize("plan", ["", "updates = 4\n[plan.privacy]\nepsilon = 8.0"])
def test_the_same_scenario_gives_the_same_bits_and_another_seed_others(plan: str) -> None:
    keys = "dirichlet_alpha = 0.5\ndropout = { away_share = 0.5, there_seconds = 2.0, away_seconds = 1.0 }"
    wanted = [scenario(plan, population=keys, speed='distribution = "lognormal"', seed=seed) for seed in (1, 1, 2)]

    first, again, other = map(result, wanted)

    assert bits(first) == bits(again)
    assert first.points == again.points
    assert first.contributions == again.contributions
    assert bits(first) != bits(other)


def test_the_plans_of_a_scenario_have_the_same_institutions_and_speeds() -> None:
    compared = '[[compare]]\nname = "a"\n[[compare]]\nname = "b"\naggregation = { rule = "fedasync" }'

    found = compare(scenario(speed='distribution = "lognormal"', compared=compared))

    assert [(each.name, each.rule) for each in found] == [("a", "credit"), ("b", "fedasync")]
    assert seconds_of(found[0]) == seconds_of(found[1])
    assert [each.examples for each in found[0].contributions] == [each.examples for each in found[1].contributions]
    assert bits(found[0]) != bits(found[1])


def test_one_full_buffer_is_federated_averaging() -> None:
    plan = '[plan.aggregation]\nrule = "fedbuff"\nbuffer_size = 3\nexact_buffer = true\n[plan.defence]\nnorm_cap = false'
    size = 'size = { distribution = "list", relative = [1.0, 2.0, 3.0] }'
    wanted = scenario("sample_rate = 1.0\n" + plan, ending="versions = 1", population=size)
    prepared = prepare(wanted)
    spec, members = prepared.population.spec, prepared.population.institutions

    found = run(prepared, wanted.variants[0])

    base, trainer = initial_parameters(spec, 0), LocalTrainer(spec, device="cpu", private=False)
    rows = [len(each.training) for each in members]
    assert rows == [10, 20, 30]
    expected = {name: array.astype(np.float64) for name, array in base.items()}
    for count, member in zip(rows, members, strict=True):
        local = LocalTraining(
            mechanism="none",
            steps=2,
            sample_rate=1.0,
            expected_rows=float(count),
            learning_rate=1.0,
            clipping_norm=1.0,
            noise_multiplier=None,
        )
        for name, array in trainer.local_update(base, member.training, local).items():
            expected[name] += count / 60 * array
    for name, array in found.parameters.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-6)


def test_a_synchronous_round_takes_as_long_as_its_slowest() -> None:
    plan = "[plan.aggregation]\nbuffer_size = 3\nexact_buffer = true\nmax_wait_seconds = 1000.0"
    speed = 'variation = "none"\ndistribution = "list"\neach_seconds = [1.0, 2.0, 7.0]'

    found = result(scenario(plan, speed=speed, every_updates=1), trainer=Zeros())

    assert [(point.version, point.seconds) for point in found.points] == [(0, 0.0), (1, 7.0), (2, 14.0), (3, 21.0), (4, 28.0)]
    assert {each.mean_staleness for each in found.contributions} == {0.0}


@pytest.mark.parametrize(("exact", "versions"), [("false", 3), ("true", 2)])
def test_what_is_left_in_the_buffer_at_the_end_makes_a_version_unless_the_plan_wants_exactly_k(exact: str, versions: int) -> None:
    plan = f"[plan.aggregation]\nbuffer_size = 2\nexact_buffer = {exact}"

    found = result(scenario(plan, institutions=4, ending="updates = 5"), trainer=Zeros())

    assert (found.final.version, found.final.updates) == (versions, 5)


def test_nothing_waits_longer_than_the_plan_allows() -> None:
    plan = "[plan.aggregation]\nbuffer_size = 3\nexact_buffer = true\nmax_wait_seconds = 2.0"
    speed = 'variation = "none"\ndistribution = "list"\neach_seconds = [1.0, 1.5, 7.0]'

    found = result(scenario(plan, speed=speed, every_updates=1, ending="versions = 2"), trainer=Zeros())

    # the first two wait since 1.0 and begin anew at 3.0; those updates come at 4.0 and 4.5, and wait until 6.0
    assert [(point.version, point.seconds, point.updates) for point in found.points] == [(0, 0.0, 0), (1, 3.0, 2), (2, 6.0, 4)]


def _throughput(plan: str, updates: int) -> float:
    speed = 'distribution = "fixed"\nvariation = "exponential"'
    wanted = scenario(
        plan,
        institutions=10,
        speed=speed,
        ending=f"updates = {updates}",
        every_updates=10**9,
        synthetic="inputs = 2\nrows_each = 2",
    )
    found = result(wanted, trainer=Zeros())
    assert found.outcomes == {"aggregated": updates}
    return found.final.updates / found.final.seconds


def test_asynchronous_throughput_is_the_harmonic_number_times_the_synchronous() -> None:
    # A10: i.i.d. exponential durations of mean 1: N updates a second against N in the mean of the largest of N, which is H_N
    exact = '[plan.aggregation]\nrule = "fedbuff"\nbuffer_size = 10\nexact_buffer = true\nmax_wait_seconds = 1e6'

    ratio = _throughput("", 4000) / _throughput(exact, 8000)

    assert ratio == pytest.approx(2.93, rel=0.05)


@pytest.mark.parametrize(("rule", "share", "within"), [("credit", 0.5, 0.03), ("fedasync", 1 / 11, 0.01)])
def test_the_slow_half_has_its_weight_by_credit_and_by_speed_otherwise(rule: str, share: float, within: float) -> None:
    # ten of twenty are ten times slower, and give one update in eleven
    plan = f'[plan.aggregation]\nrule = "{rule}"\nstaleness = {{ function = "constant" }}'
    wanted = scenario(
        plan,
        institutions=20,
        speed='distribution = "ratio"',
        ending="updates = 2200",
        every_updates=10**9,
        synthetic="inputs = 2\nrows_each = 2",
    )

    found = result(wanted, trainer=Zeros())

    assert weight_share(found.contributions, slower_than_seconds=5.0) == pytest.approx(share, abs=within)
    assert data_share(found.contributions, slower_than_seconds=5.0) == pytest.approx(0.5)


def test_deltas_are_computed_for_many_institutions_at_once_in_the_order_of_their_arrival() -> None:
    speed = 'variation = "none"\ndistribution = "list"\neach_seconds = [3.0, 1.0, 2.5]'
    trainer = Zeros()

    result(scenario(speed=speed, ending="updates = 3"), trainer=trainer)

    # at 1.0 all three; at 2.0 the fast one's second
    assert trainer.batches == [[1, 2, 0], [1]]


def test_what_is_due_before_the_deltas_in_hand_is_computed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainings, "NUMBERS_AHEAD", 2)  # two deltas of one number
    trainer, base = Zeros(), {"bias": np.zeros(1, np.float32)}
    settings = LocalTraining(
        mechanism="none", steps=1, sample_rate=1.0, expected_rows=1.0, learning_rate=1.0, clipping_norm=1.0, noise_multiplier=None
    )
    under_way = trainings.Trainings(trainer, lambda _place: settings)
    for place, arrives_at in enumerate((1.0, 5.0, 6.0)):
        under_way.begin(place, 0, version=place, model=base, arrives_at=arrives_at)

    assert under_way.arrive(0)[0] == 0
    for place, arrives_at in ((0, 2.0), (3, 3.0)):
        under_way.begin(place, 1, version=7, model=base, arrives_at=arrives_at)
    assert under_way.oldest_base == 1
    assert under_way.arrive(0)[0] == 7

    assert trainer.batches == [[0, 1], [0, 3]]


def test_how_many_are_computed_at_once_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = scenario("sample_rate = 0.5", institutions=6, speed='distribution = "lognormal"', ending="updates = 40")
    together = result(wanted)
    monkeypatch.setattr(trainings, "NUMBERS_AHEAD", 1)

    apart = result(wanted)

    assert seconds_of(together) == seconds_of(apart)
    for name, array in together.parameters.items():
        np.testing.assert_allclose(array, apart.parameters[name], atol=1e-5)


def test_a_federation_learns_what_separates_the_classes() -> None:
    wanted = scenario(
        "sample_rate = 0.5",
        institutions=8,
        population="dirichlet_alpha = 0.5",
        ending="updates = 160",
        synthetic="inputs = 100\nrows_each = 200\ntest_rows = 2000\nseparation = 4.0",
        every_updates=80,
    )

    found = result(wanted)

    # the best that is possible is the normal distribution's part below half the distance of the means, .977
    first, last = (found.points[place].metrics["accuracy"] or 0.0 for place in (0, -1))
    assert first < 0.7
    assert 0.93 < last < 0.99


def test_who_leaves_gives_nothing_more_and_the_others_go_on() -> None:
    wanted = scenario(
        institutions=4,
        population="dropout = { leave_share = 0.5, leave_after_seconds = 2.5 }",
        ending="seconds = 6.5",
        every_updates=100,
    )

    found = result(wanted, trainer=Zeros())

    assert sorted(each.updates for each in found.contributions) == [2, 2, 6, 6]
    assert found.ended == "6.5 virtual seconds are over"
    assert found.final.seconds == 6.5


def test_a_run_without_anybody_left_ends_and_says_so() -> None:
    wanted = scenario(population="dropout = { leave_share = 1.0, leave_after_seconds = 2.5 }")

    found = result(wanted, trainer=Zeros())

    assert (found.final.updates, found.ended) == (6, "no institution has anything more to give")


def test_an_institution_gives_no_more_than_its_planned_updates() -> None:
    found = result(scenario("updates = 2"), trainer=Zeros())

    assert [each.updates for each in found.contributions] == [2, 2, 2]
    assert found.ended == "no institution has anything more to give"


def test_planned_updates_are_spread_over_the_horizon() -> None:
    found = result(scenario("updates = 5\nhorizon_seconds = 100.0", institutions=1), trainer=Zeros())

    assert found.final.updates == 5
    assert 90.0 < found.final.seconds < 111.0  # the last begins at the horizon, give or take a tenth of the last step


def test_noise_follows_from_the_epsilon_and_every_update_is_admitted() -> None:
    plan = "updates = 3\n[plan.privacy]\nepsilon = 3.0\n[plan.defence]\nnorm_cap = false"

    found = result(scenario(plan))

    assert found.noise_multiplier is not None
    assert 0.5 < found.noise_multiplier < 5.0
    assert found.outcomes == {"aggregated": 9}


def test_bytes_are_those_of_the_messages() -> None:
    whole, bytewise = (
        result(_with_encoding(scenario(institutions=1, synthetic="inputs = 1000\nrows_each = 5"), encoding))
        for encoding in ("float32", "int8")
    )

    assert whole.final.bytes_up / 12 == pytest.approx(4 * 1001, rel=0.2)
    assert bytewise.final.bytes_up / 12 == pytest.approx(1001, rel=0.6)
    assert whole.final.bytes_up - bytewise.final.bytes_up == pytest.approx(12 * 3 * 1001, rel=0.02)
    assert whole.final.bytes_down / 12 == pytest.approx(4 * 1001, rel=0.1)  # the last model is fetched by nobody


def _with_encoding(wanted: Scenario, encoding: str) -> Scenario:
    return wanted.model_copy(update={"plan": wanted.plan.model_copy(update={"update_encoding": encoding})})


class Overflowing(Zeros):
    """The first institution's numbers are not finite."""

    def deltas(self, jobs: Sequence[Job]) -> list[dict[str, Array]]:
        return [delta if job.place else {} for job, delta in zip(jobs, super().deltas(jobs), strict=True)]


def test_who_has_no_finite_numbers_publishes_nothing_and_trains_no_more() -> None:
    found = result(scenario(), trainer=Overflowing())

    assert found.outcomes == {"aggregated": 12, "not finite": 1}
    assert [each.updates for each in found.contributions] == [0, 6, 6]


class Shouting(Zeros):
    """The first institution's deltas are not finite, and it sends them all the same."""

    def deltas(self, jobs: Sequence[Job]) -> list[dict[str, Array]]:
        found = super().deltas(jobs)
        for job, delta in zip(jobs, found, strict=True):
            delta["bias"] += np.float32(0.0 if job.place else np.inf)
        return found


def test_who_is_refused_pauses_before_it_trains_on_the_same_model_again() -> None:
    plan = "[plan.defence]\nstrikes = false"

    once, found = (
        result(scenario(plan, institutions=1, ending=f"seconds = {seconds}"), trainer=Shouting()) for seconds in (1.5, 16.5)
    )

    # trainings of a second begin at 0, 2, 6 and 14: two seconds after the first beginning, then four, then eight
    assert found.outcomes == {"rejected": 4}
    assert found.final.bytes_down == once.final.bytes_down > 0  # one model, fetched once


def test_a_version_ends_a_pause() -> None:
    speed = 'variation = "none"\ndistribution = "list"\neach_seconds = [1.0, 3.5]'
    wanted = scenario("[plan.defence]\nstrikes = false", institutions=2, speed=speed, ending="seconds = 7.2")

    found = result(wanted, trainer=Shouting())

    # refused at 1.0 and 3.0; the version of 3.5 ends the pause: refused at 4.5, and at 6.5, two seconds and one more after 3.5
    assert [each.updates for each in found.contributions] == [4, 2]


def test_a_version_after_the_pause_begins_no_second_training() -> None:
    speed = 'variation = "none"\ndistribution = "list"\neach_seconds = [1.0, 2.5]'
    wanted = scenario("[plan.defence]\nstrikes = false", institutions=2, speed=speed, ending="seconds = 4.2")

    found = result(wanted, trainer=Shouting())

    # refused at 1.0, the pause is over at 2.0, refused at 3.0; the version of 2.5 came between, so it trains at once until 4.0
    assert [each.updates for each in found.contributions] == [3, 1]


def test_poison_is_what_the_poisoned_send() -> None:
    keys = "poison = { institutions = 1, factor = -1.0 }"
    settings = {"institutions": 1, "ending": "versions = 1"}
    plan = "[plan.defence]\nnorm_cap = false"

    honest, poisoned = result(scenario(plan, **settings)), result(scenario(plan, population=keys, **settings))

    assert [each.poisoned for each in poisoned.contributions] == [True]
    for name, array in honest.parameters.items():
        np.testing.assert_allclose(poisoned.parameters[name], -array, atol=1e-7)  # logistic: version 0 is 0


def test_the_gate_judges_by_rows_of_its_own() -> None:
    keys = "poison = { institutions = 1, factor = -30.0 }"
    wanted = scenario("learning_rate = 3.0", population=keys, synthetic="inputs = 4\nrows_each = 20\ntest_rows = 100")
    gated = wanted.model_copy(update={"evaluation": wanted.evaluation.model_copy(update={"gate_rows": 50})})

    without, with_gate = result(wanted), result(gated)

    assert without.outcomes.get("rejected", 0) == 0
    assert with_gate.outcomes["rejected"] > 0
    assert with_gate.contributions[[each.poisoned for each in with_gate.contributions].index(True)].aggregated == 0


def test_every_rule_runs() -> None:
    rules = ("credit", "fedasync", "fedbuff", "latest-model", "latest-update")
    compared = "\n".join(f'[[compare]]\nname = "{rule}"\naggregation = {{ rule = "{rule}" }}' for rule in rules)

    found = compare(
        scenario(institutions=4, compared=compared, speed='distribution = "ratio"', ending="updates = 60", every_updates=60)
    )

    assert [each.rule for each in found] == list(rules)
    assert all(each.outcomes == {"aggregated": 60} for each in found)
    assert all(sum(part.weight_share for part in each.contributions) == pytest.approx(1.0) for each in found)


class TwiceASecond:
    """A timing of one's own: half a second each, and the last institution is never there."""

    def there_from(self, place: int, now: float) -> float | None:
        return now if place < 2 else None

    def end_of(self, place: int, now: float) -> End:
        return End(now + 0.5, arrives=True)


def test_a_timing_of_ones_own_replaces_the_scenarios() -> None:
    wanted = scenario()

    found = run(prepare(wanted), wanted.variants[0], timing=TwiceASecond(), trainer=Zeros())

    assert [each.updates for each in found.contributions] == [6, 6, 0]
    assert found.final.seconds == 3.0


def test_a_folder_that_is_not_there_is_said() -> None:
    text = 'name = "s"\ndata_folder = "nowhere"\n[ending]\nupdates = 1'

    with pytest.raises(SettingsError, match="nowhere"):
        prepare(parse_scenario(text, source="s.toml"), Path("/"))


def _result(figures: Sequence[float | None], metric: str = "auc") -> RunResult:
    points = tuple(Point(float(n), n, n, 0, 0, {metric: figure}) for n, figure in enumerate(figures))
    return RunResult("s", "n", "credit", 1, metric, points, (), {}, "", None, {})


def test_a_target_is_reached_once_it_was_held_so_many_times_in_a_row() -> None:
    found = _result([0.5, 0.9, 0.7, 0.9, 0.95, None, 0.9, 0.9, 0.9])

    reached = [found.reached(0.9, evaluations=times) for times in (1, 2, 3, 4)]

    assert [None if point is None else point.version for point in reached] == [1, 4, 8, None]
    assert found.best.version == 4


def test_a_loss_is_reached_from_above() -> None:
    found = _result([0.9, 0.5, 0.4, 0.6], "log_loss")

    point = found.reached(0.5)
    assert point is not None
    assert (point.version, found.best.version) == (1, 2)


def test_a_scenario_that_is_prepared_once_serves_all_its_plans() -> None:
    wanted = scenario()
    prepared = prepare(wanted)

    first, again = run(prepared, wanted.variants[0]), run(prepared, wanted.variants[0])

    assert isinstance(prepared, Prepared)
    assert bits(first) == bits(again)
    assert isinstance(first.contributions[0], Contribution)
    assert synthetic_task(Synthetic(inputs=4)).hash == prepared.population.spec.hash
