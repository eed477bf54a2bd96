"""`fedqueue-aggregator`: settings, logs, signals and exit codes; nothing else."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import structlog
import typer

from aggregator_worker.defence import Gate
from aggregator_worker.ending import demand_rows
from aggregator_worker.metrics import AggregatorMetrics
from aggregator_worker.settings import AggregatorSettings
from aggregator_worker.term import TermSettings
from aggregator_worker.worker import run
from broker_config.connection import connect, guard_of
from broker_config.service import ShowVersion, process_name, read_settings, stop_on_signals
from broker_config.streams import newest
from broker_config.tls import readable_expiry
from monitoring.asking import Ready, end_as_ready
from monitoring.own_state import new_registry
from monitoring.vitals import Vitals
from monitoring.watched import watched
from shared.command_page import lay_out
from shared.errors import SettingsError
from shared.logs import configure
from shared.messages import Metrics, Report, pseudonym
from shared.outermost import run_program
from shared.parameters import Parameters
from shared.tasks.spec import parse_task

log = structlog.get_logger()
app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def aggregator(
    config: Annotated[Path, typer.Option(help="TOML settings; every value also as FEDQUEUE_SECTION__KEY.")],
    check: Annotated[bool, typer.Option("--check", help="Validate settings, data and broker access, then end.")] = False,
    ready: Ready = False,
    show_version: ShowVersion = False,
) -> None:
    """Folds the institutions' updates into new versions of the global model, as they arrive."""
    stopping = threading.Event() if check else stop_on_signals()
    settings = read_settings(AggregatorSettings, config)
    if ready:
        end_as_ready(settings.monitoring)
    configure(level=settings.log_level)
    if check:
        term_settings(settings, stopping)
        typer.echo(check_broker(settings))
        return
    _lead(settings, stopping)
    log.info("ended", reason="asked to")


def _lead(settings: AggregatorSettings, stopping: threading.Event) -> None:
    """Answers whoever watches from here on: the imports and the rows of an evaluation take seconds."""
    secret, vitals = settings.run_secret(), Vitals(stalled_after_seconds=settings.monitoring.stalled_after_seconds)
    metrics = AggregatorMetrics(vitals, names=lambda: {pseudonym(secret, name): name for name in settings.members()})
    registry = new_registry("aggregator", vitals, lambda: readable_expiry(settings.broker.tls))
    metrics.register(registry)
    with watched(settings.monitoring, vitals, registry, stopping):
        term = replace(term_settings(settings, stopping), metrics=metrics)
        run(lambda: connect(settings.broker, name=process_name("fedqueue-aggregator"), guard=term.guard), term, stopping)


def term_settings(settings: AggregatorSettings, stopping: threading.Event) -> TermSettings:
    """Everything a term needs, read and checked before anything connects. Raises SettingsError."""
    settings.members()
    evaluate, gate = _evaluation(settings)
    return TermSettings(
        claimant=process_name("fedqueue-aggregator"),
        state_folder=settings.state_folder,
        run_secret=settings.run_secret(),
        members=settings.members,
        stopping=stopping.is_set,
        consumer_timeout_seconds=settings.durability.consumer_timeout_seconds,
        orphan_seconds=settings.durability.orphan_seconds,
        evaluate=evaluate,
        gate=gate,
        guard=guard_of(settings.broker),
        on_admitted=settings.remember,
        on_report=lambda report: _keep_report(settings.state_folder / "reports.jsonl", report),
    )


def _evaluation(settings: AggregatorSettings) -> tuple[Callable[[Parameters], Metrics] | None, Gate | None]:
    """What is asked of every version, and of every update."""
    if settings.held_out_file is None:
        return None, None
    if settings.task_file is None:
        raise SettingsError("held_out_file needs task_file, which says how to read it")
    # torch costs 2 CPU-seconds and 200 MB per process, and an aggregator without held-out rows needs none of it
    from aggregator_worker.evaluation import evaluation_on, held_out, log_loss_on

    try:
        spec = parse_task(settings.task_file.read_text(), source=str(settings.task_file))
    except OSError as error:
        raise SettingsError(f"task_file {settings.task_file}: {error.strerror}") from error
    rows = held_out(spec, settings.held_out_file)
    return evaluation_on(spec, rows), log_loss_on(spec, rows)


def _keep_report(file: Path, report: Report) -> None:
    """Reports stay with the operator: they are noised, but nobody else has a use for them."""
    line = {**report.metrics, "institution": report.institution, "version": report.version, "epsilon": report.epsilon}
    with file.open("a") as opened:
        opened.write(json.dumps(line) + "\n")


def check_broker(settings: AggregatorSettings) -> str:
    """Logs in, reads the lineage, says what was found. Raises what a start would raise."""
    broker = connect(settings.broker, name=process_name("fedqueue-aggregator", "check"))
    try:
        head, lineage = newest(broker)
    finally:
        broker.close()
    if lineage.plan is not None:
        demand_rows(lineage.plan.ending, held_out=settings.held_out_file is not None)
    members = sum(not entry.removed for entry in (lineage.table or {}).values())
    return f"ok: run {head.manifest.run_id}, version {head.manifest.version}, {members} institutions, {head.manifest.phase}"


lay_out(
    app,
    {
        "aggregator": (
            "fedqueue-aggregator --config federation/aggregator.toml --check",
            "fedqueue-aggregator --config /etc/fedqueue/aggregator.toml",
            "fedqueue-aggregator --config /etc/fedqueue/aggregator.toml --ready",
        )
    },
)


def main() -> None:
    """`fedqueue-aggregator`."""
    run_program(app)
