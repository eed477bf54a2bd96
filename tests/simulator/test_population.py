from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import SettingsError
from simulator.population import Population, divided, draw, random_of, read_scenario, sizes, usual_seconds
from simulator.scenario import Dropout, Scenario, Size, Speed, parse_scenario
from simulator.scenario import Population as PopulationKeys
from simulator.timing import DrawnTiming

TASK = """
name = "t"
kind = "binary"
{person}
[label]
column = "y"
positive = [1]
[[numeric]]
columns = "a"
minimum = 0
maximum = 100
[model]
type = "logistic"
"""


def scenario(population: str = "", *, seed: int = 0, synthetic: str = "inputs = 5", institutions: int = 6) -> Scenario:
    text = f'name = "s"\nseed = {seed}\n[synthetic]\n{synthetic}\n[population]\ninstitutions = {institutions}\n{population}'
    return parse_scenario(f"{text}\n[ending]\nupdates = 1", source="s.toml")


def rows_of(found: Population) -> list[bytes]:
    return [each.training.features.tobytes() + each.training.labels.tobytes() for each in found.institutions]


def table(folder: Path, *, persons: bool = False, institutions: int = 3) -> Path:
    """100 rows, a tenth of them positive; with persons, four rows each."""
    (folder / "task.toml").write_text(TASK.format(person='person = "who"' if persons else ""))
    rows = [f"{row // 4},{row},{int(row % 40 < 4)}" for row in range(100)]
    (folder / "rows.csv").write_text("\n".join(["who,a,y", *rows]))
    text = 'name = "s"\n[table]\ntask_file = "task.toml"\nrows_file = "rows.csv"\n'
    file = folder / "scenario.toml"
    file.write_text(f"{text}[population]\ninstitutions = {institutions}\n[ending]\nupdates = 1")
    return file


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    keys = 'dirichlet_alpha = 0.5\nsize = { distribution = "lognormal" }'

    first, again, other = (rows_of(draw(scenario(keys, seed=seed))) for seed in (3, 3, 4))

    assert first == again
    assert first != other


def test_other_speeds_leave_the_rows_as_they_are() -> None:
    plain, fast = draw(scenario()), draw(scenario('speed = { distribution = "lognormal" }'))

    assert rows_of(plain) == rows_of(fast)
    assert {each.usual_seconds for each in plain.institutions} == {1.0}
    assert len({each.usual_seconds for each in fast.institutions}) == 6


@settings(max_examples=60, deadline=None)
@given(
    classes=st.lists(st.integers(0, 3), min_size=8, max_size=60),
    institutions=st.integers(1, 8),
    alpha=st.sampled_from([None, 0.01, 1.0, 100.0]),
    seed=st.integers(0, 2**32),
)
def test_every_unit_is_somebodys_and_nobody_has_none(
    classes: list[int], institutions: int, alpha: float | None, seed: int
) -> None:
    random = np.random.default_rng(seed)

    parts = divided(np.array(classes), sizes(Size(distribution="lognormal"), institutions, random), alpha, random)

    assert sorted(np.concatenate(parts).tolist()) == list(range(len(classes)))
    assert all(len(part) for part in parts)
    assert len(parts) == institutions


@pytest.mark.parametrize(("alpha", "squares"), [(0.5, 1.5 / 6), (10.0, 11.0 / 101)])
def test_shares_of_a_class_are_as_uneven_as_a_dirichlet_draws(alpha: float, squares: float) -> None:
    # E[sum of squared shares] of a symmetric Dirichlet of N parts is (alpha + 1) / (N alpha + 1)
    classes = np.repeat(np.arange(400), 500)

    parts = divided(classes, np.full(10, 0.1), alpha, np.random.default_rng(0))

    shares = np.array([np.bincount(classes[part], minlength=400) for part in parts]) / 500
    assert np.square(shares).sum(0).mean() == pytest.approx(squares, rel=0.05)


def test_without_alpha_everybody_gets_its_part_of_the_rows() -> None:
    size = Size(distribution="list", relative=(1.0, 3.0))

    parts = divided(np.zeros(80, dtype=np.int64), sizes(size, 4, np.random.default_rng(0)), None, np.random.default_rng(0))

    assert [len(part) for part in parts] == [10, 30, 10, 30]


def test_half_of_the_institutions_are_ten_times_slower() -> None:
    seconds = usual_seconds(Speed(distribution="ratio", seconds=2.0), 8, np.random.default_rng(0))

    assert sorted(seconds.tolist()) == [2.0] * 4 + [20.0] * 4


def test_a_list_of_speeds_is_gone_through_again() -> None:
    speed = Speed(distribution="list", each_seconds=(0.5, 2.0))

    assert usual_seconds(speed, 5, np.random.default_rng(0)).tolist() == [0.5, 2.0, 0.5, 2.0, 0.5]


def test_speeds_have_the_median_and_the_mean_that_are_asked_for() -> None:
    lognormal = usual_seconds(Speed(distribution="lognormal", seconds=3.0, sigma=1.0), 40_000, np.random.default_rng(0))
    exponential = usual_seconds(Speed(distribution="exponential", seconds=3.0), 40_000, np.random.default_rng(0))

    assert np.median(lognormal) == pytest.approx(3.0, rel=0.02)
    assert lognormal.mean() == pytest.approx(3.0 * np.exp(0.5), rel=0.05)
    assert exponential.mean() == pytest.approx(3.0, rel=0.02)


def test_synthetic_classes_are_as_far_apart_as_the_scenario_says() -> None:
    found = draw(scenario(synthetic="inputs = 400\nseparation = 6.0\nrows_each = 2000", institutions=1))

    (institution,) = found.institutions
    means = [institution.training.features[institution.training.labels == number].mean(0) for number in (0.0, 1.0)]
    assert np.linalg.norm(means[0] - means[1]) * 4.0 == pytest.approx(6.0, rel=0.15)  # scaled: 4 deviations are 1


