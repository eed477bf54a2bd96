"""`python -m campaigns.faults --seed S --faults N [--nodes 3] [--json FILE]`: torments a real federation, then checks it."""

import contextlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from broker_config.definitions import OPERATOR
from broker_config.service import ending_on_sigterm
from campaigns.campaign import Campaign, drawn_from
from campaigns.checker import check
from campaigns.federation import Federation, Size, drawn_plan, founded
from campaigns.injections import Stage
from campaigns.programs import faketime_library, private_mounts, unmount
from campaigns.progress import Progress
from campaigns.results import Result, fault_line, result_of, show
from operator_console.worker_processes import watched_over
from shared.outermost import run_program

_BYTES_PER_FAULT = 16 * 2**20
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def faults(
    seed: Annotated[int, typer.Option(help="Draws the plan and the faults.")] = 1,
    faults: Annotated[int, typer.Option(min=1, help="How many faults.")] = 200,
    nodes: Annotated[int, typer.Option(min=1, max=3, help="Nodes of the private RabbitMQ cluster.")] = 3,
    json: Annotated[Path | None, typer.Option(help="Also write the result here, for `python -m campaigns.gather`.")] = None,
) -> None:
    """Injects faults into a federation and counts what was lost, doubled or forked; ends with 1 where anything was."""
    console = Console()
    mounts = private_mounts()
    if not mounts:
        console.print("No full disks: only root can mount a small one.")
    if faketime_library() is None:
        console.print("No clock jumps: libfaketime is not installed (setup/libfaketime).")
    folder = Path(tempfile.mkdtemp(prefix="fedqueue-faults-"))
    size = Size(nodes=nodes, kept_bytes=(faults + 50) * _BYTES_PER_FAULT, mounts=mounts)
    keep = True
    try:
        with ending_on_sigterm(), watched_over(folder):
            result = _run(folder, size, seed=seed, faults=faults, console=console)
        keep = not result.passed
    except KeyboardInterrupt:
        keep = False
        raise typer.Exit(130) from None
    finally:
        _leave(folder, keep=keep, console=console)
    if json is not None:
        json.write_text(result.model_dump_json(indent=2))
    show(result, console)
    if not result.passed:
        raise typer.Exit(1)


def _run(folder: Path, size: Size, *, seed: int, faults: int, console: Console) -> Result:
    rng, began_at = drawn_from(seed), time.monotonic()
    plan = drawn_plan(rng)
    with founded(folder, plan, size) as federation, Progress(federation.settings(OPERATOR)) as progress:
        stage = Stage(federation, progress, rng, size.mounts)

        def say(line: str) -> None:
            console.print(line, markup=False, highlight=False, soft_wrap=True)

        campaign = Campaign(stage, faults, lambda fault: say(fault_line(fault, began_at)))
        try:
            campaign.run()
            steps = [(step.at, step.pseudonym) for step in progress.steps]
            verdict = check(federation.evidence(campaign.outages(), steps))
        finally:
            campaign.close()
            _keep_states(federation)
        return result_of(campaign, verdict, seed=seed, nodes=size.nodes, seconds=time.monotonic() - began_at)


def _keep_states(federation: Federation) -> None:
    """The small disks end with this process; what they hold goes to the machine's."""
    for program in federation.programs.values():
        program.kill()
        if program.mounted:
            unmount(program.state_folder)


def _leave(folder: Path, *, keep: bool, console: Console) -> None:
    if keep:
        console.print(f"Logs and state folders are kept in {folder}", markup=False, soft_wrap=True)
    else:
        with contextlib.suppress(OSError):
            shutil.rmtree(folder)


if __name__ == "__main__":
    run_program(app)
