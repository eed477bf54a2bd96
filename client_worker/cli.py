"""`fedqueue-client`: settings, logs, signals and exit codes; nothing else."""

import os
import signal
import socket
import threading
from pathlib import Path
from typing import Annotated

import structlog
import typer

from broker_config.connection import connect
from broker_config.streams import LineageReader
from client_worker.ledger import Ledger
from client_worker.local_data import open_data
from client_worker.local_work import LocalData, LocalWork, Member
from client_worker.policy import accept_plan
from client_worker.session import require_membership
from client_worker.settings import ClientSettings
from client_worker.worker import run
from shared.errors import SettingsError
from shared.logs import configure
from shared.outermost import run_program
from shared.settings import load

log = structlog.get_logger()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def client(
    config: Annotated[Path, typer.Option(help="TOML settings; every value also as FEDQUEUE_SECTION__KEY.")],
    check: Annotated[bool, typer.Option("--check", help="Validate settings, data and broker access, then end.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; instead of the settings' device.")] = None,
) -> None:
    """Trains on this institution's data and publishes noised updates; the data stay here."""
    settings = read_settings(config)
    settings = settings if device is None else settings.model_copy(update={"device": device})
    configure(level=settings.log_level)
    structlog.contextvars.bind_contextvars(institution=settings.institution)
    data = open_data(settings)
    if check:
        typer.echo(check_broker(settings, data))
        return
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stopping.set())
    ledger = Ledger(
        settings.ledger_file, run_id=settings.run_id, institution=settings.institution, incarnation=settings.incarnation
    )
    work = LocalWork(member(settings), data, ledger, stopping)
    run(lambda: connect(settings.broker, name=process_name(settings)), work, stopping)
    log.info("ended", reason="the run is finished" if settings.leave_when_finished else "asked to")


def process_name(settings: ClientSettings) -> str:
    """What the management UI shows for this process's connection."""
    return f"fedqueue-client/{settings.institution}/{socket.gethostname()}/{os.getpid()}"


def member(settings: ClientSettings) -> Member:
    """The institution as the loop knows it."""
    return Member(
        run_id=settings.run_id,
        institution=settings.institution,
        incarnation=settings.incarnation,
        pseudonym=settings.pseudonym,
        policy=settings.policy,
        at_least_seconds=settings.at_least_seconds,
        leave_when_finished=settings.leave_when_finished,
    )


def read_settings(config: Path) -> ClientSettings:
    """The settings of a file. Raises SettingsError."""
    try:
        text = config.read_text()
    except OSError as error:
        raise SettingsError(f"{config}: {error.strerror}; the operator gives you this file") from error
    return load(ClientSettings, text, path=config.absolute())


def check_broker(settings: ClientSettings, data: LocalData) -> str:
    """Logs in, reads the lineage and judges its plan; says what was found. Raises what a start would raise."""
    broker = connect(settings.broker, name=f"{process_name(settings)}/check")
    try:
        reader = LineageReader(broker)
        reader.catch_up()
        head, lineage = reader.current()
    finally:
        broker.close()
    require_membership(lineage, member(settings))
    if lineage.plan is not None:
        accept_plan(lineage.plan, settings.policy, task_hash=data.task_hash)
    return f"ok: {settings.institution} in run {head.manifest.run_id}, version {head.manifest.version}, {head.manifest.phase}"


def main() -> None:
    """`fedqueue-client`."""
    run_program(app)
