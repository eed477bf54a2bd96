"""`python -m benchmarks.rows`: every measurement of docs/benchmarks.md, as the rows of its tables. About ten minutes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

TRANSPORT = (
    (10_000, 4, "fp32", 20, 800.0),
    (10_000, 1, "fp32", 20, 400.0),
    (1_000_000, 4, "fp32", 30, 35.0),
    (10_000_000, 4, "fp32", 60, 2.5),
    (25_000_000, 4, "fp32", 90, 0.9),
    (1_000_000, 4, "bf16-down", 30, None),
    (10_000_000, 4, "bf16-down", 60, None),
    (1_000_000, 4, "compact", 30, 80.0),
    (10_000_000, 4, "compact", 60, 10.0),
    (25_000_000, 4, "compact", 60, 4.0),
)
"""Parameters, K, encoding, seconds, and the updates per second that are wanted."""
DRAIN = ((1_000_000, 80, None), (10_000_000, 24, 0.8))
"""Parameters, updates, and the ratio that is wanted."""


def figures(program: str, words: Sequence[object]) -> dict[str, Any]:
    """One measurement, in a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{program}", "--json", *map(str, words)]
    return dict(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))  # noqa: S603


def transport_row(found: dict[str, Any], wanted: float | None) -> str:
    """Columns as in docs/benchmarks.md."""
    above = (found["aggregator_peak_rss_bytes"] - found["aggregator_start_rss_bytes"]) / 1e6
    allowed = 3 * 4 * found["parameters"] / 1e6 + 64
    milliseconds = [1000 * found[f"{who}_cpu_seconds_per_update"] for who in ("aggregator", "client", "broker")]
    cells = [
        f"{found['parameters']:,}",
        found["buffer_size"],
        found["encoding"],
        f"{found['updates_per_second']:g}",
        wanted or "-",
    ]
    cells += [f"{found['megabytes_per_second']:.0f}", *(f"{each:.3g}" for each in milliseconds)]
    return _row([*cells, f"{found['aggregator_start_rss_bytes'] / 1e6:.0f}", f"{above:.0f}", f"{allowed:.0f}"])


def drain_row(found: dict[str, Any], wanted: float | None) -> str:
    """Columns as in docs/benchmarks.md."""
    rates = [found[name] for name in ("megabytes_per_second", "bare_pika_megabytes_per_second", "ratio_to_bare_pika")]
    return _row([f"{found['parameters']:,}", found["updates"], found["buffer_size"], *rates, wanted or "-"])


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    """`python -m benchmarks.rows`."""
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before", flush=True)
    for parameters, buffer_size, encoding, seconds, wanted in TRANSPORT:
        words = ["--parameters", parameters, "--buffer-size", buffer_size, "--encoding", encoding, "--seconds", seconds]
        print(transport_row(figures("transport", words), wanted), flush=True)
    for parameters, updates, ratio in DRAIN:
        print(drain_row(figures("drain", ["--parameters", parameters, "--updates", updates]), ratio), flush=True)


if __name__ == "__main__":
    main()
