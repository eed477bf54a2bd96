"""The audit's mathematics by hand and by brute force; the real mechanism, attacked; and broken ones, which must be caught."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from broker_config.node import SYSTEM, Installation
from campaigns.one_run_audit import (
    Guesses,
    bound,
    correct_guesses,
    epsilon_lower_bound,
    gaussian_epsilon,
    gaussian_estimate,
    membership,
    p_value,
    plan_guesses,
)
from campaigns.privacy_audit import _epsilon
from campaigns.privacy_audit_data import Audited, flipped_coins, training_csv
from campaigns.privacy_audit_picture import markdown, picture
from campaigns.privacy_audit_results import Finding, as_json, judged, verdict
from campaigns.privacy_audit_run import Run
from client_worker.data import load_dataset
from client_worker.mechanism import Charge, LocalTraining
from client_worker.privacy import calibrate_noise_multiplier, epsilon_after
from client_worker.randomness import SecureRandom
from client_worker.training import LocalTrainer
from shared.errors import SettingsError
from shared.tasks.models import initial_parameters
from shared.tasks.spec import parse_task

ROOT = Path(__file__).parents[2]
AUDITED = Audited(canaries=1000, updates=2)
HALF_OF_FOUR = Guesses(2, 2)


def test_p_values_by_hand() -> None:
    # One guess at epsilon 0: 1/2 + 2 * 1 * delta * (1/2).
    assert p_value(1, 1, 1, epsilon=0.0, target_delta=0.01) == pytest.approx(0.51)
    # Two at epsilon ln 3, so 3/4 right each: 9/16 + 2 * 2 * delta * max(6/16, 7/16 / 2).
    assert p_value(2, 2, 2, epsilon=math.log(3), target_delta=0.01) == pytest.approx(9 / 16 + 0.04 * 6 / 16)
    # One right of three, or more: 63/64; below it only "none right", 1/64.
    assert p_value(5, 3, 1, epsilon=math.log(3), target_delta=0.01) == pytest.approx(63 / 64 + 0.1 / 64)
    assert p_value(3, 3, 0, epsilon=1.0, target_delta=0.0) == 1.0


def chance_of(at_least: int, right: list[float]) -> float:
    """That so many guesses are right, each with a chance of its own, by going through all cases."""
    cases = product((0, 1), repeat=len(right))
    weights = ((sum(case), math.prod(p if hit else 1 - p for p, hit in zip(right, case, strict=True))) for case in cases)
    return sum(weight for hits, weight in weights if hits >= at_least)


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("correct", range(6))
def test_randomised_response_is_as_good_as_the_p_value_allows(epsilon: float, correct: int) -> None:
    truthful = math.exp(epsilon) / (1 + math.exp(epsilon))

    assert p_value(5, 5, correct, epsilon=epsilon, target_delta=0.0) == pytest.approx(chance_of(correct, [truthful] * 5))


@pytest.mark.parametrize("correct", range(1, 6))
def test_a_mechanism_that_gives_secrets_away_with_chance_delta_stays_below_the_p_value_and_above_the_one_for_delta_0(
    correct: int,
) -> None:
    delta, truthful = 0.02, math.exp(0.5) / (1 + math.exp(0.5))
    # Each is given away by itself; or one that is drawn, at five times the chance; or all at once. Each is (0.5, 0.02)-DP.
    leaky = chance_of(correct, [delta + (1 - delta) * truthful] * 5)
    one = (1 - 5 * delta) * chance_of(correct, [truthful] * 5) + 5 * delta * chance_of(correct, [1.0] + [truthful] * 4)
    every = (1 - delta) * chance_of(correct, [truthful] * 5) + delta
    allowed = p_value(5, 5, correct, epsilon=0.5, target_delta=delta)

    assert p_value(5, 5, correct, epsilon=0.5, target_delta=0.0) < min(leaky, one, every)
    assert max(leaky, one, every) <= allowed


def test_ten_of_ten_correct_guesses_refute_an_epsilon_of_1_05() -> None:
    # q^10 = 0.05 gives q = 0.741134, and ln(q / (1 - q)) = ln 2.8630 = 1.0519
    assert epsilon_lower_bound(10, 10, 10, target_delta=0.0) == pytest.approx(1.0519, abs=1e-4)


def test_no_more_correct_guesses_than_chance_refute_nothing() -> None:
    assert epsilon_lower_bound(1000, 400, 200, target_delta=1e-5) == 0.0
    assert epsilon_lower_bound(1000, 400, 0, target_delta=1e-5) == 0.0


def test_the_bound_grows_with_correct_guesses_and_shrinks_with_wrong_ones_with_delta_and_with_confidence() -> None:
    by_correct = [epsilon_lower_bound(1000, 200, correct, target_delta=1e-5) for correct in range(100, 201, 10)]
    by_wrong = [epsilon_lower_bound(1000, 90 + wrong, 90, target_delta=1e-5) for wrong in range(0, 80, 10)]
    by_delta = [epsilon_lower_bound(1000, 200, 190, target_delta=delta) for delta in (0.0, 1e-6, 1e-5, 1e-4, 1e-3)]
    by_confidence = [epsilon_lower_bound(1000, 200, 190, target_delta=1e-5, confidence=c) for c in (0.8, 0.95, 0.99)]

    assert by_correct == sorted(by_correct)
    assert by_correct[0] == 0.0
    assert by_correct[-1] > 3.5
    for falling in (by_wrong, by_delta, by_confidence):
        assert falling == sorted(falling, reverse=True)
        assert falling[0] > falling[-1]


def test_more_correct_guesses_than_guesses_are_an_error() -> None:
    with pytest.raises(ValueError, match="5 correct of 4 guesses about 10 canaries cannot be"):
        p_value(10, 4, 5, epsilon=1.0, target_delta=0.0)


def test_guesses_are_counted_by_hand_and_equal_scores_go_by_number() -> None:
    scores = np.array([0.9, 0.1, 0.5, 0.8, 0.1, 0.2])
    included = np.array([True, True, False, False, False, True])

    # highest: 0 (in, right), 3 (out, wrong); lowest: 4 (out, right), 1 (in, wrong)
    assert correct_guesses(scores, included, HALF_OF_FOUR) == 2
    first, odd = np.arange(1000) < 500, np.arange(1000) % 2.0
    assert correct_guesses(odd, first, Guesses(250, 250)) == 500
    assert correct_guesses(odd, ~first, Guesses(250, 250)) == 0


def test_two_numbers_of_guesses_are_each_tested_at_half_of_the_error() -> None:
    included = np.arange(100) < 50
    found = bound(-np.arange(100.0), included, [Guesses(5, 5), Guesses(40, 40)], target_delta=0.0)

    assert found.guesses.total == found.correct == 80
    assert found.epsilon == found.provable == epsilon_lower_bound(100, 80, 80, target_delta=0.0, confidence=0.975)


def test_randomised_response_at_epsilon_1_is_refuted_in_hardly_more_than_5_of_100_runs_and_in_some() -> None:
    rng, refuted, runs = np.random.default_rng(5), 0, 400
    for _ in range(runs):
        included = rng.random(200) < 0.5
        answers = included ^ (rng.random(200) < 1 / (1 + math.e))
        correct = correct_guesses(answers + rng.random(200) / 2, included, Guesses(90, 90))
        refuted += p_value(200, 180, correct, epsilon=1.0, target_delta=0.0) < 0.05

    assert 4 <= refuted <= 34  # Binomial(400, 0.05) is above 34 with a chance of 0.1 %


MU = {1.0: 0.26840, 3.0: 0.71913, 8.0: 1.66603}
"""Of the closed form at delta 1e-5: how far a canary's score moves, in standard deviations of the noise."""


