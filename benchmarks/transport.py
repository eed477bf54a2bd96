"""`python -m benchmarks.transport`: updates per second through the broker, from institutions whose training costs nothing."""

import argparse
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.commits import commits, updates_per_second
from benchmarks.federation import Federation, founded, plan_for, started
from benchmarks.figures import tell
from benchmarks.readings import forget_peak, peak_resident_bytes, processor_seconds, resident_bytes
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from shared.codec import Dtype
from shared.errors import FederationError
from shared.plan import UpdateEncoding

NUMBERS: dict[str, tuple[UpdateEncoding, Dtype]] = {
    "fp32": ("float32", "float32"),
    "bf16-down": ("float32", "bfloat16"),
    "compact": ("int8", "bfloat16"),
}
"""How updates travel, and how models do."""
WARM_UP_UPDATES = 3


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured; megabytes are those of the updates' float32 numbers, one direction."""

    parameters: int
    institutions: int
    buffer_size: int
    encoding: str
    seconds: float
    updates_per_second: float
    megabytes_per_second: float
    aggregator_start_rss_bytes: int
    aggregator_peak_rss_bytes: int
    aggregator_cpu_seconds_per_update: float
    client_cpu_seconds_per_update: float
    broker_cpu_seconds_per_update: float
    broker: str
    cores: int


@dataclass(frozen=True, slots=True)
class Window:
    """The time that counts, on the wall clock as the lineage has it, and the processor time that went by in it."""

    since: float
    until: float
    processor_seconds: Mapping[str, float]


def measure(options: argparse.Namespace) -> Figures:
    """Runs the federation and stops it again. Raises FederationError where the window held no two versions."""
    up, down = NUMBERS[options.encoding]
    plan = plan_for(options.parameters, options.buffer_size, broadcast=down, update_encoding=up)
    with founded(plan, options.parameters, options.institutions) as federation:
        aggregator = federation.aggregator()
        clients = [federation.client(name) for name in federation.institutions]
        with started(aggregator):
            federation.wait_until_leading(aggregator)
            start_bytes = resident_bytes(aggregator.pid)
            forget_peak(aggregator.pid)
            with started(*clients):
                federation.wait_until_folded(WARM_UP_UPDATES)
                pids = {
                    "aggregator": [aggregator.pid],
                    "clients": [each.pid for each in clients],
                    "broker": [federation.broker_pid],
                }
                window = watch(pids, options.seconds)
                for each in (aggregator, *clients):
                    each.demand_alive()
            peak_bytes = peak_resident_bytes(aggregator.pid)
        rate = counted(federation, window)
    folded = rate * (window.until - window.since)
    return Figures(
        parameters=options.parameters,
        institutions=options.institutions,
        buffer_size=options.buffer_size,
        encoding=options.encoding,
        seconds=options.seconds,
        updates_per_second=round(rate, 3),
        megabytes_per_second=round(rate * 4 * options.parameters / 1e6, 2),
        aggregator_start_rss_bytes=start_bytes,
        aggregator_peak_rss_bytes=peak_bytes,
        aggregator_cpu_seconds_per_update=round(window.processor_seconds["aggregator"] / folded, 6),
        client_cpu_seconds_per_update=round(window.processor_seconds["clients"] / folded, 6),
        broker_cpu_seconds_per_update=round(window.processor_seconds["broker"] / folded, 6),
        broker=federation.broker_version,
        cores=os.cpu_count() or 1,
    )


def watch(pids: Mapping[str, Sequence[int]], seconds: float) -> Window:
    """Lets so many seconds go by."""
    since, before = time.time(), _processor_seconds(pids)
    time.sleep(seconds)
    until, after = time.time(), _processor_seconds(pids)
    return Window(since, until, {name: after[name] - before[name] for name in pids})


def _processor_seconds(pids: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: sum(map(processor_seconds, group)) for name, group in pids.items()}


def counted(federation: Federation, window: Window) -> float:
    """Updates per second inside the window."""
    broker = connect(federation.logins.settings(OPERATOR), name="benchmark/count")
    rate = updates_per_second(commits(broker), window.since, window.until)
    broker.close()
    if rate is None:
        raise FederationError(f"fewer than two versions were made in {window.until - window.since:.0f} s; give more --seconds")
    return rate


def options(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--institutions", type=int, default=4)
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--buffer-size", type=int, default=4, help="K: updates per version")
    parser.add_argument(
        "--encoding",
        default="fp32",
        choices=NUMBERS,
        help="fp32; bf16-down: models in bfloat16, updates in float32; compact: models in bfloat16, updates in int8",
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    found = parser.parse_args(words)
    if found.buffer_size > found.institutions:
        parser.error("--buffer-size over --institutions would wait for ever: one update per institution is under way")
    return found


def main() -> None:
    """`python -m benchmarks.transport`."""
    chosen = options()
    tell(lambda: measure(chosen), as_json=chosen.json)


if __name__ == "__main__":
    main()
