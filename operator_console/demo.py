"""`fedqueue demo`: a whole federation on this machine, from a private broker to the report, in about a minute."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console as Terminal

from broker_config.connection import connect
from broker_config.definitions import OPERATOR, VIEWER
from broker_config.logins import Logins, create, logins_from_environment
from broker_config.node import PrivateNode, start_node
from broker_config.provision import remove_vhost
from broker_config.service import ending_on_sigterm
from operator_console.blows import AGGREGATOR, Blow, chaos, killed_institution
from operator_console.demo_data import DemoInstitution, prepare
from operator_console.demo_results import Comparing, write_results
from operator_console.demo_run import DemoRun
from operator_console.federation_folder import ClientOptions, FederationFolder, InstitutionFacts
from operator_console.founding import Founding, found_federation
from operator_console.kept_model import best_parameters
from operator_console.lineage_commands import audited
from operator_console.live_view import watch
from operator_console.observer import newest_model
from operator_console.plan_options import PlanOptions, demo_ending
from operator_console.sample_data import REPORTS_AT_MOST, count_rows
from operator_console.summary import final_table, summarise
from operator_console.view_state import Shown, ViewState
from operator_console.web.accounts import FILE as USERS_FILE
from operator_console.web.accounts import AccountBook
from operator_console.web.server import Console, ServerOptions
from operator_console.worker_processes import WorkerProcess, entry_point, watched_over
from shared.broker import Broker
from shared.errors import SettingsError
from shared.tasks.spec import TaskSpec, parse_task
from simulator.schedule import SLOWDOWN, Schedule, schedule, updates_in_all

RUNS = Path("runs")
MAX_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line says; None means what the task suggests."""

    task: str = "sba-loans"
    institutions: int | None = None
    updates: int | None = None
    buffer_size: int | None = None
    seed: int = 0
    epsilon: float | None = 3.0
    split: str | None = None
    sealed: bool = False
    chaos: bool = False
    web_console: bool = False
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the federation runs: its broker's logins, and that broker where it is our own."""

    folder: FederationFolder
    logins: Logins
    node: PrivateNode | None = None

    def as_operator(self) -> Broker:
        """A connection with the operator's login, to look on."""
        return connect(self.folder.logins().settings(OPERATOR), name=f"fedqueue-demo/{os.getpid()}")


