"""`python -m benchmarks.simulator_scale`: time and memory of a simulated federation, by the number of its institutions.

Each size is simulated in a process of its own: a synthetic problem of 10 classes, an mlp of about 10,000 parameters, rows by a
Dirichlet draw (alpha 0.5) and lognormal sizes, lognormal speeds, ten updates from each on average. K is a hundredth of
the institutions: with fewer updates to a version the slow ones' bases would be older than the lineage remembers.
"""

import argparse
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.figures import say
from benchmarks.readings import peak_resident_bytes, resident_bytes
from shared.parameters import count
from simulator.engine import compare
from simulator.scenario import Scenario, parse_scenario

SCENARIO = """
name = "scale"
[synthetic]
inputs = 64
classes = 10
hidden = [133]
rows_each = 50
[population]
institutions = {institutions}
dirichlet_alpha = 0.5
size = {{ distribution = "lognormal" }}
speed = {{ distribution = "lognormal" }}
[plan.local]
steps = 5
sample_rate = 0.25
learning_rate = 0.5
[plan.aggregation]
buffer_size = {buffer_size}
[ending]
updates = {updates}
[evaluation]
every_updates = {every_updates}
"""


@dataclass(frozen=True, slots=True)
class Figures:
    """One size. `peak_bytes` are resident, above what the process had with all its libraries loaded."""

    institutions: int
    updates: int
    parameters: int
    buffer_size: int
    versions: int
    accuracy: float
    seconds: float
    processor_seconds: float
    peak_bytes: int


def scenario(institutions: int, updates: int) -> Scenario:
    """What is simulated."""
    buffer_size, every = max(1, institutions // 100), max(1, updates // 10)
    text = SCENARIO.format(institutions=institutions, updates=updates, buffer_size=buffer_size, every_updates=every)
    return parse_scenario(text, source="benchmarks/simulator_scale.py")


def measure(institutions: int, updates: int) -> Figures:
    """Simulates one size in this process."""
    before, begun, spent = resident_bytes(os.getpid()), time.monotonic(), time.process_time()
    (result,) = compare(scenario(institutions, updates))
    seconds, processor_seconds = time.monotonic() - begun, time.process_time() - spent
    return Figures(
        institutions=institutions,
        updates=result.final.updates,
        parameters=count(result.parameters),
        buffer_size=result.buffer_size,
        versions=result.final.version,
        accuracy=round(result.final.metrics["accuracy"] or 0.0, 4),
        seconds=round(seconds, 1),
        processor_seconds=round(processor_seconds, 1),
        peak_bytes=peak_resident_bytes(os.getpid()) - before,
    )


def measured_apart(institutions: int, updates: int) -> Figures:
    """The same in a fresh process, whose memory nothing else has used."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(measure, institutions, updates).result()


def bytes_per_institution(found: list[Figures]) -> tuple[float, float]:
    """Slope and intercept of the least squares line through the peaks."""
    slope, intercept = np.polyfit([each.institutions for each in found], [each.peak_bytes for each in found], 1)
    return float(slope), float(intercept)


def main() -> None:
    """`python -m benchmarks.simulator_scale`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.simulator_scale", description=__doc__)
    parser.add_argument("--institutions", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--updates-each", type=int, default=10, help="on average")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each size instead of a table")
    chosen = parser.parse_args()
    found = []
    for institutions in chosen.institutions:
        found.append(measured_apart(institutions, institutions * chosen.updates_each))
        say(asdict(found[-1]), as_json=chosen.json)
    if len(found) > 1:
        slope, intercept = bytes_per_institution(found)
        say({"bytes_per_institution": round(slope), "bytes_in_any_case": round(intercept)}, as_json=chosen.json)


if __name__ == "__main__":
    main()
