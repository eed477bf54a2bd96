"""What privacy costs in a task's first figure: the same federations without noise and at several epsilons, over seeds."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from client_worker.randomness import SecureRandom
from shared.errors import FederationError
from shared.tasks.features import Dataset
from shared.tasks.metrics import evaluate
from shared.tasks.spec import TaskSpec
from simulator.epsilon_sweep import EPSILONS, members_at_equal_speed, members_with_one_slow
from simulator.federation import Options, simulate
from simulator.schedule import updates_in_all

SPEEDS = ("equal", "one slow")
"""All institutions as fast as each other; or the demonstration's schedule, in which one takes ten times as long."""


@dataclass(frozen=True, slots=True)
class Study:
    """What is measured, and what the mean over seeds must reach: at least `least` at an epsilon (None: without noise), and at
    most `most_lost` below the same federations without noise.
    """

    task: str
    split: str | None
    target_delta: float
    seeds: int
    least: Mapping[float | None, float] = field(default_factory=dict)
    most_lost: Mapping[float | None, float] = field(default_factory=dict)
    epsilons: tuple[float | None, ...] = EPSILONS


STUDIES = (
    Study("credit-default", "limit-octile", 1e-5, seeds=10, least={None: 0.775, 3.0: 0.76, 1.0: 0.75}),
    Study("heart-disease", None, 1e-3, seeds=20, most_lost={3.0: 0.02}),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """One federation's first figure on the test rows of all institutions together."""

    speeds: str
    epsilon: float | None
    seed: int
    noise_multiplier: float | None
    figure: float


@dataclass(frozen=True, slots=True)
class Row:
    """All seeds of one epsilon. `lost` is how far a figure is below that of the same seed without noise, where there is one."""

    speeds: str
    epsilon: float | None
    noise_multiplier: float | None
    mean: float
    least: float
    most: float
    lost: float
    most_lost: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target and what was found: `found` must not be below `wanted`."""

    speeds: str
    said: str
    wanted: float
    found: float

    @property
    def met(self) -> bool:
        """Whether it is reached."""
        return self.found >= self.wanted


def trials(
    study: Study, spec: TaskSpec, trainings: dict[str, Dataset], held_out: Dataset, *, seed: int, speeds: str = "equal"
) -> Iterator[Trial]:
    """One for each epsilon of the study. The seed decides the noise too, so that a study can be repeated; nothing else may."""
    updates = spec.training.updates
    options = Options(target_delta=study.target_delta, seed=seed)
    if speeds == "one slow":
        members = members_with_one_slow(trainings, updates=updates, seed=seed)
        options = replace(options, total=updates_in_all(len(trainings), updates))
    else:
        members = members_at_equal_speed(trainings, seed=seed)
    for epsilon in study.epsilons:
        key = hashlib.sha256(f"{study.task} {speeds} {epsilon} {seed}".encode()).digest()
        run = simulate(spec, members, replace(options, epsilon=epsilon), random=SecureRandom(key))
        figure = evaluate(spec, run.parameters, held_out)[spec.first_metric]
        if figure is None:
            raise FederationError(
                f"{study.task}: the test rows of seed {seed} have no {spec.first_metric}; they need both labels"
            )
        yield Trial(speeds, epsilon, seed, run.noise_multiplier, figure)


def rows(found: Sequence[Trial]) -> list[Row]:
    """One for each speed and epsilon, in the order of the trials. Every seed must have been run without noise too."""
    without_noise = {(each.speeds, each.seed): each.figure for each in found if each.epsilon is None}
    groups: dict[tuple[str, float | None], list[Trial]] = {}
    for trial in found:
        groups.setdefault((trial.speeds, trial.epsilon), []).append(trial)
    return [_row(group, without_noise) for group in groups.values()]


def _row(group: Sequence[Trial], without_noise: Mapping[tuple[str, int], float]) -> Row:
    figures = [each.figure for each in group]
    lost = [without_noise[each.speeds, each.seed] - each.figure for each in group]
    first = group[0]
    return Row(
        first.speeds, first.epsilon, first.noise_multiplier, fmean(figures), min(figures), max(figures), fmean(lost), max(lost)
    )


def verdicts(study: Study, found: Sequence[Row]) -> list[Verdict]:
    """Every target of the study at every speed that was run."""
    judged = []
    for row in found:
        if row.epsilon in study.least:
            judged.append(Verdict(row.speeds, f"mean at {epsilon_text(row.epsilon)}", study.least[row.epsilon], row.mean))
        if row.epsilon in study.most_lost:
            said = f"mean at {epsilon_text(row.epsilon)} less mean without noise"
            judged.append(Verdict(row.speeds, said, -study.most_lost[row.epsilon], -row.lost))
    return judged


def epsilon_text(epsilon: float | None) -> str:
    """For people."""
    return "no noise" if epsilon is None else f"epsilon {epsilon:g}"
