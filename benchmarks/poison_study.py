"""One bank of eight attacks: what becomes of the model, and of the honest banks' updates, under each defence.

The credit-default task by limit octile, epsilon 3, banks of 3 to 35 % of the data, every second one ten times slower; the
aggregator's own admission, weighing, cap, gate and quarantine, real DP-SGD. The gate has 300 rows of the test set, the figures
come from the rest of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np

from aggregator_worker.admission import IN_QUARANTINE
from aggregator_worker.defence import Gate
from aggregator_worker.evaluation import log_loss_on
from client_worker.compact import compacted
from client_worker.mechanism import local_training, statement_of
from client_worker.privacy import planned_noise_multiplier
from shared.compact import Delta
from shared.messages import PrivacyStatement, Settlement, Update
from shared.noise import noise_std
from shared.parameters import Parameters
from shared.plan import Defence, Plan
from shared.tasks.features import Dataset
from shared.tasks.metrics import evaluate
from shared.tasks.models import initial_parameters
from shared.tasks.spec import TaskSpec
from simulator.federation import Options, Timetable, arrivals, plan_of
from simulator.vectorised import Job, trainer_for
from simulator.virtual import VirtualAggregator

TASK, SPLIT, EPSILON, TARGET_DELTA = "credit-default", "limit-octile", 3.0, 1e-5
SHARES = (0.05, 0.13, 0.35, 0.10, 0.16, 0.05, 0.13, 0.03)
"""Of the data, by bank. The third and the fifth are those that attack; both are fast."""
ATTACKERS = {0.35: 2, 0.16: 4}
ROWS, GATE_ROWS = 7500, 300
UPDATES, SLOWDOWN = 40, 10
"""What a fast bank gives; a slow one gives a tenth of it. The budget is for all of a fast one's updates."""


@dataclass(frozen=True, slots=True)
class Attack:
    """What an attacker does with the update that its rows give: the delta is multiplied by `factor`, after so many honest ones.
    It may train on the opposite labels, and claim so many times its examples.
    """

    name: str
    factor: float = 1.0
    honest_before: int = 0
    opposite_labels: bool = False
    claim: int = 1


HONEST = Attack("none")
ATTACKS = (
    HONEST,
    Attack("sign flip", factor=-1.0),
    Attack("sign flip x20", factor=-20.0),
    Attack("sign flip x20, from halfway on", factor=-20.0, honest_before=20),
    Attack("sign flip x2.5, within the cap", factor=-2.5),
    Attack("sign flip x0.2, below the gate's tolerance", factor=-0.2),
    Attack("opposite labels", opposite_labels=True),
    Attack("sign flip, claims 10 times its examples", factor=-1.0, claim=10),
)
OFF = Defence(norm_cap=None, gate_tolerance=None, strikes=None)
DEFENCES: Mapping[str, Defence] = {
    "none": OFF,
    "cap": OFF.model_copy(update={"norm_cap": 3.0}),
    "gate": OFF.model_copy(update={"gate_tolerance": 0.01}),
    "all": Defence(),
}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """The task, each bank's rows, the gate's rows, and those that the figures come from."""

    spec: TaskSpec
    banks: Mapping[str, Dataset]
    gate: Dataset
    test: Dataset


@dataclass(frozen=True, slots=True)
class Trial:
    """One federation. Rejected and capped are shares of the honest banks' updates; `quarantined_after` counts the attacker's."""

    attack: str
    share: float
    defence: str
    seed: int
    auc: float
    log_loss: float
    honest_rejected: float = 0.0
    honest_capped: float = 0.0
    honest_quarantined: int = 0
    attacker_aggregated: float = 0.0
    quarantined_after: int | None = None


def divided(spec: TaskSpec, trainings: Mapping[str, Dataset], held_out: Dataset, *, seed: int) -> Case:
    """Rows drawn by the seed, as many for each bank as its share says."""
    rng = np.random.default_rng(seed)
    banks = {
        name: _rows(rows, rng.permutation(len(rows))[: round(share * ROWS)])
        for (name, rows), share in zip(trainings.items(), SHARES, strict=True)
    }
    order = rng.permutation(len(held_out))
    return Case(spec, banks, _rows(held_out, order[:GATE_ROWS]), _rows(held_out, order[GATE_ROWS:]))


def _rows(dataset: Dataset, places: np.ndarray) -> Dataset:
    return Dataset(dataset.features[places], dataset.labels[places])


class Witness(VirtualAggregator):
    """Remembers what became of every update."""

    def __init__(self, plan: Plan, parameters: Parameters, institutions: Mapping[str, int], *, gate: Gate | None) -> None:
        super().__init__(plan, parameters, institutions, gate=gate)
        self.settled: list[tuple[str, Settlement]] = []

    def take(self, update: Update, delta: Delta, *, content: str) -> Settlement:
        """As the aggregator does."""
        settlement = super().take(update, delta, content=content)
        self.settled.append((update.institution, settlement))
        return settlement


