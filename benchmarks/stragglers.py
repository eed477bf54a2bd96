"""`python -m benchmarks.stragglers`: seconds until digits are told well, with institutions of which one is far slower than most.

Beside the chosen rule runs our own synchronous FedAvg, an exact buffer of all institutions, on the same data and seeds. What is
measured, and how, is in docs/benchmarks.md.
"""

import argparse
import functools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, get_args

from benchmarks.stragglers_run import Outcome, Setting, run
from broker_config.service import ending_on_sigterm
from shared.errors import FederationError
from shared.plan import AggregationPlan, RuleName, StalenessRule

SUITED: Mapping[RuleName, AggregationPlan] = {
    "credit": AggregationPlan(rule="credit"),
    "fedasync": AggregationPlan(rule="fedasync", server_learning_rate=0.6),
    "fedbuff": AggregationPlan(rule="fedbuff", buffer_size=2),
    "latest-model": AggregationPlan(rule="latest-model"),
    "latest-update": AggregationPlan(rule="latest-update", buffer_size=4),
}
"""What each rule is measured with. Not chosen alike: `credit` and `latest-model` have the plan's defaults, the others were picked
by trying on this same work (docs/benchmarks.md).
"""
PLAIN = Setting()
SPREAD = Setting(spread=100.0)
HELD = Setting(target=0.95, held=3)
ROWS: tuple[tuple[str, Setting], ...] = (
    ("accuracy 0.93", PLAIN),
    ("accuracy 0.93, speeds spread 100 times", SPREAD),
    ("accuracy 0.95 in three versions in a row", HELD),
)
HEADINGS = ("rule", "K", "server learning rate", "seconds, median", "least to most", "updates", "synchronous s", "ratio")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured. Seconds, `ratio` (synchronous over median) and `updates_used` (median) are None where more than half
    of the seeds did not reach the target within the limit. `outcomes` and `synchronous_outcomes` are by seed.
    """

    rule: str
    buffer_size: int
    time_to_target_seconds: dict[str, float | None]
    synchronous_seconds: float | None
    ratio: float | None
    updates_used: int | None
    seeds: int
    server_learning_rate: float
    synchronous_updates_used: int | None
    target: float
    held: int
    spread: float | None
    limit_seconds: float
    cores: int
    outcomes: list[dict[str, Any]]
    synchronous_outcomes: list[dict[str, Any]]


def measure(aggregation: AggregationPlan, setting: Setting, seeds: int) -> Figures:
    """Runs both federations once for each seed."""
    found = [run(aggregation, setting, seed=seed) for seed in range(seeds)]
    synchronous = synchronous_outcomes(setting, seeds)
    return figures(aggregation, setting, found, synchronous)


@functools.cache
def synchronous_outcomes(setting: Setting, seeds: int) -> tuple[Outcome, ...]:
    """FedAvg under a setting, once for each seed: a version is made of one fresh update of each institution, by its share of the
    data. It is the same whatever it is compared with.
    """
    everybody = AggregationPlan(
        rule="fedbuff", staleness=StalenessRule(function="constant"), buffer_size=setting.institutions, exact_buffer=True
    )
    return tuple(run(everybody, setting, seed=seed) for seed in range(seeds))


def figures(aggregation: AggregationPlan, setting: Setting, found: Sequence[Outcome], synchronous: Sequence[Outcome]) -> Figures:
    """What the outcomes come to."""
    taken, waited = seconds(found), seconds(synchronous)
    middle, other = taken["median"], waited["median"]
    return Figures(
        rule=aggregation.rule,
        buffer_size=aggregation.buffer_size,
        time_to_target_seconds=taken,
        synchronous_seconds=other,
        ratio=None if middle is None or other is None else round(other / middle, 2),
        updates_used=_updates(found),
        seeds=len(found),
        server_learning_rate=aggregation.server_learning_rate,
        synchronous_updates_used=_updates(synchronous),
        target=setting.target,
        held=setting.held,
        spread=setting.spread,
        limit_seconds=setting.limit_seconds,
        cores=os.cpu_count() or 1,
        outcomes=[asdict(each) for each in found],
        synchronous_outcomes=[asdict(each) for each in synchronous],
    )


def seconds(outcomes: Sequence[Outcome]) -> dict[str, float | None]:
    """Median, least and most; None stands for a time beyond the limit, which is longer than any other."""
    taken = [float("inf") if each.seconds is None else each.seconds for each in outcomes]
    kept = {"median": median(taken), "min": min(taken), "max": max(taken)}
    return {name: None if each == float("inf") else round(each, 3) for name, each in kept.items()}


def _updates(outcomes: Sequence[Outcome]) -> int | None:
    reached = [each.updates for each in outcomes if each.seconds is not None]
    return round(median(reached)) if 2 * len(reached) > len(outcomes) else None


def row(found: Figures) -> str:
    """Columns as in HEADINGS."""
    taken = found.time_to_target_seconds
    beyond = f"over {found.limit_seconds:g}"

    def shown(number: float | None) -> str:
        return beyond if number is None else f"{number:.2f}"

    cells = [
        found.rule,
        str(found.buffer_size),
        f"{found.server_learning_rate:g}",
        shown(taken["median"]),
        f"{shown(taken['min'])} to {shown(taken['max'])}",
        "-" if found.updates_used is None else str(found.updates_used),
        shown(found.synchronous_seconds),
        "-" if found.ratio is None else f"{found.ratio:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def print_rows(seeds: int) -> None:
    """Every table of docs/benchmarks.md, section Stragglers: each rule under each setting."""
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before, {seeds} seeds", flush=True)
    for title, setting in ROWS:
        print(f"\n**{title}**\n\n| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}", flush=True)
        for aggregation in SUITED.values():
            print(row(measure(aggregation, setting, seeds)), flush=True)


def options(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stragglers", description=__doc__)
    parser.add_argument("--rule", default="credit", choices=get_args(RuleName))
    parser.add_argument("--buffer-size", type=int, help="K: updates per version; what suits the rule unless given")
    parser.add_argument("--server-learning-rate", type=float, help="what suits the rule unless given")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0")
    parser.add_argument("--spread", type=float, help="the slowest's sleep over the fastest's, in equal ratios")
    parser.add_argument("--target", type=float, default=PLAIN.target, help="accuracy on the test rows")
    parser.add_argument("--held", type=int, default=PLAIN.held, help="so many versions in a row")
    parser.add_argument("--limit", type=float, default=PLAIN.limit_seconds, help="seconds after which a run is given up")
    parser.add_argument("--rows", action="store_true", help="every rule under every setting, as rows for docs/benchmarks.md")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    found = parser.parse_args(words)
    if found.seeds < 1 or found.held < 1:
        parser.error("--seeds and --held are at least 1")
    return found


def chosen_plan(chosen: argparse.Namespace) -> AggregationPlan:
    """The rule's own settings but for what the command line gives."""
    given = {"buffer_size": chosen.buffer_size, "server_learning_rate": chosen.server_learning_rate}
    known = SUITED[chosen.rule].model_dump() | {name: value for name, value in given.items() if value is not None}
    return AggregationPlan.model_validate(known)


def main() -> None:
    """`python -m benchmarks.stragglers`."""
    chosen = options()
    try:
        with ending_on_sigterm():
            if chosen.rows:
                print_rows(chosen.seeds)
                return
            setting = Setting(target=chosen.target, held=chosen.held, spread=chosen.spread, limit_seconds=chosen.limit)
            found = measure(chosen_plan(chosen), setting, chosen.seeds)
    except FederationError as error:
        raise SystemExit(str(error)) from error
    print(json.dumps(asdict(found)) if chosen.json else f"| {' | '.join(HEADINGS)} |\n{row(found)}")


if __name__ == "__main__":
    main()
