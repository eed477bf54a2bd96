"""What one bank of eight can do to the others, with real local training and the aggregator's own core."""

from statistics import fmean

import numpy as np
import pytest

from benchmarks.poison import case_of, table
from benchmarks.poison_study import ATTACKERS, ATTACKS, HONEST, SHARES, Attack, Row, Trial, rows, trial

SEEDS = (0, 1, 2)


def a_trial(attack: str = "sign flip", defence: str = "all", seed: int = 0, **found: float) -> Trial:
    return Trial(attack, 0.35, defence, seed, **{"auc": 0.5, "log_loss": 0.7, **found})  # type: ignore[arg-type]


def test_seeds_are_averaged_and_the_worst_is_told():
    found = [a_trial(seed=0, auc=0.7, honest_rejected=0.1), a_trial(seed=1, auc=0.8), a_trial(defence="none", auc=0.6)]
    averaged, other = rows(found)
    assert (averaged.auc, averaged.worst_auc, averaged.honest_rejected) == (pytest.approx(0.75), 0.7, 0.05)
    assert (other.defence, other.auc) == ("none", 0.6)


def test_a_row_of_the_table_has_every_defence_and_what_honest_banks_lost():
    found = [Row("sign flip", 0.35, name, 0.5, 0.4, 0.03 * (name == "all"), 0.0, 1.0) for name in ("none", "cap", "gate", "all")]
    assert table(found).splitlines()[-1] == "| sign flip | 35% | 0.500 | 0.500 | 0.500 | 0.500 (3.0%) |"


def test_shares_of_the_banks_are_all_of_the_data_and_the_attackers_have_what_is_said():
    assert sum(SHARES) == pytest.approx(1.0)
    assert [SHARES[place] for place in ATTACKERS.values()] == list(ATTACKERS)


def named(name: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.name == name)


@pytest.mark.long
def test_with_all_defences_an_attack_costs_no_more_than_a_hundredth_of_auc_and_few_honest_updates():
    cases = {seed: case_of(seed) for seed in SEEDS}
    without = fmean(trial(case, HONEST, 0.35, "none", seed=seed).auc for seed, case in cases.items())
    assert without > 0.75
    for attack in (HONEST, named("sign flip"), named("sign flip x20")):
        for share in ATTACKERS:
            found = [trial(case, attack, share, "all", seed=seed) for seed, case in cases.items()]
            assert fmean(each.auc for each in found) >= without - 0.01, attack
            assert fmean(each.honest_rejected for each in found) < 0.10, attack


@pytest.mark.long
def test_without_defences_the_same_attack_ruins_the_model():
    attacked = trial(case_of(0), named("sign flip"), 0.35, "none", seed=0)
    assert attacked.attacker_aggregated == 1.0
    assert attacked.auc < 0.65


def test_banks_have_rows_of_their_share_and_gate_and_test_have_none_in_common():
    case = case_of(0)
    sizes = [len(rows_of) for rows_of in case.banks.values()]
    assert [round(size / sum(sizes), 2) for size in sizes] == list(SHARES)
    assert len(case.gate) == 300
    gate = {row.tobytes() for row in case.gate.features}
    shared = sum(row.tobytes() in gate for row in case.test.features)
    assert shared <= 1 + len(case.test) // 1000, "equal rows of different clients, at most"
    assert np.unique(case.gate.labels).tolist() == [0.0, 1.0]
