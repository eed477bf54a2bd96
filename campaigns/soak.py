"""`python -m campaigns.soak --minutes M`: a federation at a brisk pace, and nothing but time: what it takes must stay flat."""

import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from broker_config.definitions import OPERATOR
from broker_config.service import ending_on_sigterm
from campaigns.federation import TASK_HASH, Federation, Size, founded
from campaigns.programs import removed_with_parent
from campaigns.progress import Progress
from campaigns.samples import MIB, Reading, growth_bytes, not_flat, over_limit, read_process, stream_bytes
from shared.errors import FederationError
from shared.outermost import run_program
from shared.plan import AggregationPlan, Limits, LocalPlan, Plan, PrivacyPlan

SIZE = Size(nodes=1, kept_bytes=8 * MIB, mounts=False, training_seconds=0.02, segment_bytes=MIB, lineage_bytes=8 * MIB)
PLAN = Plan(
    task="campaign",
    task_hash=TASK_HASH,
    aggregation=AggregationPlan(buffer_size=2, max_wait_seconds=1.0, server_momentum=0.5),
    local=LocalPlan(updates=10**9),
    privacy=PrivacyPlan(mechanism="none", epsilon=None),
    limits=Limits(update_bytes=256 * 1024, chunk_bytes=16 * 1024, letters_per_day=None),
    broadcast="bfloat16",
    update_encoding="int8",
)
WARM_UP_SECONDS = 15.0
SAMPLES = 120
LEAST_PAUSE_SECONDS = 0.5
STREAMS_THAT_FILL = ("fl.model", "fl.state")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(slots=True)
class Watched:
    """What was read so far."""

    processes: dict[str, list[Reading]] = field(default_factory=dict)
    largest_bytes: dict[str, int] = field(default_factory=dict)
    settled: list[int] = field(default_factory=list)

    def look(self, federation: Federation, progress: Progress, at_seconds: float) -> None:
        """One reading of everything. Raises WorkerEndedError where a worker has ended."""
        for name, program in federation.programs.items():
            program.process.demand_alive()
            self.processes.setdefault(name, []).append(read_process(program.process.pid, at_seconds))
        for name, size in stream_bytes(federation.cluster.nodes[0].folder).items():
            self.largest_bytes[name] = max(size, self.largest_bytes.get(name, 0))
        self.settled.append(len(progress.steps))

    def troubles(self) -> list[str]:
        """What is not flat; and what makes the rest prove nothing: no progress, or streams that never reached their limit."""
        found = [trouble for name, readings in self.processes.items() for trouble in not_flat(name, readings)]
        found += over_limit(self.largest_bytes, SIZE.kept_bytes, SIZE.segment_bytes)
        tenth = max(1, len(self.settled) // 10)
        if any(later <= earlier for earlier, later in zip(self.settled, self.settled[tenth:], strict=False)):
            found.append("nothing was settled for a tenth of the time")
        if any(self.largest_bytes.get(name, 0) < SIZE.kept_bytes - SIZE.segment_bytes for name in STREAMS_THAT_FILL):
            found.append("the streams never reached their limits: give it more minutes")
        return found


@app.command()
def soak(minutes: Annotated[float, typer.Option(min=0.5, help="How long, after a short warm-up.")] = 30.0) -> None:
    """Lets a federation run and watches what it takes; ends with 1 where anything grows."""
    console = Console()
    folder = Path(tempfile.mkdtemp(prefix="fedqueue-soak-"))
    troubles = ["it did not come to its end"]
    try:
        with ending_on_sigterm(), removed_with_parent(folder):
            watched = _run(folder, minutes)
        troubles = watched.troubles()
    except KeyboardInterrupt:
        troubles = []
        raise typer.Exit(130) from None
    finally:
        if troubles:
            console.print(f"Logs and state folders are kept in {folder}", markup=False, soft_wrap=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    _show(watched, minutes, troubles, console)
    if troubles:
        raise typer.Exit(1)


def _run(folder: Path, minutes: float) -> Watched:
    watched = Watched()
    with founded(folder, PLAN, SIZE) as federation, Progress(federation.settings(OPERATOR)) as progress:
        for program in federation.programs.values():
            program.start()
        time.sleep(WARM_UP_SECONDS)
        if not progress.steps:
            raise FederationError(f"nothing was settled within {WARM_UP_SECONDS:g} s: see {folder / 'logs'}")
        began_at, seconds = time.monotonic(), 60 * minutes
        while (now := time.monotonic() - began_at) < seconds:
            watched.look(federation, progress, now)
            time.sleep(max(LEAST_PAUSE_SECONDS, seconds / SAMPLES))
    return watched


def _show(watched: Watched, minutes: float, troubles: list[str], console: Console) -> None:
    table = Table("process", "MiB", "at the end", "second half", "files", "threads")
    for name, readings in watched.processes.items():
        first, last = readings[0], readings[-1]
        sizes = (f"{first.resident_bytes / MIB:.1f}", f"{last.resident_bytes / MIB:.1f}", f"{growth_bytes(readings) / MIB:+.2f}")
        table.add_row(name, *sizes, f"{first.descriptors} {last.descriptors}", f"{first.threads} {last.threads}")
    console.print(table)
    streams = Table(
        "stream",
        "largest MiB on disk",
        title=f"limit {SIZE.kept_bytes / MIB:.0f} MiB, segments {SIZE.segment_bytes / MIB:.0f} MiB",
    )
    for name, size in sorted(watched.largest_bytes.items()):
        streams.add_row(name, f"{size / MIB:.1f}")
    console.print(streams)
    for trouble in troubles:
        console.print(f"FOUND {trouble}", markup=False, soft_wrap=True)
    updates = watched.settled[-1] - watched.settled[0]
    growth = max(growth_bytes(readings) for readings in watched.processes.values()) / MIB
    end = "ok" if not troubles else f"{len(troubles)} troubles"
    console.print(
        f"soak: {minutes:g} minutes, {updates} updates, memory {growth:+.1f} MiB at most in the second half, {end}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    run_program(app)
