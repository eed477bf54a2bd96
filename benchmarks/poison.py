"""`python -m benchmarks.poison`: attacks of one bank against the defences of the plan. Some minutes.

docs/aggregation.md has the figures.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.poison_study import ATTACKERS, ATTACKS, DEFENCES, HONEST, SPLIT, TASK, Case, Row, Trial, divided, rows, trial
from operator_console.demo_data import prepare
from shared.errors import FederationError
from simulator.epsilon_sweep import read_folder

HEADINGS = {"none": "nothing", "cap": "cap", "gate": "gate", "all": "cap, gate, quarantine"}


def case_of(seed: int) -> Case:
    """The banks of one seed, from the data that ship with fedqueue."""
    with tempfile.TemporaryDirectory(prefix="fedqueue-poison-") as folder:
        prepare(TASK, institutions=None, seed=seed, folder=Path(folder), split=SPLIT)
        spec, trainings, held_out = read_folder(Path(folder))
    return divided(spec, trainings, held_out, seed=seed)


def measured(seeds: int) -> Iterator[Trial]:
    """Every trial, as it is done. Without an attack the attacker's share has no meaning, and is run once."""
    for seed in range(seeds):
        case = case_of(seed)
        for attack in ATTACKS:
            for share in ATTACKERS if attack != HONEST else [max(ATTACKERS)]:
                for defence in DEFENCES:
                    yield trial(case, attack, share, defence, seed=seed)


def table(found: Sequence[Row]) -> str:
    """In Markdown: the mean AUC, and in brackets the share of the honest banks' updates that were rejected."""
    lines = [f"| attack | its share of the data | {' | '.join(HEADINGS.values())} |", "|---" * (2 + len(HEADINGS)) + "|"]
    for named in dict.fromkeys((row.attack, row.share) for row in found):
        cells = {row.defence: _cell(row) for row in found if (row.attack, row.share) == named}
        share = "-" if named[0] == HONEST.name else f"{named[1]:.0%}"
        lines.append(f"| {named[0]} | {share} | {' | '.join(cells[defence] for defence in HEADINGS)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    return f"{row.auc:.3f}" + (f" ({row.honest_rejected:.1%})" if row.honest_rejected else "")


def main() -> None:
    """`python -m benchmarks.poison`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.poison", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="one line of JSON, every trial in it")
    shown.add_argument("--rows", action="store_true", help="the table of docs/aggregation.md alone")
    chosen = parser.parse_args()
    try:
        trials = list(measured(chosen.seeds))
    except FederationError as error:
        raise SystemExit(str(error)) from error
    found = rows(trials)
    if chosen.json:
        print(
            json.dumps(
                {"seeds": chosen.seeds, "rows": [asdict(row) for row in found], "trials": [asdict(each) for each in trials]}
            )
        )
        return
    print(table(found))
    if not chosen.rows:
        capped = max(row.honest_capped for row in found)
        confined = sum(each.honest_quarantined for each in trials)
        print(f"honest updates scaled down: {capped:.1%} at most; honest banks in quarantine: {confined} in {len(trials)} trials")


if __name__ == "__main__":
    main()
