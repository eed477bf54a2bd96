"""`python -m campaigns.fuzz --runs N`: a coverage-guided fuzzer on what others write: decoding, reassembly, admission.

libFuzzer through atheris. A crash, an undeclared exception, a hang or too much memory ends it; its input stays in build/fuzz.
"""

import argparse
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SHARES = {"decoding": 0.80, "reassembly": 0.12, "admission": 0.08}
"""Parts of all inputs: an input of the desk takes ten times as long as one of the decoder."""
RSS_LIMIT_MB = 512
INPUT_SECONDS = 10
MOST_INPUT_BYTES = 512
FOUND = Path("build/fuzz")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One target's run, as libFuzzer tells it at its end."""

    target: str
    inputs: int
    coverage: int
    peak_mb: int
    seconds: float
    failed: bool


def outcome(target: str, told: str, code: int, seconds: float) -> Outcome:
    """Reads libFuzzer's last words. A run that did not come to its end has failed, whatever its exit code."""
    inputs, peak = (re.search(rf"stat::{name}:\s+(\d+)", told) for name in ("number_of_executed_units", "peak_rss_mb"))
    coverage = re.findall(r"cov: (\d+)", told)
    counted = [int(each[1]) if each else 0 for each in (inputs, peak)]
    return Outcome(target, counted[0], int(coverage[-1]) if coverage else 0, counted[1], seconds, code != 0 or counted[0] == 0)


def run_all(runs: int, seed: int) -> list[Outcome]:
    """Every target in a process of its own, one after another; a failing one's last words are shown."""
    FOUND.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for target, share in SHARES.items():
        began = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "campaigns.fuzz",
            "--target",
            target,
            "--runs",
            str(int(runs * share)),
            "--seed",
            str(seed),
        ]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603
        found = outcome(target, done.stderr, done.returncode, time.monotonic() - began)
        print(
            f"{target:12} {found.inputs:>10,} inputs, coverage {found.coverage}, peak {found.peak_mb} MB, {found.seconds:.0f} s",
            flush=True,
        )
        if found.failed:
            print(done.stderr[-6000:])
        outcomes.append(found)
    return outcomes


def fuzz(target: str, runs: int, seed: int) -> None:
    """One target in this process; ends it."""
    import atheris
    import structlog

    with atheris.instrument_imports(include=["shared", "aggregator_worker"]):
        from campaigns.fuzz_targets import targets
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    limits = [
        f"-rss_limit_mb={RSS_LIMIT_MB}",
        f"-timeout={INPUT_SECONDS}",
        f"-max_len={MOST_INPUT_BYTES}",
        "-print_final_stats=1",
    ]
    where = [f"-runs={runs}", f"-seed={seed}", f"-artifact_prefix={FOUND}/{target}-"]
    with tempfile.TemporaryDirectory(prefix="fedqueue-fuzz-") as folder:
        atheris.Setup([sys.argv[0], *limits, *where], targets(Path(folder))[target])
        atheris.Fuzz()


def main(words: Sequence[str] | None = None) -> None:
    """`python -m campaigns.fuzz`."""
    parser = argparse.ArgumentParser(prog="python -m campaigns.fuzz", description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=list(SHARES), help="this one only, in this process")
    chosen = parser.parse_args(words)
    if chosen.target:
        fuzz(chosen.target, chosen.runs, chosen.seed)
        return
    outcomes = run_all(chosen.runs, chosen.seed)
    failed = [each.target for each in outcomes if each.failed]
    inputs, seconds = sum(each.inputs for each in outcomes), sum(each.seconds for each in outcomes)
    print(f"{inputs:,} inputs in {seconds:.0f} s, failed: {', '.join(failed) or 'none'}, seed {chosen.seed}")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