def trial(case: Case, attack: Attack, share: float, defence: str, *, seed: int) -> Trial:
    """One federation until the fast banks have given all their updates, and the slow ones a tenth of them."""
    options = Options(epsilon=EPSILON, target_delta=TARGET_DELTA, updates=UPDATES, server_learning_rate=1.0)
    plan = plan_of(case.spec, options).model_copy(update={"defence": DEFENCES[defence]})
    names, attacker = list(case.banks), list(case.banks)[ATTACKERS[share]]
    claims = {name: len(rows) * (attack.claim if name == attacker else 1) for name, rows in case.banks.items()}
    gate = log_loss_on(case.spec, case.gate)
    aggregator = Witness(plan, initial_parameters(case.spec, seed), claims, gate=gate)
    slow = [place % 2 == 1 for place in range(len(names))]
    for _ in arrivals(
        aggregator,
        names,
        Timetable(_durations(slow, seed)),
        _training(case, plan, attack, attacker, seed=seed),
        updates=UPDATES,
        total=UPDATES * slow.count(False) + UPDATES // SLOWDOWN * slow.count(True),
    ):
        pass
    figures = evaluate(case.spec, aggregator.model(), case.test)
    return _told(
        Trial(attack.name, share, defence, seed, figures["auc"] or 0.0, figures["log_loss"] or 0.0), aggregator, attacker
    )


def _durations(slow: Sequence[bool], seed: int) -> Callable[[int], float]:
    rng = np.random.default_rng([seed, SLOWDOWN])
    return lambda place: float(rng.uniform(0.9, 1.1)) * (SLOWDOWN if slow[place] else 1)


def _training(
    case: Case, plan: Plan, attack: Attack, attacker: str, *, seed: int
) -> Callable[[int, Parameters], tuple[Delta, PrivacyStatement]]:
    """What a bank sends, given its place and the model that it trains on."""
    sigma = planned_noise_multiplier(plan)
    statement = statement_of(plan, sigma, epsilon_spent=0.0, unit="record")
    names, banks, given = list(case.banks), dict(case.banks), [0] * len(case.banks)
    if attack.opposite_labels:
        rows = banks[attacker]
        banks[attacker] = Dataset(rows.features, 1 - rows.labels)
    trainer = trainer_for(case.spec, list(banks.values()), seed=seed, private=True)

    def train(place: int, base: Parameters) -> tuple[Delta, PrivacyStatement]:
        name, rows = names[place], banks[names[place]]
        given[place] += 1
        (delta,) = trainer.deltas([Job(place, given[place], base, local_training(plan, sigma, len(rows)))])
        if name == attacker and attack.factor != 1.0 and given[place] > attack.honest_before:
            delta = {tensor: np.float32(attack.factor) * array for tensor, array in delta.items()}
        return compacted(delta, plan.update_encoding, noise_std(statement, plan, len(rows))), statement

    return train


def _told(bare: Trial, aggregator: Witness, attacker: str) -> Trial:
    """The trial with what became of the updates."""
    attacks = bare.attack != HONEST.name
    of_attacker = [each for name, each in aggregator.settled if name == attacker and attacks]
    honest = [each for name, each in aggregator.settled if name != attacker or not attacks]
    confined = [place for place, each in enumerate(of_attacker, start=1) if each.reason == IN_QUARANTINE]
    return replace(
        bare,
        honest_rejected=_share(honest, lambda each: each.outcome == "rejected"),
        honest_capped=_share(honest, lambda each: float.fromhex(each.scale) < 1.0),
        honest_quarantined=sum(
            aggregator.entry(name).quarantined for name in dict(aggregator.settled) if name != attacker or not attacks
        ),
        attacker_aggregated=_share(of_attacker, lambda each: each.outcome == "aggregated"),
        quarantined_after=confined[0] - 1 if confined else None,
    )


def _share(settled: Sequence[Settlement], counts: Callable[[Settlement], bool]) -> float:
    return sum(map(counts, settled)) / len(settled) if settled else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """Several seeds of one attack under one defence: means, and the worst AUC."""

    attack: str
    share: float
    defence: str
    auc: float
    worst_auc: float
    honest_rejected: float
    honest_capped: float
    attacker_aggregated: float


def rows(trials: Sequence[Trial]) -> list[Row]:
    """In the order of the trials."""
    groups: dict[tuple[str, float, str], list[Trial]] = {}
    for each in trials:
        groups.setdefault((each.attack, each.share, each.defence), []).append(each)
    return [
        Row(
            *named,
            auc=fmean(each.auc for each in group),
            worst_auc=min(each.auc for each in group),
            honest_rejected=fmean(each.honest_rejected for each in group),
            honest_capped=fmean(each.honest_capped for each in group),
            attacker_aggregated=fmean(each.attacker_aggregated for each in group),
        )
        for named, group in groups.items()
    ]