def normal_scores(mu: float) -> tuple[np.ndarray, np.ndarray]:
    """As many as five runs of the full audit have, and which canaries are in."""
    rng = np.random.default_rng(9)
    included = rng.random(25_000) < 0.5
    return rng.normal(size=25_000) + mu * included, included


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_five_runs_refute_half_of_the_noise_by_the_theorem(epsilon: float) -> None:
    plan = plan_guesses(25_000, MU[epsilon], target_delta=1e-5)

    assert 0.4 * epsilon < bound(*normal_scores(MU[epsilon]), plan, target_delta=1e-5).epsilon < epsilon
    assert bound(*normal_scores(2 * MU[epsilon]), plan, target_delta=1e-5).epsilon > epsilon


@pytest.mark.parametrize(("epsilon", "noise"), [(1.0, 0.8), (3.0, 0.9), (8.0, 0.9)])
def test_five_runs_refute_a_tenth_or_a_fifth_too_little_noise_by_the_estimate(epsilon: float, noise: float) -> None:
    assert gaussian_estimate(*normal_scores(MU[epsilon]), target_delta=1e-5).at_least < epsilon
    assert gaussian_estimate(*normal_scores(MU[epsilon] / noise), target_delta=1e-5).at_least > epsilon


@pytest.mark.parametrize(("mu", "epsilon"), [(1.0, 4.377178), (math.sqrt(50) / 10, 2.943225)])
def test_epsilon_of_gaussians_without_sampling_is_that_of_the_closed_form(mu: float, epsilon: float) -> None:
    assert gaussian_epsilon(mu, 1e-5) == pytest.approx(epsilon, abs=1e-6)


