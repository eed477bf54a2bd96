"""`fedqueue broker apply | check | export | up`: the operator's view of the broker's objects."""

import json
import os
import signal
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from broker_config import logins as login_file
from broker_config.definitions import OPERATOR
from broker_config.logins import Logins
from broker_config.node import PrivateNode, start_node
from broker_config.provision import await_queues, provision
from broker_config.provision import check as find_drifts
from broker_config.provision import export as export_definitions
from broker_config.server_tls import LOOPBACK, ServerTls
from broker_config.service import ending_on_sigterm
from operator_console.broker_tls import certify, has_authority, private_server
from shared.errors import SettingsError

broker_app = typer.Typer(help="The broker's queues, rights and limits.", no_args_is_help=True)

Folder = Annotated[Path, typer.Option("--dir", help="Folder of broker.json.")]
DEFAULT_FOLDER = Path("federation")


@broker_app.command()
def apply(folder: Folder = DEFAULT_FOLDER) -> None:
    """Create what is missing on the broker: users, rights, limits, exchanges, queues. Can be repeated."""
    logins = _logins(folder)
    provision(logins, logins.institutions)
    Console().print(f"{logins.management}, virtual host {logins.vhost}: ready for {len(logins.institutions)} institutions")


@broker_app.command()
def check(folder: Folder = DEFAULT_FOLDER) -> None:
    """Print what is missing, differs, or does not belong; exit 1 if there is anything."""
    logins = _logins(folder)
    found = find_drifts(logins, logins.institutions)
    if not found:
        Console().print(f"{logins.management}, virtual host {logins.vhost}: as it should be")
        return
    table = Table("kind", "name", "problem", title=f"virtual host {logins.vhost}")
    for drift in found:
        table.add_row(drift.kind, drift.name, drift.problem)
    Console().print(table)
    raise typer.Exit(1)


@broker_app.command()
def export(
    folder: Folder = DEFAULT_FOLDER,
    out: Annotated[Path | None, typer.Option(help="File to write, mode 600; without it, standard output.")] = None,
) -> None:
    """Write definitions.json, which a broker can load at its first boot; it holds password hashes."""
    logins = _logins(folder)
    text = json.dumps(export_definitions(logins, logins.institutions), indent=2) + "\n"
    if out is None:
        typer.echo(text, nl=False)
        return
    out.touch(mode=0o600)
    out.write_text(text, encoding="utf-8")


@broker_app.command()
def up(
    *,
    folder: Folder = DEFAULT_FOLDER,
    institution: Annotated[list[str] | None, typer.Option(help="Create this institution's login and queues; repeatable.")] = None,
    tls: Annotated[bool, typer.Option("--tls", help="Take TLS and certificates only; from then on without being told.")] = False,
    host: Annotated[list[str] | None, typer.Option(help="With TLS: a name under which others reach it; repeatable.")] = None,
    bind: Annotated[str, typer.Option(help="With TLS: the address to listen on; others reach no loopback.")] = LOOPBACK,
    port: Annotated[int | None, typer.Option(min=1, max=65535, help="With TLS: the port; without it, a free one.")] = None,
) -> None:
    """Run a private RabbitMQ on this machine until Ctrl-C; its data stays below --dir."""
    server = private_server(folder, host or [], bind=bind, port=port) if tls or has_authority(folder) else None
    if server is None and (host or port or bind != LOOPBACK):
        raise SettingsError("--host, --bind and --port go with --tls: without it a private broker is for this computer only")
    with ending_on_sigterm():
        _run(folder, server, institution or [])


def _run(folder: Path, server: ServerTls | None, institutions: list[str]) -> None:
    cluster = start_node(folder / "broker", tls=server)
    try:
        node = cluster.nodes[0]
        logins = _logins_on(node, folder, institutions)
        if logins.over_tls:
            certify(folder, (OPERATOR, logins.administrator))
        if (folder / login_file.FILE).exists():
            await_queues(logins)
        provision(logins, logins.institutions, free_bytes=node.free_bytes)
        _show(logins, login_file.save(logins, folder))
        signal.pause()
    except KeyboardInterrupt:
        Console().print("stopping the broker")
    finally:
        cluster.stop()


def _logins(folder: Path) -> Logins:
    if (folder / login_file.FILE).exists():
        return login_file.load(folder)
    logins = login_file.logins_from_environment(os.environ, folder=folder)
    if logins is None:
        raise SettingsError(f"{folder / login_file.FILE} does not exist, and AMQP_URL and MANAGEMENT_URL are not set")
    login_file.save(logins, folder)
    return logins


def _logins_on(node: PrivateNode, folder: Path, institutions: list[str]) -> Logins:
    place = {"node": node.amqp, "management": node.management_url, "admin_password": node.admin_password}
    fresh = login_file.create(**place, tls=node.tls is not None).model_copy(update={"folder": folder})
    if (folder / login_file.FILE).exists():
        known = login_file.load(folder)
        fresh = fresh.model_copy(
            update={"users": known.users | {fresh.administrator: node.admin_password}, "limits": known.limits}
        )
    return fresh.with_institutions(institutions)


def _show(logins: Logins, file: Path) -> None:
    table = Table("what", "where", title="private RabbitMQ; Ctrl-C stops it")
    table.add_row("AMQP", logins.amqp)
    table.add_row("management UI", logins.management)
    table.add_row("to look only", f"the login viewer, with its password in {login_file.FILE}")
    table.add_row("all logins", str(file))
    table.add_row("institutions", ", ".join(logins.institutions) or "none yet")
    Console().print(table)