def test_a_shift_moves_all_rows_of_an_institution_alike() -> None:
    plain, shifted = (draw(scenario(synthetic=f"inputs = 2\nseparation = 0.1\nshift = {shift}")) for shift in (0.0, 0.2))

    ways = [
        after.training.features - before.training.features for before, after in zip(*map(_places, (plain, shifted)), strict=True)
    ]

    inside = [way[np.abs(way - np.median(way, 0)).max(1) < 1e-6] for way in ways]  # others met the end of the range
    assert all(len(part) > 0.9 * len(way) for part, way in zip(inside, ways, strict=True))
    assert len({number for way in ways for number in np.median(way, 0).round(5).tolist()}) == 6 * 2  # each feature its own way


def _places(found: Population) -> tuple[object, ...]:
    return found.institutions


def test_poison_is_sent_by_as_many_as_the_scenario_says() -> None:
    found = draw(scenario("poison = { institutions = 2 }"))

    assert sum(each.poisoned for each in found.institutions) == 2


def test_a_table_is_divided_with_as_much_of_each_class_in_the_test(tmp_path: Path) -> None:
    found = draw(read_scenario(table(tmp_path)))

    assert (len(found.held_out), int(found.held_out.labels.sum())) == (20, 2)
    values = np.concatenate([found.held_out.features, *(each.training.features for each in found.institutions)])[:, 0]
    assert sorted(np.rint((values + 1) * 50).astype(int).tolist()) == list(range(100))


def test_all_records_of_a_person_go_to_one_place(tmp_path: Path) -> None:
    found = draw(read_scenario(table(tmp_path, persons=True)))

    places = [*(each.training for each in found.institutions), found.held_out]
    people = [set((np.rint((place.features[:, 0] + 1) * 50) // 4).astype(int).tolist()) for place in places]
    assert sum(map(len, people)) == len(set.union(*people)) == 25
    assert all(len(place) == 4 * len(those) for place, those in zip(places, people, strict=True))
    assert sum(each.training.units for each in found.institutions) == 25 - len(found.held_out) // 4


def test_more_institutions_than_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="81, with 80 rows to train on"):
        draw(read_scenario(table(tmp_path, institutions=81)))


def test_rows_of_the_gate_judge_nothing_else() -> None:
    text = scenario(synthetic="inputs = 5\ntest_rows = 50").model_dump_json()
    with_gate = Scenario.model_validate_json(text.replace('"gate_rows":0', '"gate_rows":20'))

    found = draw(with_gate)

    assert found.gate is not None
    rows = {row.tobytes() for row in np.concatenate([found.gate.features, found.held_out.features])}
    assert (len(found.gate), len(found.held_out), len(rows)) == (20, 30, 50)


def timing(dropout: Dropout, *, institutions: int = 1, **speed: object) -> DrawnTiming:
    keys = PopulationKeys(institutions=institutions, dropout=dropout, speed=Speed(variation="none").model_copy(update=speed))
    return DrawnTiming(keys, [1.0] * institutions, seed=0)


def test_who_leaves_is_gone_for_good_and_its_training_is_lost() -> None:
    found = timing(Dropout(leave_share=1.0, leave_after_seconds=2.5))

    assert found.end_of(0, 1.0) == (2.0, True)
    assert found.end_of(0, 2.0) == (2.5, False)
    assert found.there_from(0, 2.4) == 2.4
    assert found.there_from(0, 2.5) is None


def test_a_share_of_the_institutions_leaves() -> None:
    found = timing(Dropout(leave_share=0.25, leave_after_seconds=1.0), institutions=20)

    assert sum(found.there_from(place, 5.0) is None for place in range(20)) == 5


def test_who_comes_and_goes_is_there_for_its_part_of_the_time() -> None:
    found = timing(Dropout(away_share=1.0, there_seconds=3.0, away_seconds=1.0))

    looks = np.arange(0.0, 20_000.0, 0.5)
    there = [found.there_from(0, float(look)) == look for look in looks]
    assert np.mean(there) == pytest.approx(0.75, abs=0.02)


def test_a_training_that_the_institution_leaves_behind_is_lost_when_it_goes() -> None:
    found = timing(Dropout(away_share=1.0, there_seconds=0.5, away_seconds=1.0))

    ends = []
    now = 0.0
    for _ in range(2000):
        now = found.there_from(0, now) or 0.0
        assert found.there_from(0, now) == now
        ends.append(found.end_of(0, now))
        now = ends[-1].seconds
    # exponential with mean 0.5: a training of one second is finished with probability exp(-2)
    assert np.mean([end.arrives for end in ends]) == pytest.approx(np.exp(-2.0), abs=0.025)


@pytest.mark.parametrize(
    ("variation", "spread", "mean", "deviation"),
    [("uniform", 0.3, 1.0, 0.3 / np.sqrt(3)), ("exponential", 0.0, 1.0, 1.0), ("none", 0.0, 1.0, 0.0)],
)
def test_trainings_vary_around_what_is_usual(variation: str, spread: float, mean: float, deviation: float) -> None:
    found = timing(Dropout(), variation=variation, spread=spread)

    durations = [found.end_of(0, 0.0).seconds for _ in range(20_000)]

    assert np.mean(durations) == pytest.approx(mean, abs=0.025)
    assert np.std(durations) == pytest.approx(deviation, abs=0.025)


def test_streams_of_different_purposes_and_places_differ() -> None:
    draws = {float(random_of(*key).random()) for key in ((0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1), (0, "a", 0, 1))}

    assert len(draws) == 6
