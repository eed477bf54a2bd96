"""`python -m benchmarks.utility`: what privacy costs in AUC, over seeds, in federations of one process with real training.

Data as the demonstration draws them, the aggregator's own rule, DP-SGD by opacus. docs/privacy.md has the figures.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import operator_console
from operator_console import plots
from operator_console.demo_data import prepare
from shared.errors import FederationError, SettingsError
from simulator.epsilon_sweep import read_folder
from simulator.utility import SPEEDS, STUDIES, Row, Study, Trial, Verdict, epsilon_text, rows, trials, verdicts

HEADINGS = ("speeds", "epsilon", "noise", "mean", "worst", "best", "lost, mean", "lost, worst")
PICTURE_STYLE = """.page { fill: var(--card); }
svg { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
"""


def measured(study: Study, *, seeds: int, speeds: Sequence[str]) -> Iterator[Trial]:
    """Every trial of the study, as it is done."""
    for seed in range(seeds):
        with tempfile.TemporaryDirectory(prefix="fedqueue-utility-") as folder:
            prepare(study.task, institutions=None, seed=seed, folder=Path(folder), split=study.split)
            spec, trainings, held_out = read_folder(Path(folder))
            for each in speeds:
                yield from trials(study, spec, trainings, held_out, seed=seed, speeds=each)


def table(found: Sequence[Row]) -> str:
    """For people."""
    lines = [HEADINGS, *(_cells(row) for row in found)]
    return "\n".join("".join(f"{cell:>12}" for cell in line).rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    noise = "" if row.noise_multiplier is None else f"{row.noise_multiplier:.2f}"
    figures = (f"{figure:.4f}" for figure in (row.mean, row.least, row.most, row.lost, row.most_lost))
    return (row.speeds, "none" if row.epsilon is None else f"{row.epsilon:g}", noise, *figures)


def verdict_line(verdict: Verdict) -> str:
    """For people."""
    return (
        f"{'met' if verdict.met else 'MISSED':8}{verdict.speeds}: {verdict.said} {verdict.found:.4f}, wanted {verdict.wanted:g}"
    )


def picture(study: Study, found: Sequence[Trial]) -> str:
    """Epsilon against the figure of every seed, at equal speeds, as an SVG file."""
    by_epsilon = {epsilon: [each.figure for each in found if each.epsilon == epsilon] for epsilon in study.epsilons}
    without_noise = by_epsilon[None]
    columns = []
    for epsilon, figures in by_epsilon.items():
        wanted = study.least.get(epsilon)
        if epsilon in study.most_lost:
            wanted = fmean(without_noise) - study.most_lost[epsilon]
        columns.append(plots.Repeated("none" if epsilon is None else f"{epsilon:g}", figures, wanted))
    said = ", ".join(f"{fmean(figures):.3f} at {epsilon_text(epsilon)}" for epsilon, figures in by_epsilon.items())
    title = f"{study.task}: mean AUC of {len(without_noise)} seeds: {said}"
    css = (Path(operator_console.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    style = css[: css.index("* {")] + PICTURE_STYLE
    return plots.standalone(plots.epsilon_seeds(columns, name="AUC"), title=title, style=style)


def options(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.utility", description=__doc__)
    parser.add_argument("--task", help="one of " + ", ".join(study.task for study in STUDIES) + "; all unless given")
    parser.add_argument("--speeds", help="one of " + ", ".join(SPEEDS) + "; both unless given")
    parser.add_argument("--seeds", type=int, help="how many, from 0; the study's unless given")
    parser.add_argument("--pictures", type=Path, help="a folder for utility-<task>.svg, drawn at equal speeds")
    parser.add_argument("--json", action="store_true", help="one line of JSON per task, every trial in it, instead of tables")
    found = parser.parse_args(words)
    if found.task not in (None, *(study.task for study in STUDIES)):
        raise SettingsError(f"--task {found.task} is not measured here; choose one of {[study.task for study in STUDIES]}")
    if found.speeds not in (None, *SPEEDS):
        raise SettingsError(f"--speeds {found.speeds!r} is not known; choose one of {SPEEDS}")
    if found.pictures and found.speeds == "one slow":
        raise SettingsError("pictures are drawn at equal speeds; leave --speeds away")
    return found


def main() -> None:
    """`python -m benchmarks.utility`; exit code 1 where a target is missed."""
    try:
        chosen = options()
        missed = [not _report(study, chosen) for study in STUDIES if chosen.task in (None, study.task)]
    except FederationError as error:
        raise SystemExit(str(error)) from error
    raise SystemExit(int(any(missed)))


def _report(study: Study, chosen: argparse.Namespace) -> bool:
    """Measures, says and draws; whether every target was met."""
    seeds = chosen.seeds or study.seeds
    done = list(measured(study, seeds=seeds, speeds=[chosen.speeds] if chosen.speeds else SPEEDS))
    found = rows(done)
    judged = verdicts(study, found)
    if chosen.json:
        figures = {"task": study.task, "target_delta": study.target_delta, "seeds": seeds, "rows": [asdict(row) for row in found]}
        print(
            json.dumps(figures | {"met": all(each.met for each in judged), "trials": [asdict(each) for each in done]}), flush=True
        )
    else:
        title = f"{study.task}{f', {study.split}' if study.split else ''}, delta {study.target_delta:g}, {seeds} seeds"
        print(title, table(found), *map(verdict_line, judged), sep="\n", end="\n\n", flush=True)
    if chosen.pictures:
        at_equal_speed = [each for each in done if each.speeds == "equal"]
        (chosen.pictures / f"utility-{study.task}.svg").write_text(picture(study, at_equal_speed), encoding="utf-8")
    return all(each.met for each in judged)


if __name__ == "__main__":
    main()
