import numpy as np
import pytest

from aggregator_worker.defence import HALF_A_STRIKE, KEPT_LENGTHS, ValidationGate, Window, scale_of, struck
from aggregator_worker.statements import Length
from shared.messages import Entry, Outcome
from shared.plan import Defence
from tests.builders import array

FAST, SLOW, SMALL, OTHER = "fa" * 8, "51" * 8, "5a" * 8, "07" * 8
CAP = Defence(norm_cap=3.0)


def window(**lengths: list[float]) -> Window:
    """Lengths without noise, by institution."""
    made = Window()
    for name, norms in lengths.items():
        for norm in norms:
            made = made.with_length(name, Length(norm, norm))
    return made


def scale(norm: float, among: Window, defence: Defence = CAP) -> float:
    return scale_of(Length(norm, norm), among, defence)


def test_an_update_of_up_to_three_times_the_usual_length_is_left_as_it_is_and_a_longer_one_is_made_as_long():
    usual = window(a=[1, 2, 3], b=[2, 2, 2], c=[2, 2])
    assert scale(6.0, usual) == 1.0
    assert scale(12.0, usual) == 0.5
    assert scale(120.0, usual) == float(np.float32(0.05)) != 0.05, "a float32 number: a product with another is exact"


@pytest.mark.parametrize(
    "known",
    [
        window(a=[1, 1, 1], b=[1, 1], c=[1, 1]),
        window(a=[1] * 20, b=[1] * 20),
        Window(),
    ],
    ids=["seven lengths", "two institutions", "none"],
)
def test_nothing_is_capped_before_eight_lengths_of_three_institutions_are_known(known):
    assert scale(1e6, known) == 1.0


def test_a_plan_without_a_cap_caps_nothing():
    usual = window(a=[1, 1, 1], b=[1, 1, 1], c=[1, 1])
    assert scale(1e6, usual, Defence(norm_cap=None)) == 1.0
    assert scale(1e6, usual) < 1e-5


def test_among_updates_of_length_zero_nothing_is_capped():
    assert scale(5.0, window(a=[0, 0, 0], b=[0, 0, 0], c=[0, 0, 0])) == 1.0


def test_an_institution_that_is_a_thousand_times_as_fast_has_one_vote_and_pushes_nobody_out():
    known = window(**{SLOW: [1.0], SMALL: [1.1], OTHER: [0.9]})
    for norm in np.geomspace(1.0, 1e6, 1000):
        known = known.with_length(FAST, Length(norm, norm))
    assert sum(map(len, known.lengths.values())) == KEPT_LENGTHS
    assert {name: len(kept) for name, kept in known.lengths.items()} == {SLOW: 1, SMALL: 1, OTHER: 1, FAST: 47}
    assert scale(1e6, known) == np.float32(3 * 1.05 / 1e6)  # the median of 0.9, 1, 1.1 and what the fast one gives is 1.05


def test_an_institution_with_ever_shorter_updates_does_not_shorten_the_others():
    known = window(**{SLOW: [1.0], SMALL: [1.1], OTHER: [0.9]})
    for norm in np.geomspace(1.0, 1e-6, 1000):
        known = known.with_length(FAST, Length(norm, norm))
    assert scale(2.8, known) == 1.0  # 0.95 is usual


def test_an_honest_change_of_all_is_followed_although_it_is_capped_at_first():
    known = window(a=[1, 1, 1], b=[1, 1, 1], c=[1, 1, 1])
    assert scale(10.0, known) == np.float32(0.3)
    for _ in range(4):
        for name in "abc":
            known = known.with_length(name, Length(10.0, 10.0))
    assert scale(10.0, known) == 1.0


def test_more_institutions_than_the_window_holds_are_judged_by_the_last_ones():
    known = window(**{f"{number:016x}": [1.0 if number < 10 else 2.0] for number in range(60)})
    assert sum(map(len, known.lengths.values())) == KEPT_LENGTHS
    assert set(known.lengths.values()) == {(Length(2.0, 2.0),)}


def test_who_has_left_has_no_vote():
    known = window(a=[1, 1, 1], b=[1, 1, 1], c=[9, 9], d=[9, 9], e=[9, 9])
    assert scale(9.0, known.without("e")) == 1.0  # 5, between 1 and 9
    assert scale(9.0, known.without("e").without("d")) == np.float32(3 / 9)


def test_neither_a_small_institution_nor_a_large_one_is_capped_for_its_size():
    known = Window()
    for name in ("a", "b", "c", "d"):  # of the same size: norm 1, twice as long as their noise
        for _ in range(3):
            known = known.with_length(name, Length(1.0, 2.0))
    assert scale_of(Length(10.0, 2.0), known, CAP) == 1.0, "a tenth of the data: ten times the noise, and the same in it"
    assert scale_of(Length(1.0, 20.0), known, CAP) == 1.0, "ten times the data: a tenth of the noise, and as long"
    assert scale_of(Length(20.0, 40.0), known, CAP) == np.float32(3 / 20)


