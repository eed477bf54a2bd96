"""The figures of a federation, read off what its leader last committed. A table of values; no I/O, no clock."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from aggregator_worker.ending import Progress
from monitoring.figures import Figure, Sample, one
from shared.messages import Entry, Manifest, Phase
from shared.plan import Plan


@dataclass(frozen=True, slots=True)
class Led:
    """A federation as its leader knows it. `names` and `refused` go by institution, `last_update_at` by pseudonym.

    Times are Unix times; one that nobody knows is None, or missing.
    """

    epoch: int
    manifest: Manifest
    plan: Plan
    table: Mapping[str, Entry]
    names: Mapping[str, str]
    refused: Mapping[str, int]
    last_update_at: Mapping[str, float]
    version_at: float | None
    run_started_at: float | None

    def members(self) -> list[tuple[str, str, Entry]]:
        """Name, pseudonym and entry of everybody who is a member now; whose name is not known goes by the pseudonym."""
        return [(self.names.get(each, each), each, entry) for each, entry in self.table.items() if not entry.removed]


def _each(of: Callable[[Entry], float | None]) -> Callable[[Led], Iterable[Sample]]:
    """One sample for each member that has the figure."""

    def samples(led: Led) -> Iterable[Sample]:
        for name, _, entry in led.members():
            number = of(entry)
            if number is not None:
                yield (name,), float(number)

    return samples


def _share(of: Callable[[Entry], float | None]) -> Callable[[Led], Iterable[Sample]]:
    """Each member's part of what all members have, where it is known; nothing while nobody has any."""

    def samples(led: Led) -> Iterable[Sample]:
        parts = {name: part for name, _, entry in led.members() if (part := of(entry)) is not None}
        total = sum(parts.values())
        return [((name,), part / total) for name, part in parts.items()] if total > 0 else []

    return samples


def _updates(led: Led) -> Iterable[Sample]:
    for name, _, entry in led.members():
        for outcome, number in entry.counters:
            yield (name, outcome), float(number)


def _best(led: Led) -> Iterable[Sample]:
    best = Progress.of(led.manifest.scalars).best
    return [] if best is None else [((led.plan.ending.metric,), best.figure)]


def _budget(plan: Plan) -> float | None:
    return plan.privacy.epsilon if plan.privacy.mechanism != "none" else None


FIGURES: tuple[Figure[Led], ...] = (
    Figure("fedqueue_epoch", "The term of the leader: every takeover has a higher one", lambda led: one(led.epoch)),
    Figure("fedqueue_model_version", "The newest version of the global model", lambda led: one(led.manifest.version)),
    Figure(
        "fedqueue_version_committed_timestamp_seconds",
        "When the newest version was made (Unix time)",
        lambda led: one(led.version_at),
    ),
    Figure(
        "fedqueue_run_started_timestamp_seconds",
        "When version 0 was published (Unix time)",
        lambda led: one(led.run_started_at),
    ),
    Figure(
        "fedqueue_phase",
        "1 for the phase of the run, 0 for the others",
        lambda led: [((phase,), float(phase == led.manifest.phase)) for phase in get_args(Phase)],
        ("phase",),
    ),
    Figure(
        "fedqueue_updates_total",
        "Updates of an institution by what became of them, since its admission",
        _updates,
        ("institution", "outcome"),
    ),
    Figure(
        "fedqueue_refused_messages_total",
        "Messages of an institution that this process could not use, put aside or only counted",
        lambda led: [((name,), float(led.refused.get(name, 0))) for name, _, _ in led.members()],
        ("institution",),
    ),
    Figure(
        "fedqueue_held_out_metric",
        "A figure of the newest version on the held-out rows",
        lambda led: [((name,), number) for name, number in led.manifest.metrics.items() if number is not None],
        ("metric",),
    ),
    Figure("fedqueue_held_out_metric_best", "The best so far of the figure that ends the run", _best, ("metric",)),
    Figure(
        "fedqueue_epsilon_budget", "The epsilon that each institution may spend, by the plan", lambda led: one(_budget(led.plan))
    ),
    Figure(
        "fedqueue_institution_epsilon_spent",
        "The epsilon that an institution has stated to have spent",
        _each(lambda entry: entry.epsilon_spent),
        ("institution",),
    ),
    Figure(
        "fedqueue_institution_active",
        "1, or 0 for an institution that was silent for so long that its share went to the others",
        _each(lambda entry: entry.active),
        ("institution",),
    ),
    Figure(
        "fedqueue_institution_quarantined",
        "1 for an institution whose updates are not folded, else 0",
        _each(lambda entry: entry.quarantined),
        ("institution",),
    ),
    Figure(
        "fedqueue_institution_last_update_timestamp_seconds",
        "When the last update of an institution was settled (Unix time)",
        lambda led: [
            ((name,), led.last_update_at[pseudonym]) for name, pseudonym, _ in led.members() if pseudonym in led.last_update_at
        ],
        ("institution",),
    ),
    Figure(
        "fedqueue_institution_weight_share",
        "The part of all weight that an institution's updates have had",
        _share(lambda entry: float.fromhex(entry.total_weight)),
        ("institution",),
    ),
    Figure(
        "fedqueue_institution_data_share",
        "The part of all examples that an institution says it has",
        _share(lambda entry: entry.num_examples),
        ("institution",),
    ),
)
