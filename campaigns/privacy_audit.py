"""`python -m campaigns.privacy_audit --seed S [--runs N --epsilons 1,3,8,none]`: attacks what a real institution publishes."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from broker_config.node import start_node
from broker_config.service import ending_on_sigterm
from campaigns.privacy_audit_data import Audited
from campaigns.privacy_audit_results import LEGEND, NO_NOISE, Finding, judged, line, table, verdict, write
from campaigns.privacy_audit_run import Run, attack
from operator_console.worker_processes import watched_over
from shared.errors import SettingsError
from shared.outermost import run_program

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def privacy_audit(  # noqa: PLR0913, PLR0917 - each argument is an option
    seed: Annotated[
        int, typer.Option(help="Flips the coins of the first run, the next number those of the next. Never noise.")
    ] = 1,
    runs: Annotated[int, typer.Option(min=1, help="Runs at each epsilon, judged together.")] = 5,
    epsilons: Annotated[str, typer.Option(help="Comma-separated; none is no noise.")] = "1,3,8,none",
    canaries: Annotated[int, typer.Option(min=1000, help="In each run; each is in with a chance of 1/2.")] = 5_000,
    updates: Annotated[int, typer.Option(min=1, help="Updates that each run publishes.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of SGD in one update.")] = 2,
    sample_rate: Annotated[
        float, typer.Option(min=0.001, max=1, help="Of the rows in each step; 1 is the sharpest audit.")
    ] = 1.0,
    json: Annotated[Path | None, typer.Option(help="Also write the result here, for the picture.")] = None,
) -> None:
    """Bounds from below what a real institution's updates give away; ends with 1 where that is more than it accounted."""
    console = Console()
    budgets = [_epsilon(word.strip()) for word in epsilons.split(",")]
    audited = Audited(canaries=canaries, updates=updates, steps=steps, sample_rate=sample_rate)
    folder = Path(tempfile.mkdtemp(prefix="fedqueue-audit-"))
    sound = False
    try:
        with ending_on_sigterm(), watched_over(folder):
            findings = list(_findings(folder, audited, budgets, range(seed, seed + runs), console=console))
        sound = all(finding.holds for finding in findings)
    finally:
        if sound:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            console.print(f"Logs and state folders are kept in {folder}", markup=False, soft_wrap=True)
    if json is not None:
        write(json, findings, audited)
    console.print(table(findings))
    for words in (LEGEND, verdict(findings)):
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    if not sound:
        raise typer.Exit(1)


def _epsilon(word: str) -> float | None:
    if word == NO_NOISE:
        return None
    try:
        epsilon = float(word)
    except ValueError:
        epsilon = 0.0
    if not 0 < epsilon < 100:
        raise SettingsError(f"--epsilons has {word!r}; give numbers above 0 and below 100, or {NO_NOISE}, with commas between")
    return epsilon


def _findings(
    folder: Path, audited: Audited, budgets: Sequence[float | None], seeds: Sequence[int], *, console: Console
) -> Iterator[Finding]:
    """One run after the other, on one private broker."""
    cluster = start_node(folder / "broker", remove_with_parent=True)
    try:
        for epsilon in budgets:
            runs: list[Run] = []
            for seed in seeds:
                place = folder / f"epsilon-{NO_NOISE if epsilon is None else format(epsilon, 'g')}-seed-{seed}"
                runs.append(attack(cluster.nodes[0], place, audited, epsilon=epsilon, seed=seed))
                console.print(line(runs[-1], audited), markup=False, highlight=False, soft_wrap=True)
            yield judged(runs, audited)
    finally:
        cluster.stop()


if __name__ == "__main__":
    run_program(app)
