"""`fedqueue`: the operator's command. Whatever is slow to import is imported by the command that needs it."""

from pathlib import Path
from typing import Annotated

import structlog
import typer
from rich.console import Console

from broker_config.service import ShowVersion
from operator_console.audit_command import audit
from operator_console.backup_commands import backup, republish, restore
from operator_console.broker_commands import broker_app
from operator_console.ca_commands import ca_app
from operator_console.command_examples import EXAMPLES
from operator_console.command_options import EpsilonText, epsilon_of
from operator_console.console_commands import console, console_user_app
from operator_console.dead_letter_commands import dead_letter_app
from operator_console.doctor import doctor
from operator_console.init_command import init
from operator_console.institution_commands import institution_app
from operator_console.kit_commands import kit_app
from operator_console.lineage_commands import lineage_app
from operator_console.logs_command import logs
from operator_console.model_command import model_app
from operator_console.new_command import new
from operator_console.operation_commands import pause, resume, stop
from operator_console.plan_commands import plan_app
from operator_console.predict_command import predict
from operator_console.privacy_commands import privacy_app
from operator_console.replay_command import replay
from operator_console.roll_back_command import roll_back
from operator_console.sent_command import sent
from operator_console.simulate_command import simulate
from operator_console.status import status
from operator_console.sweep_command import sweep
from operator_console.track_command import track
from shared.command_page import GroupPage, lay_out
from shared.logs import configure
from shared.outermost import run_program

FOUND, OPERATE, PEOPLE = "Found a federation", "Operate it", "Who takes part"
MODEL, KEEP, TRY = "The model, and what it is made of", "Keep it, and bring it back", "Try it on this machine"

# Plain help and errors: a wrong value is one sentence that a script can show as well.
app = typer.Typer(cls=GroupPage, pretty_exceptions_enable=False, no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def fedqueue(show_version: ShowVersion = False) -> None:
    """Asynchronous federated learning in which RabbitMQ is the only thing the institutions share."""
    configure(level="error")


def demo(  # noqa: PLR0913 - typer takes one parameter for each option
    *,
    task: Annotated[str, typer.Option(help="sba-loans, credit-default, heart-disease, digits or mnist.")] = "sba-loans",
    institutions: Annotated[int | None, typer.Option(min=1, help="How many; without it, what the task suggests.")] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Updates that an institution gives in all.")] = None,
    buffer_size: Annotated[int | None, typer.Option(min=1, help="K: a version is made of so many updates.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="For split, start and schedule; noise is never seeded.")] = 0,
    epsilon: EpsilonText = "3",
    split: Annotated[str | None, typer.Option(help="How the rows are divided, where the task offers a choice.")] = None,
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Encrypt updates and models, so that the broker cannot read them.")
    ] = False,
    chaos: Annotated[
        bool,
        typer.Option("--chaos", help="Kill the aggregator and a bank, stop the broker, and show that nothing is lost."),
    ] = False,
    web_console: Annotated[
        bool, typer.Option("--console", help="Show the run in a browser too; --chaos does in any case.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder, new or empty; without it, a new one below runs/.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Run a whole federation on this machine: private broker, aggregator, six banks, report. About a minute."""
    from operator_console.demo import DemoOptions, run_demo

    options = DemoOptions(
        task=task,
        institutions=institutions,
        updates=updates,
        buffer_size=buffer_size,
        seed=seed,
        epsilon=epsilon_of(epsilon),
        split=split,
        sealed=sealed,
        chaos=chaos,
        web_console=web_console,
        out=out,
    )
    run_demo(options, Console(quiet=quiet))


def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")]) -> None:
    """Write report.html again from the other files of a run."""
    from operator_console.report import write_report

    Console().print(str(write_report(folder)), highlight=False, soft_wrap=True)


COMMANDS = {
    FOUND: (new, init),
    OPERATE: (status, console, logs, doctor, audit, pause, resume, stop),
    PEOPLE: (sent,),
    MODEL: (predict, track, replay, roll_back),
    KEEP: (backup, restore, republish),
    TRY: (demo, simulate, sweep, report),
}
GROUPS = {
    FOUND: {"broker": broker_app, "ca": ca_app},
    OPERATE: {"plan": plan_app, "dead-letters": dead_letter_app, "console-user": console_user_app},
    PEOPLE: {"institution": institution_app, "kit": kit_app, "privacy": privacy_app},
    MODEL: {"model": model_app, "lineage": lineage_app},
}
for panel, commands in COMMANDS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for panel, groups in GROUPS.items():
    for name, group in groups.items():
        app.add_typer(group, name=name, rich_help_panel=panel)
lay_out(app, EXAMPLES)


def main() -> None:
    """`fedqueue`."""
    run_program(_for_people)


def _for_people() -> None:
    """Runs the command; its error is then told as a sentence, not as a line of a log."""
    try:
        app()
    finally:
        structlog.reset_defaults()