def test_the_estimate_finds_the_epsilon_of_normal_scores_and_is_sure_of_less() -> None:
    rng = np.random.default_rng(2)
    included = rng.random(20_000) < 0.5
    estimate = gaussian_estimate(rng.normal(size=20_000) + included, included, target_delta=1e-5)

    assert estimate.epsilon == pytest.approx(4.377, abs=0.25)  # three standard errors of mu
    assert 4.0 < estimate.at_least < estimate.epsilon


def test_the_estimate_is_sure_of_too_much_in_5_of_100_runs_as_its_confidence_says() -> None:
    rng, above, runs = np.random.default_rng(6), 0, 400
    for _ in range(runs):
        included = rng.random(1000) < 0.5
        scores = rng.normal(size=1000) + 3.0 * included
        above += gaussian_estimate(scores, included, target_delta=1e-5, confidence=0.95).at_least > gaussian_epsilon(3.0, 1e-5)

    assert 8 <= above <= 34  # Binomial(400, 0.05) is outside with a chance of 0.3 %


def test_scores_that_say_nothing_have_an_auc_of_one_half_and_perfect_ones_of_1() -> None:
    rng = np.random.default_rng(4)
    included = rng.random(4000) < 0.5

    assert membership(rng.normal(size=4000), included).auc == pytest.approx(0.5, abs=0.03)
    assert membership(rng.normal(size=4000), included).tpr_at_1_percent_fpr < 0.03
    assert membership(included + rng.random(4000) / 2, included) == (1.0, 1.0)


def test_the_number_of_guesses_follows_from_public_figures_and_nearly_all_is_always_one_of_them() -> None:
    sharp, middle, wide = plan_guesses(5000, 0.72, target_delta=1e-5)

    assert wide == Guesses(2250, 2250)
    assert 25 < sharp.highest == sharp.lowest < middle.highest < 500
    assert plan_guesses(5000, math.inf, target_delta=1e-5) == (wide,)


def test_the_public_number_of_examples_and_the_clients_do_not_tell_the_coins(tmp_path: Path) -> None:
    none, every = (training_csv(AUDITED, np.full(1000, value), 3).splitlines() for value in (False, True))

    assert AUDITED.num_examples == 800
    assert len(none) == 301
    assert every[:301] == none
    assert len(every) == 1301


Trained = Callable[..., Run]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The institution's own training with a fixed key for its noise; `noise` is what part of the accounted noise it draws."""
    spec = parse_task(AUDITED.task_text(), source="the audit's task")
    included = flipped_coins(AUDITED, 1)
    file = tmp_path_factory.mktemp("audit") / "training.csv"
    file.write_text(training_csv(AUDITED, included, 1))
    dataset = load_dataset(spec, file)

    def run(epsilon: float | None, *, noise: float = 1.0) -> Run:
        steps = AUDITED.steps * AUDITED.updates
        sigma = None if epsilon is None else calibrate_noise_multiplier(epsilon, 1e-5, 1.0, steps)
        local = LocalTraining(
            mechanism="none" if sigma is None else "dp-sgd",
            steps=AUDITED.steps,
            sample_rate=1.0,
            expected_rows=AUDITED.num_examples,
            learning_rate=1.0,
            clipping_norm=AUDITED.clipping_norm,
            noise_multiplier=None if sigma is None else noise * sigma,
        )
        trainer = LocalTrainer(spec, device="cpu", private=sigma is not None, random=SecureRandom(bytes(32)))
        base, deltas = initial_parameters(spec, 0), []
        for _ in range(AUDITED.updates):
            deltas.append(trainer.local_update(base, dataset, local))
            base = {name: array + deltas[-1][name] for name, array in base.items()}
        accounted = None if sigma is None else epsilon_after([Charge(sigma, 1.0, steps)], 1e-5)
        return Run(1, epsilon, accounted, sigma, AUDITED.scores(deltas), included)

    return run


