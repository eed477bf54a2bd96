"""`fedqueue init`: a federation from a task, a broker and a list of institutions."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

import builtin_tasks
from broker_config import logins as login_file
from broker_config.connection import connect
from broker_config.logins import Logins
from broker_config.provision import administration
from broker_config.streams import last_offset
from broker_config.topology import LINEAGE
from client_worker.policy import Noised
from operator_console.command_options import DEFAULT_FOLDER, Folder, bytes_of, epsilon_of, figure_of, positive
from operator_console.federation_folder import FederationFolder, named
from operator_console.plan_options import TARGET_DELTA, PlanOptions, RoomOptions, ending_for
from operator_console.simulated_cost import simulated_cost
from shared.codec import Dtype
from shared.did_you_mean import suggestion
from shared.errors import SettingsError, TopologyError
from shared.plan import Ending, RuleName, UpdateEncoding
from shared.tasks.spec import parse_task

_privacy = partial(typer.Option, rich_help_panel="Privacy, and what an institution gives")
_versions = partial(typer.Option, rich_help_panel="How versions are made")
_measuring = partial(typer.Option, rich_help_panel="Measuring, and what ends the run, whichever comes first")
_room = partial(typer.Option, rich_help_panel="The network, and the broker's disk")


def init(  # noqa: PLR0913 - typer takes one parameter for each option
    *,
    task: Annotated[str, typer.Option(help="A task file, or the name of a built-in task.")],
    institution: Annotated[list[str], typer.Option(help="Id of an institution; repeatable.")],
    folder: Folder = DEFAULT_FOLDER,
    seed: Annotated[int, typer.Option(min=0, help="For the model's first parameters; noise is never seeded.")] = 0,
    sample_data: Annotated[bool, typer.Option("--sample-data", help="Give each institution real rows, to try it.")] = False,
    rows: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Give each institution FOLDER/ID/training.csv, to try it."),
    ] = None,
    epsilon: Annotated[str, _privacy(help="Budget of each institution, or none for no noise at all.")] = "3",
    target_delta: Annotated[float, _privacy(callback=positive, max=0.1, help="Of the privacy budget.")] = TARGET_DELTA,
    mechanism: Annotated[Noised, _privacy(help="What noise protects: a record, or an institution as a whole.")] = "dp-sgd",
    updates: Annotated[int | None, _privacy(min=1, help="Updates that an institution gives at most.")] = None,
    horizon_seconds: Annotated[float, _privacy(min=0, help="Each one's updates are spread over so long.")] = 0.0,
    updates_per_hour: Annotated[int | None, _privacy(min=1, help="Whoever sends more waits; without it, no limit.")] = None,
    simulation: Annotated[
        Path | None, _privacy(metavar="FILE", help="An epsilon.json: institutions read in the plan what noise costs.")
    ] = None,
    rule: Annotated[RuleName | None, _versions(help="What an update weighs; without it, as the task says.")] = None,
    buffer_size: Annotated[int | None, _versions(min=1, help="K: a version is made of so many updates.")] = None,
    max_wait_seconds: Annotated[float, _versions(callback=positive, help="No update waits longer for its outcome.")] = 5.0,
    server_learning_rate: Annotated[float | None, _versions(callback=positive, help="Step of the global model.")] = None,
    server_momentum: Annotated[float, _versions(min=0, max=0.999, help="Beta of the server's momentum.")] = 0.0,
    server_adam: Annotated[bool, _versions("--server-adam", help="The server's steps are Adam's, noise taken out.")] = False,
    held_out: Annotated[Path | None, _measuring(help="Rows of the operator's own, to measure every version on.")] = None,
    metric: Annotated[
        str | None, _measuring(metavar="FIGURE", help="What the best version goes by; else the task's first.")
    ] = None,
    stop_at: Annotated[
        str | None, _measuring(metavar="FIGURE=VALUE", help="Ends once held-out rows give so good a figure.")
    ] = None,
    in_a_row: Annotated[int, _measuring(min=1, help="So many versions one after another must reach it.")] = 1,
    patience: Annotated[int | None, _measuring(min=1, help="Ends after so many versions without a better one.")] = None,
    versions: Annotated[int | None, _measuring(min=1, help="Ends after so many versions.")] = None,
    wall_time: Annotated[
        float | None, _measuring(callback=positive, metavar="SECONDS", help="Ends after so long; pauses are not counted.")
    ] = None,
    stop_after_updates: Annotated[int | None, _measuring(min=1, help="Ends after so many updates in all.")] = None,
    broadcast: Annotated[Dtype | None, _room(help="How models travel; without it, as the task says.")] = None,
    updates_as: Annotated[UpdateEncoding | None, _room(help="How updates travel; without it, as the task says.")] = None,
    journal: Annotated[str | None, _room(metavar="SIZE", help="Keep every institution's last updates, for a replay.")] = None,
    model_stream: Annotated[str | None, _room(metavar="SIZE", help="For models on the broker; without it, ten.")] = None,
    slowest_link: Annotated[
        float | None, _room(callback=positive, metavar="BYTES_PER_SECOND", help="Versions leave it time to download.")
    ] = None,
    sealed: Annotated[bool, _room("--sealed", help="The broker's operator reads no update, model or order.")] = False,
) -> None:
    """Found a federation: queues and logins, version 0 of the model, and a folder for every institution."""
    if server_adam and server_momentum:
        raise typer.BadParameter("it excludes --server-momentum: Adam has a momentum of its own", param_hint="--server-adam")
    figure, target = figure_of(stop_at)
    if metric and figure and metric != figure:
        raise typer.BadParameter(f"it names {metric} and --stop-at {figure}; a run goes by one figure", param_hint="--metric")
    if in_a_row > 1 and target is None:
        raise typer.BadParameter("it needs --stop-at, whose figure must hold", param_hint="--in-a-row")
    _demand_one_source(rows, sample_data=sample_data)
    text, source = task_text(task)
    spec = parse_task(text, source=source)
    ending = ending_for(
        spec,
        metric=metric or figure,
        updates=stop_after_updates,
        versions=versions,
        seconds=wall_time,
        target=target,
        in_a_row=in_a_row,
        patience=patience,
    )
    options = PlanOptions(
        epsilon=epsilon_of(epsilon),
        target_delta=target_delta,
        mechanism=mechanism,
        updates=updates,
        horizon_seconds=horizon_seconds,
        updates_per_hour=updates_per_hour,
        buffer_size=buffer_size,
        server_learning_rate=server_learning_rate,
        max_wait_seconds=max_wait_seconds,
        ending=ending,
        rule=rule,
        server_momentum=server_momentum,
        server_adam=server_adam,
        broadcast=broadcast,
        updates_as=updates_as,
        simulated=simulated_cost(simulation, epsilon_of(epsilon)) if simulation else None,
    )
    room = RoomOptions(bytes_of(journal), bytes_of(model_stream), slowest_link)
    federation = FederationFolder(folder)
    federation.demand_empty()
    broker = broker_logins(federation)
    demand_no_run(broker)
    # torch makes version 0 and costs seconds, which a wrong option or an absent broker should not
    from operator_console.founding import Founding, found_federation
    from operator_console.sample_data import hand_out, hand_out_files

    members = named(_once(institution))
    clients = hand_out(task, institution, federation, seed=seed) if sample_data else {}
    if rows is not None:
        clients = hand_out_files(spec, rows, institution, federation)
    judged = str(_existing(held_out)) if held_out else ("held_out.csv" if sample_data else None)
    founding = Founding(text, source, members, options, room, seed=seed, held_out=judged, clients=clients, sealed=sealed)
    found_federation(federation, broker, founding)
    _show(federation, institution, has_data=bool(clients))
    if ending.needs_figures and judged is None:
        _say_rows_are_missing(federation, ending)


def task_text(task: str) -> tuple[str, str]:
    """A task and where it is from: a file, or else a built-in one."""
    file = Path(task)
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8"), task
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{file} cannot be read as text: {error}") from error
    if task in builtin_tasks.TASKS:
        return builtin_tasks.task_text(task), f"the built-in task {task}"
    raise SettingsError(f"there is no file {task}, and no built-in task of that name: {suggestion(task, builtin_tasks.TASKS)}")


def broker_logins(federation: FederationFolder) -> Logins:
    """The broker of the folder's broker.json, else the one that the environment names."""
    if (federation.path / login_file.FILE).exists():
        return login_file.load(federation.path)
    logins = login_file.logins_from_environment(os.environ, folder=federation.path)
    if logins is None:
        raise SettingsError(
            f"{federation.path / login_file.FILE} does not exist: run `fedqueue broker up --dir {federation.path}` in another "
            "terminal first, or set AMQP_URL and MANAGEMENT_URL to a broker of yours"
        )
    return logins