def run_demo(options: DemoOptions, console: Terminal) -> Path:
    """Runs the demonstration to its end; returns the run's folder.

    Raises FederationError when anything kept it from its end. No process is left behind either way.
    """
    started = time.monotonic()
    folder = _new_folder(options)
    console.print(f"run folder: {folder.path}", highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        stack.enter_context(ending_on_sigterm())
        stack.enter_context(watched_over(folder.path))
        banks = prepare(
            options.task, institutions=options.institutions, seed=options.seed, folder=folder.path, split=options.split
        )
        spec = parse_task(folder.task_file.read_text(), source=str(folder.task_file))
        updates = options.updates or spec.training.updates
        timetable = schedule([bank.id for bank in banks], updates=updates, seed=options.seed)
        place = stack.enter_context(_broker(folder))
        _found(place, banks, options, updates=updates, timetable=timetable)
        comparison = stack.enter_context(Comparing(folder, seed=options.seed, updates=updates))
        if options.web_console or options.chaos:
            console.print(stack.enter_context(_web_console(folder)), highlight=False, soft_wrap=True)
        workers = _workers(folder, banks)
        blows = _blows(place, workers, timetable, updates=updates_in_all(len(banks), updates) if options.chaos else None)
        run = stack.enter_context(DemoRun(place.as_operator, folder, workers, blows))
        _play(run, place, timetable, _shown(folder, spec), console)
        if options.chaos:
            console.print(after_chaos(place, blows), highlight=False)
        model, best = newest_model(place.as_operator), best_parameters(place.as_operator)
        console.print("measuring the models and writing the report", highlight=False)
        outcome = comparison.outcome(spec, model)
        summary = summarise(spec, run.history, outcome, seed=options.seed, wall_seconds=time.monotonic() - started)
        write_results(folder, run, model, summary, best=best)
    console.print(final_table(summary))
    console.print(f"report: {folder.path / 'report.html'}", highlight=False, soft_wrap=True)
    return folder.path


@contextmanager
def _web_console(folder: FederationFolder) -> Iterator[str]:
    """The console on a free port of this machine, while inside; gives the sentence that says how to get in."""
    password = secrets.token_urlsafe(12)
    AccountBook(folder.console / USERS_FILE).add(OPERATOR, "operator", password)
    with Console(folder.path, ServerOptions(port=0)) as opened:
        yield f"web console: {opened.url}   log in as {OPERATOR}, password {password}"


def _blows(place: Place, workers: Mapping[str, WorkerProcess], timetable: Schedule, *, updates: int | None) -> list[Blow]:
    """One bank is killed in any case; with `updates`, of the whole run, so is everything else."""
    blows = [] if timetable.killed is None else [killed_institution(workers[timetable.killed], timetable.killed_after)]
    if updates is not None:
        files = {name: place.folder.client_file(name) for name in workers if name != AGGREGATOR}
        blows += chaos(workers, timetable, updates=updates, node=place.node, client_files=files)
    return blows


def _play(run: DemoRun, place: Place, timetable: Schedule, shown: Shown, console: Terminal) -> None:
    if timetable.slow is not None:
        run.tell("slow", timetable.slow, f"is {SLOWDOWN:.0f} times slower than the others, on purpose")
    watch(lambda: _tick(run, place, shown), console=console)
    run.end()


def _tick(run: DemoRun, place: Place, shown: Shown) -> ViewState | None:
    if place.node is not None:
        place.node.demand_alive()
    return run.tick(shown)


def after_chaos(place: Place, blows: Sequence[Blow]) -> str:
    """What is left of it all: every link of the lineage is checked. Raises BrokenLineageError where one does not hold."""
    with closing(place.as_operator()) as broker:
        found = audited(broker)
    return (
        f"{sum(blow.struck for blow in blows)} blows, nothing lost: {found.last_version} versions under {found.epochs} epochs, "
        f"{found.outcomes['aggregated']} updates in them, each once; every link of the lineage holds"
    )


def _new_folder(options: DemoOptions) -> FederationFolder:
    name = f"{options.task}-{datetime.now().astimezone():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    path = (options.out or RUNS / name).resolve()
    if path.exists() and any(path.iterdir()):
        raise SettingsError(f"{path} is not empty; choose another --out, or delete it")
    path.mkdir(parents=True, exist_ok=True)
    return FederationFolder(path)


@contextmanager
def _broker(folder: FederationFolder) -> Iterator[Place]:
    """A private node that ends with us, or a fresh virtual host on the broker that AMQP_URL names."""
    existing = logins_from_environment(os.environ, vhost=f"fedqueue-{secrets.token_hex(4)}", folder=folder.path)
    if existing is not None:
        try:
            yield Place(folder, existing)
        finally:
            remove_vhost(folder.logins())
        return
    cluster = start_node(folder.path / "broker", remove_with_parent=True)
    try:
        node = cluster.nodes[0]
        logins = create(node=node.amqp, management=node.management_url, admin_password=node.admin_password)
        yield Place(folder, logins, node)
    finally:
        cluster.stop(remove=True)


def _found(place: Place, banks: Sequence[DemoInstitution], options: DemoOptions, *, updates: int, timetable: Schedule) -> None:
    choices = PlanOptions(
        epsilon=options.epsilon,
        updates=updates,
        buffer_size=options.buffer_size,
        max_wait_seconds=MAX_WAIT_SECONDS,
        ending=demo_ending(len(banks), updates),
    )
    clients = {
        bank.id: ClientOptions(
            num_examples=count_rows(bank.training_file),
            training_file=_seen_from(place.folder.institution(bank.id), bank.training_file),
            validation_file=_seen_from(place.folder.institution(bank.id), bank.test_file),
            at_least_seconds=timetable.at_least_seconds(bank.id),
            reports_at_most=REPORTS_AT_MOST,
        )
        for bank in banks
    }
    founding = Founding(
        place.folder.task_file.read_text(),
        str(place.folder.task_file),
        [InstitutionFacts(id=bank.id, title=bank.title) for bank in banks],
        choices,
        seed=options.seed,
        held_out="held_out.csv",
        clients=clients,
        free_bytes=None if place.node is None else place.node.free_bytes,
        sealed=options.sealed,
    )
    found_federation(place.folder, place.logins, founding)


def _seen_from(folder: Path, file: Path) -> str:
    return os.path.relpath(file, folder)


def _workers(folder: FederationFolder, banks: Sequence[DemoInstitution]) -> dict[str, WorkerProcess]:
    def worker(name: str, program: str, settings: Path) -> WorkerProcess:
        command = [entry_point(program), "--config", str(settings)]
        return WorkerProcess(name, command, folder.log_file(name), folder.path)

    return {
        AGGREGATOR: worker(AGGREGATOR, "fedqueue-aggregator", folder.aggregator_file),
        **{bank.id: worker(bank.id, "fedqueue-client", folder.client_file(bank.id)) for bank in banks},
    }


def _shown(folder: FederationFolder, spec: TaskSpec) -> Shown:
    logins = folder.logins()
    return Shown(
        title=spec.title or spec.name,
        metric=spec.first_metric,
        management_url=f"{logins.management}/#/queues",
        login=f"{VIEWER} / {logins.users[VIEWER]}",
    )
