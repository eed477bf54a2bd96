from pathlib import Path
from statistics import fmean

import pytest

from operator_console.demo_data import prepare
from shared.tasks.metrics import evaluate
from shared.tasks.spec import Model
from simulator.baselines import trained_to_convergence
from simulator.epsilon_sweep import read_folder
from simulator.utility import STUDIES, Row, Study, Trial, rows, trials, verdicts

CREDIT, HEART = STUDIES


def found(study: Study, folder: Path, *, seed: int, speeds: str = "equal") -> list[Trial]:
    prepare(study.task, institutions=None, seed=seed, folder=folder, split=study.split)
    return list(trials(study, *read_folder(folder), seed=seed, speeds=speeds))


def row(epsilon: float | None, mean: float, lost: float) -> Row:
    return Row("equal", epsilon, None, mean, mean - 0.01, mean + 0.01, lost, lost + 0.01)


def test_a_row_has_mean_and_worst_over_seeds_and_what_each_seed_lost() -> None:
    done = [
        Trial("equal", None, 0, None, 0.80),
        Trial("equal", 3.0, 0, 5.0, 0.79),
        Trial("equal", None, 1, None, 0.70),
        Trial("equal", 3.0, 1, 5.0, 0.67),
    ]

    without_noise, noised = rows(done)

    assert (without_noise.mean, without_noise.least, without_noise.most, without_noise.lost) == (0.75, 0.70, 0.80, 0.0)
    assert (noised.epsilon, noised.noise_multiplier) == (3.0, 5.0)
    assert (noised.mean, noised.least, noised.most) == pytest.approx((0.73, 0.67, 0.79))
    assert (noised.lost, noised.most_lost) == pytest.approx((0.02, 0.03))


def test_a_target_is_about_the_mean_and_a_missed_one_is_told() -> None:
    study = Study("t", None, 1e-5, seeds=1, least={None: 0.80, 1.0: 0.75}, most_lost={3.0: 0.02})

    judged = verdicts(study, [row(None, 0.81, 0.0), row(3.0, 0.785, 0.025), row(1.0, 0.75, 0.06)])

    assert [(each.wanted, pytest.approx(each.found), each.met) for each in judged] == [
        (0.80, 0.81, True),
        (-0.02, -0.025, False),
        (0.75, 0.75, True),
    ]


def test_a_study_can_be_repeated_to_the_bit(tmp_path: Path) -> None:
    study = Study("heart-disease", None, 1e-3, seeds=1, epsilons=(None, 3.0))
    first = found(study, tmp_path, seed=1, speeds="one slow")
    again = list(trials(study, *read_folder(tmp_path), seed=1, speeds="one slow"))

    assert first == again
    assert [each.epsilon for each in first] == [None, 3.0]
    assert first[0].figure != first[1].figure


@pytest.mark.long
@pytest.mark.timeout(600)
def test_privacy_costs_no_more_than_the_targets_say(tmp_path: Path) -> None:
    done: dict[str, list[Trial]] = {study.task: [] for study in STUDIES}
    for study, seeds in ((CREDIT, (1, 2)), (HEART, (0, 1, 2))):
        for seed in seeds:
            folder = tmp_path / f"{study.task}-{seed}"
            folder.mkdir()
            done[study.task] += found(study, folder, seed=seed)

    judged = [verdict for study in STUDIES for verdict in verdicts(study, rows(done[study.task]))]

    assert [each for each in judged if not each.met] == []
    assert len(judged) == 4


@pytest.mark.long
@pytest.mark.timeout(300)
def test_banks_alone_with_a_perceptron_trained_to_convergence_reach_little_on_everybodys_rows(tmp_path: Path) -> None:
    prepare(CREDIT.task, institutions=None, seed=0, folder=tmp_path, split=CREDIT.split)
    spec, trainings, held_out = read_folder(tmp_path)
    perceptron = spec.model_copy(update={"model": Model(type="mlp", hidden=(32,))})

    alone = [trained_to_convergence(perceptron, each, 1e-3, 0) for each in trainings.values()]

    assert len(alone) == 8
    assert fmean(evaluate(perceptron, model, held_out)["auc"] or 0.0 for model in alone) <= 0.72
