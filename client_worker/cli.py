"""`fedqueue-client`: settings, logs, signals and exit codes; nothing else."""

import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer

from broker_config.connection import connect
from broker_config.service import ShowVersion, process_name, read_settings, stop_on_signals
from broker_config.tls import readable_expiry
from client_worker import telling
from client_worker.check import doubtful_count, require_broker, require_credentials
from client_worker.course import Course
from client_worker.dataset_entry import dataset_facts, with_count
from client_worker.ledger import Ledger
from client_worker.ledger_reading import totals_of
from client_worker.local_work import LocalWork, Member
from client_worker.metrics import ClientMetrics
from client_worker.settings import ClientSettings
from client_worker.worker import run
from monitoring.asking import Ready, end_as_ready
from monitoring.own_state import new_registry
from monitoring.vitals import Vitals
from monitoring.watched import watched
from shared.command_page import GroupPage, epilog, lay_out
from shared.logs import configure
from shared.outermost import run_program

if TYPE_CHECKING:
    from client_worker.personalise import Version

log = structlog.get_logger()
app = typer.Typer(
    cls=GroupPage,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=epilog(
        (
            "fedqueue-client --config institutions/north/client.toml --check",
            "fedqueue-client --config institutions/north/client.toml --dry-run",
            "fedqueue-client --config /etc/fedqueue/north/client.toml",
            "fedqueue-client --config /etc/fedqueue/north/client.toml --ready",
        )
    ),
)
EXAMPLES = {
    "personalise": (
        "fedqueue-client personalise --config client.toml --best",
        "fedqueue-client personalise --config client.toml --version 40 --test test.csv --out own.safetensors",
    ),
}


ConfigFile = typer.Option("--config", help="TOML settings; every value also as FEDQUEUE_SECTION__KEY.")


@app.callback(invoke_without_command=True)
def client(  # noqa: PLR0913 - typer takes one parameter for each option
    context: typer.Context,
    *,
    config: Annotated[Path | None, ConfigFile] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what is wrong with keys, data or broker, then end.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train once, show what would be sent; send and charge nothing.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; instead of the settings' device.")] = None,
    ready: Ready = False,
    show_version: ShowVersion = False,
) -> None:
    """Trains on this institution's data and publishes noised updates; the data stay here."""
    if context.invoked_subcommand is not None:
        return
    if config is None:
        raise typer.BadParameter("it is missing; name the settings file", param_hint="'--config'")
    stopping = threading.Event() if check else stop_on_signals()
    settings = read_settings(ClientSettings, config)
    if ready:
        end_as_ready(settings.monitoring)
    settings = settings if device is None else settings.model_copy(update={"device": device})
    configure(level=settings.log_level)
    structlog.contextvars.bind_contextvars(institution=settings.institution)
    if check:
        _check(settings)
        return
    if dry_run:
        _rehearse(settings, stopping)
        return
    _take_part(settings, stopping)
    log.info("ended", reason="the run is finished" if settings.leave_when_finished else "asked to")


def _check(settings: ClientSettings) -> None:
    require_credentials(settings.broker, datetime.now(UTC))
    from client_worker.local_data import open_data

    data = open_data(settings)
    typer.echo(require_broker(settings.broker, member(settings), data, datetime.now(UTC)))
    if (hours := telling.hours(settings.schedule.as_windows(), datetime.now(UTC))) is not None:
        typer.echo(hours)
    if (doubt := doubtful_count(settings.num_examples, data.units)) is not None:
        typer.echo(doubt, err=True)


def _rehearse(settings: ClientSettings, stopping: threading.Event) -> None:
    from rich.console import Console
    from rich.table import Table

    from client_worker.dry_run import rehearse, told
    from client_worker.local_data import open_data

    data, course = open_data(settings), Course(stopping.is_set)
    name = process_name("fedqueue-client", settings.institution, "dry-run")
    with closing(connect(settings.broker, name=name)) as broker:
        found = rehearse(broker, member(settings), data, totals_of(settings.ledger_file), course)
    table = Table(box=None, show_header=False, pad_edge=False)
    for heading, sentence in told(found, member(settings), data.unit):
        table.add_row(heading, sentence)
    Console().print(table, highlight=False, markup=False)


def _take_part(settings: ClientSettings, stopping: threading.Event) -> None:
    """Answers whoever watches from here on: the import of torch, reading the rows and the first training take long."""
    gauges = ClientMetrics(Vitals(stalled_after_seconds=settings.monitoring.stalled_after_seconds))
    registry = new_registry("client", gauges.vitals, lambda: readable_expiry(settings.broker.tls))
    gauges.register(registry)
    with watched(settings.monitoring, gauges.vitals, registry, stopping):
        # Importing torch takes seconds, in which SIGTERM must already end the worker cleanly.
        from client_worker.local_data import open_data

        data = open_data(settings)
        ledger = Ledger(
            settings.ledger_file, run_id=settings.run_id, institution=settings.institution, incarnation=settings.incarnation
        )
        ledger.require_dataset(dataset_facts(settings, fingerprint=data.fingerprint, unit=data.unit))
        data = with_count(settings, data, ledger)
        work = LocalWork(member(settings), data, ledger, stopping, gauges=gauges)
        log.info("started", says=telling.starts(settings.policy, examples=data.num_examples, unit=data.unit))
        run(lambda: connect(settings.broker, name=process_name("fedqueue-client", settings.institution)), work, stopping)


@app.command()
def personalise(
    config: Annotated[Path, ConfigFile],
    test: Annotated[Path | None, typer.Option(help="Rows to judge by, not trained on; else validation_file.")] = None,
    version: Annotated[int | None, typer.Option(min=0, help="Begin with this version instead of the newest.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Begin with the version that was best on held-out rows.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE.safetensors", help="Instead of the state folder.")] = None,
) -> None:
    """Fine-tune the newest model on this institution's rows, for itself alone: nothing is published, no budget is spent."""
    if best and version is not None:
        raise typer.BadParameter("--best and --version exclude each other", param_hint="'--best'")
    configure(level="error")
    try:
        _personalise(read_settings(ClientSettings, config), test=test, version="best" if best else version, out=out)
    finally:
        structlog.reset_defaults()  # its errors are sentences for people, not lines of a log


def _personalise(settings: ClientSettings, *, test: Path | None, version: "Version", out: Path | None) -> None:
    # Only whoever asks for it waits for torch.
    from rich.console import Console

    from client_worker.personal_table import told
    from client_worker.personalise import compare, fetch, file_for, keep, read_rows

    path, rows = file_for(settings, out), read_rows(settings, test)
    with closing(connect(settings.broker, name=process_name("fedqueue-client", settings.institution, "personalise"))) as broker:
        source, model = fetch(broker, member(settings), rows.spec, version=version)
    found = compare(rows, model)
    keep(path, rows, source, found)
    Console().print(told(rows, source, found))
    typer.echo(f"personalised model: {path}")


def member(settings: ClientSettings) -> Member:
    """The institution as the loop knows it."""
    return Member(
        run_id=settings.run_id,
        institution=settings.institution,
        incarnation=settings.incarnation,
        pseudonym=settings.pseudonym,
        policy=settings.policy,
        at_least_seconds=settings.at_least_seconds,
        windows=settings.schedule.as_windows(),
        upload_bytes_per_second=settings.limits.upload_bytes_per_second,
        leave_when_finished=settings.leave_when_finished,
    )


lay_out(app, EXAMPLES)


def main() -> None:
    """`fedqueue-client`."""
    run_program(app)