def finding(run: Run) -> Finding:
    return judged([run], AUDITED)


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_what_the_mechanism_publishes_gives_away_no_more_than_is_accounted(trained: Trained, epsilon: float) -> None:
    found = finding(trained(epsilon))

    assert found.accounted == pytest.approx(epsilon, rel=0.01)
    assert found.bound.epsilon <= found.accounted
    assert found.estimate.at_least <= found.accounted
    assert found.holds


def test_at_epsilon_8_the_attack_sees_something_and_at_epsilon_1_hardly(trained: Trained) -> None:
    much, little = finding(trained(8.0)), finding(trained(1.0))

    # Phi(mu / sqrt 2) for MU
    assert much.membership.auc == pytest.approx(0.881, abs=0.03)
    assert little.membership.auc == pytest.approx(0.575, abs=0.05)
    assert much.bound.epsilon > 2.0


def test_without_noise_the_attack_finds_every_canary(trained: Trained) -> None:
    found = finding(trained(None))

    assert found.membership == (1.0, 1.0)
    assert found.bound.epsilon == found.bound.provable > 5.0
    assert found.holds
    assert verdict([found]) == "privacy audit: 0 accounted epsilons, 0 refuted; without noise the attack works"


@pytest.mark.parametrize("epsilon", [1.0, 3.0])
def test_a_mechanism_with_a_tenth_of_its_noise_is_refuted(trained: Trained, epsilon: float) -> None:
    found = finding(trained(epsilon, noise=0.1))

    assert found.bound.epsilon > epsilon
    assert not found.holds
    assert verdict([found]) == "privacy audit: 1 accounted epsilons, 1 refuted"


@pytest.mark.parametrize("epsilon", [3.0, 8.0])
def test_a_mechanism_with_half_of_its_noise_is_refuted_by_the_estimate(trained: Trained, epsilon: float) -> None:
    found = finding(trained(epsilon, noise=0.5))

    assert found.estimate.at_least > epsilon
    assert not found.holds


def test_an_attack_that_finds_nothing_without_noise_proves_nothing(trained: Trained) -> None:
    run = trained(None)
    blind = Run(1, None, None, None, np.random.default_rng(0).normal(size=1000), run.included)

    assert not finding(blind).holds
    assert verdict([finding(blind)]).endswith("without noise the attack FAILS, so this proves nothing")


def test_the_result_is_written_with_its_seeds_and_drawn(trained: Trained) -> None:
    document = json.loads(as_json([finding(trained(3.0)), finding(trained(None))], AUDITED))
    with_noise, without = document["findings"]

    assert with_noise["epsilon_at_least_by_seed"]["1"] == with_noise["epsilon_at_least"]
    assert without["accounted_epsilon"] is None
    svg = picture(document)
    assert "epsilon 3" in svg
    assert "no noise" in svg


@pytest.mark.parametrize("name", ["privacy-audit", "privacy-audit-sampled"])
def test_the_page_has_the_tables_of_the_results_that_are_kept(name: str) -> None:
    document = json.loads((ROOT / "docs" / "pictures" / f"{name}.json").read_text())

    assert markdown(document) in (ROOT / "docs" / "privacy-audit.md").read_text()


@pytest.mark.parametrize("word", ["0", "-1", "many", "nan", "1000"])
def test_an_epsilon_that_cannot_be_is_refused(word: str) -> None:
    with pytest.raises(SettingsError, match="--epsilons has"):
        _epsilon(word)


@pytest.mark.long
@pytest.mark.rabbitmq
@pytest.mark.timeout(240)
def test_a_real_institution_is_attacked_over_a_real_broker(tmp_path: Path, installation: Installation) -> None:
    if installation != SYSTEM:
        pytest.skip("campaigns start the system's RabbitMQ, which is tried without this one too")
    words = ["--runs", "1", "--canaries", "1000", "--epsilons", "3,none", "--json", str(tmp_path / "result.json")]
    command = [sys.executable, "-m", "campaigns.privacy_audit", *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=220, check=False)

    assert result.returncode == 0, result.stdout + result.stderr
    last = result.stdout.strip().splitlines()[-1]
    assert last == "privacy audit: 1 accounted epsilons, 0 refuted; without noise the attack works"
    with_noise, without = json.loads((tmp_path / "result.json").read_text())["findings"]
    assert with_noise["accounted_epsilon"] == pytest.approx(3.0, rel=0.01)
    assert without["auc"] > 0.99