def demand_no_run(broker: Logins) -> None:
    """Raises TopologyError where the broker's virtual host holds a run; before anything is changed there or written here."""
    with administration(broker) as management:
        queues = [(each["vhost"], each["name"]) for each in management.definitions()["queues"]]
    if (broker.vhost, LINEAGE) in queues and not _lineage_is_empty(broker):
        raise TopologyError(
            f"the virtual host {broker.vhost} of {broker.management} already holds a run, and a virtual host holds one only: "
            "go on with that run's folder, or name another virtual host in AMQP_URL"
        )


def _lineage_is_empty(broker: Logins) -> bool:
    connection = connect(broker.settings(broker.administrator), name="fedqueue-init")
    try:
        return last_offset(connection, LINEAGE) < 0
    finally:
        connection.close()


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise SettingsError(f"--held-out {file}: there is no such file")
    return file.resolve()


def _demand_one_source(rows: Path | None, *, sample_data: bool) -> None:
    if rows is not None and sample_data:
        raise typer.BadParameter("it excludes --sample-data: an institution has one file to train on", param_hint="--rows")


def _once(institutions: list[str]) -> list[str]:
    repeated = next((each for each in institutions if institutions.count(each) > 1), None)
    if repeated is not None:
        raise SettingsError(f"--institution {repeated} is given twice; each institution has an id of its own")
    return institutions


def _say_rows_are_missing(federation: FederationFolder, ending: Ending) -> None:
    Console().print(
        f"\nThe plan ends the run by {ending.metric} on held-out rows, and none were given. Before you start the aggregator,\n"
        f"name a file of them as held_out_file in {federation.aggregator_file}: it refuses to start without.",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def _show(federation: FederationFolder, institutions: list[str], *, has_data: bool) -> None:
    folder = federation.path
    beside = "" if has_data else ", beside its training.csv and with num_examples (or count_epsilon) set in client.toml"
    lines = [
        f"The federation is founded, at version 0. Its folder is {folder}:",
        f"  {federation.aggregator_file.relative_to(folder)}, task.toml, run.secret, broker.json, keys/   stay with you",
        *(
            f"  {federation.kit(each).relative_to(folder)}   goes to {each}: institutions/{each}/, packed"
            for each in institutions
        ),
        "",
        "Next, here:",
        f"  fedqueue-aggregator --config {federation.aggregator_file}",
        f"  fedqueue status --dir {folder} --watch",
        f"At each institution, in its folder{beside}:",
        "  fedqueue-client --config client.toml --check",
        "  fedqueue privacy plan --config client.toml",
        "  fedqueue-client --config client.toml",
    ]
    Console().print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)
