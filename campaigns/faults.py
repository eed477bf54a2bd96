"""`python -m campaigns.faults --seed S --faults N [--nodes 3] [--json FILE]`: torments a real federation, then checks it."""

import shutil
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from rich.console import Console

from broker_config.definitions import OPERATOR
from broker_config.service import ending_on_sigterm
from campaigns.campaign import Campaign, Fault, drawn_from
from campaigns.checker import Verdict, check
from campaigns.federation import Federation, Size, drawn_plan, founded
from campaigns.injections import KINDS, Stage
from campaigns.programs import faketime_library, private_mounts, removed_with_parent, unmount
from campaigns.progress import Progress
from campaigns.results import fault_line, result_of, show
from shared.errors import SettingsError
from shared.outermost import run_program

_BYTES_PER_FAULT = 16 * 2**20
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def faults(
    seed: Annotated[int, typer.Option(help="Draws the plan and the faults.")] = 1,
    faults: Annotated[int, typer.Option(min=1, help="How many faults.")] = 200,
    nodes: Annotated[int, typer.Option(min=1, max=3, help="Nodes of the private RabbitMQ cluster.")] = 3,
    only: Annotated[
        list[str] | None, typer.Option(help="Draw from these kinds alone; give it several times for several.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep logs and state folders even when nothing was found.")] = False,
    json: Annotated[Path | None, typer.Option(help="Also write the result here, for `python -m campaigns.gather`.")] = None,
) -> None:
    """Injects faults into a federation and counts what was lost, doubled or forked; ends with 1 where anything was."""
    console = Console()
    kinds = _known(only or list(KINDS))
    folder = Path(tempfile.mkdtemp(prefix="fedqueue-faults-"))
    rng, began_at, remove = drawn_from(seed), time.monotonic(), False
    try:
        with ending_on_sigterm(), removed_with_parent(folder):
            size = Size(nodes=nodes, kept_bytes=(faults + 50) * _BYTES_PER_FAULT, mounts=_what_is_possible(console))
            campaign, verdict = _run(folder, size, rng, faults=faults, kinds=kinds, console=console)
        result = result_of(campaign, verdict, seed=seed, nodes=nodes, seconds=time.monotonic() - began_at)
        remove = result.passed and not keep
    except KeyboardInterrupt:
        remove = not keep
        raise typer.Exit(130) from None
    finally:
        _leave(folder, remove=remove, console=console)
    if json is not None:
        json.write_text(result.model_dump_json(indent=2))
    show(result, console)
    if not result.passed:
        raise typer.Exit(1)


def _what_is_possible(console: Console) -> bool:
    """Whether there are full disks; says what is left out."""
    mounts = private_mounts()
    if not mounts:
        console.print("No full disks: only root can mount a small one.")
    if faketime_library() is None:
        console.print("No clock jumps: libfaketime is not installed (setup/libfaketime).")
    return mounts


def _known(kinds: list[str]) -> list[str]:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        raise SettingsError(f"no fault is called {unknown[0]!r}; there are: {', '.join(KINDS)}")
    return kinds


def _run(folder: Path, size: Size, rng: Random, *, faults: int, kinds: list[str], console: Console) -> tuple[Campaign, Verdict]:
    began_at = time.monotonic()

    def say(fault: Fault) -> None:
        console.print(fault_line(fault, began_at), markup=False, highlight=False, soft_wrap=True)

    plan = drawn_plan(rng)
    with founded(folder, plan, size) as federation, Progress(federation.settings(OPERATOR)) as progress:
        campaign = Campaign(Stage(federation, progress, rng, size.mounts), faults, kinds, say)
        try:
            campaign.run()
            steps = [(step.at, step.pseudonym) for step in progress.steps]
            return campaign, check(federation.evidence(campaign.outages(), steps))
        finally:
            campaign.close()
            _keep_states(federation)


def _keep_states(federation: Federation) -> None:
    """The small disks end with this process; what they hold goes to the machine's."""
    for program in federation.programs.values():
        program.kill()
        if program.mounted:
            unmount(program.state_folder)


def _leave(folder: Path, *, remove: bool, console: Console) -> None:
    if remove:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        console.print(f"Logs and state folders are kept in {folder}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    run_program(app)