def test_a_window_comes_back_from_its_text_and_decides_the_same():
    known = Window()
    rng = np.random.default_rng(3)
    for place in rng.integers(0, 9, 200):
        known = known.with_length(f"{place:016x}", Length(*map(float, rng.lognormal(0, 3, 2))))
    assert Window.parsed(known.text()) == known
    assert Window.parsed("") == Window()
    assert list(Window.parsed(known.text()).lengths) == list(known.lengths), "the order says whose length is dropped next"


def test_a_window_is_small_enough_for_every_manifest():
    known = window(**{f"{number:016x}": [1.234e-5] for number in range(60)})
    assert len(known.text()) < 2000


@pytest.mark.parametrize(
    ("outcomes", "strikes", "quarantined"),
    [
        (["rejected"], 2, False),
        (["rejected"] * 2, 4, False),
        (["rejected"] * 3, 6, True),
        (["rejected", "aggregated"], 1, False),
        (["rejected", "aggregated", "aggregated", "aggregated"], 0, False),
        (["rejected", "rejected", "aggregated", "rejected"], 5, False),
        (["rejected", "rejected", "aggregated", "rejected", "rejected"], 7, True),
        (["stale", "over_budget", "lost"] * 5, 0, False),
        (["rejected"] * 9, 6, True),
        (["rejected"] * 3 + ["aggregated"], 6, True),
    ],
)
def test_a_rejection_is_taken_back_by_two_updates_and_three_too_many_are_quarantine(
    outcomes: list[Outcome], strikes: int, quarantined: bool
):
    entry = Entry(incarnation=1)
    for outcome in outcomes:
        entry = struck(entry, outcome, Defence(strikes=3))
    assert (entry.strikes, entry.quarantined) == (strikes, quarantined)


def test_a_rejection_for_little_is_half_a_strike_so_that_six_in_a_row_are_quarantine():
    entry = Entry(incarnation=1)
    for number in range(1, 7):
        entry = struck(entry, "rejected", Defence(strikes=3), strike=HALF_A_STRIKE)
        assert (entry.strikes, entry.quarantined) == (number, number == 6)


def test_without_strikes_nobody_is_put_into_quarantine():
    entry = Entry(incarnation=1)
    for _ in range(20):
        entry = struck(entry, "rejected", Defence(strikes=None))
    assert (entry.strikes, entry.quarantined) == (0, False)


class Rows:
    """Held-out rows whose log loss is the first number of the model; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def log_loss(self, model):
        self.asked += 1
        return float(model["w"][0])


def fault(gate: ValidationGate, model: float, delta: float, factor: float = 1.0) -> str | None:
    found = gate.fault({"w": array(model)}, {"w": array(delta)}, factor, 0.01)
    return found and found.reason


def test_an_update_passes_the_gate_where_its_own_weighed_step_costs_no_more_than_the_tolerance():
    gate = ValidationGate(Rows().log_loss)
    assert fault(gate, 1.0, -0.5) is None
    assert fault(gate, 1.0, 0.009) is None
    assert fault(gate, 1.0, 0.09, 0.1) is None
    assert fault(gate, 1.0, 0.011) == "it would raise the log loss on the operator's rows from 1.0000 to 1.0110"
    assert fault(gate, 1.0, 0.11, 0.1) is not None


@pytest.mark.parametrize(("delta", "strike"), [(0.011, 1), (0.0149, 1), (0.0151, 2), (5.0, 2), (float("nan"), 2)])
def test_half_a_strike_is_what_misses_the_tolerance_by_no_more_than_half_of_it(delta: float, strike: int):
    found = ValidationGate(Rows().log_loss).fault({"w": array(1.0)}, {"w": array(delta)}, 1.0, 0.01)
    assert found is not None
    assert found.strike == strike


def test_the_model_stays_as_it_was_when_an_update_is_judged():
    model = {"w": array(1.0)}
    ValidationGate(Rows().log_loss).fault(model, {"w": array(5.0)}, 1.0, 0.01)
    assert model["w"][0] == 1.0


def test_the_present_model_is_evaluated_once():
    rows = Rows()
    gate = ValidationGate(rows.log_loss)
    assert fault(gate, 1.0, -0.5) is None
    assert rows.asked == 2
    gate.folded(as_judged=True)
    assert fault(gate, 0.5, 0.02) is not None, "0.5 is what the model is now known to have"
    assert rows.asked == 3
    assert fault(gate, 0.5, 0.005) is None, "after a rejection the model is what it was"
    assert rows.asked == 4
    gate.folded(as_judged=False)
    fault(gate, 0.7, 0.0)
    assert rows.asked == 6
    gate.forget()
    fault(gate, 0.2, 0.0)
    assert rows.asked == 8


def test_a_model_that_is_no_longer_finite_does_not_pass():
    gate = ValidationGate(lambda model: 0.5 if model["w"][0] == 0 else float("nan"))
    assert fault(gate, 0.0, 1.0) == "it would raise the log loss on the operator's rows from 0.5000 to nan"


def test_where_the_log_loss_is_not_to_be_had_everything_passes():
    assert fault(ValidationGate(lambda model: None), 0.0, 1e9) is None
    assert fault(ValidationGate(lambda model: float("nan")), 0.0, 1e9) is None, "a broken model must not reject its repair"
