"""`fedqueue ca create | server | list`: the federation's certificate authority, for an operator whose broker is there already."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from broker_config.authority import Authority, IssuedRecord, write_issued
from broker_config.definitions import ADMIN, OPERATOR
from broker_config.logins import AUTHORITY_FOLDER
from broker_config.server_tls import PLUGIN, listener_lines, options_term
from broker_config.tls import WARNED_BEFORE
from broker_config.written import write_public
from operator_console.broker_commands import DEFAULT_FOLDER, Folder
from operator_console.broker_tls import CONFIGURATION, SERVER_FOLDER, certify

ca_app = typer.Typer(help="The federation's certificates, for a broker with TLS.", no_args_is_help=True)


@ca_app.command()
def create(
    folder: Folder = DEFAULT_FOLDER,
    name: Annotated[str, typer.Option(help="What certificates say of who issued them.")] = "fedqueue",
    administrator: Annotated[str, typer.Option(help="The broker's administrator, who gets a certificate too.")] = ADMIN,
) -> None:
    """Make the authority, and certificates for the operator and the administrator."""
    Authority.create(folder / AUTHORITY_FOLDER, name=name)
    for place in certify(folder, (OPERATOR, administrator)):
        Console().print(f"{place}: certificate and key", soft_wrap=True, highlight=False)
    key = folder / AUTHORITY_FOLDER / "ca.key"
    Console().print(
        f"{key} lets in whom its owner likes: keep a copy where nobody else reads it", soft_wrap=True, highlight=False
    )


@ca_app.command()
def server(
    host: Annotated[list[str], typer.Option(help="A host name or address under which the broker is reached; repeatable.")],
    folder: Folder = DEFAULT_FOLDER,
    installed: Annotated[Path, typer.Option(help="Where the files will lie on the broker's computer.")] = Path(
        "/etc/rabbitmq/fedqueue"
    ),
    bind: Annotated[str, typer.Option(help="Address on which the broker listens.")] = "0.0.0.0",  # noqa: S104  the broker's, by request
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on which it listens.")] = 5671,
) -> None:
    """Issue the broker's certificate, and write the lines of its configuration that go with it. Again before it expires."""
    authority = Authority.open(folder / AUTHORITY_FOLDER)
    out = folder / AUTHORITY_FOLDER / SERVER_FOLDER
    write_issued(out, authority.issue_server(host), authority.certificate)
    options = options_term(installed, installed / authority.revocations.name)
    write_public(out / CONFIGURATION, listener_lines(address=bind, port=port).encode())
    write_public(out / "advanced.config", f"[{{rabbit, [\n    {options}\n]}}].\n".encode())
    Console().print(
        f"Written to {out}. On the broker's computer:\n"
        f"  1. ca.pem, certificate.pem and key.pem, and the folder {authority.revocations}, go to {installed}.\n"
        "     RabbitMQ must be able to read them, and nobody else the key.\n"
        "     Copy that folder again after each removal of an institution.\n"
        "  2. Add the lines of rabbitmq.conf to its own, and the term of advanced.config to the application rabbit there.\n"
        f"  3. rabbitmq-plugins enable {PLUGIN}, and restart RabbitMQ.",
        soft_wrap=True,
        highlight=False,
    )


@ca_app.command("list")
def list_issued(folder: Folder = DEFAULT_FOLDER) -> None:
    """Print what was issued, until when it holds, and what was revoked."""
    table = Table("for", "serial", "until", "state", title=f"certificates of {folder / AUTHORITY_FOLDER}")
    now = datetime.now(UTC)
    for record in Authority.open(folder / AUTHORITY_FOLDER).issued():
        table.add_row(record.user, f"{record.serial:x}", f"{record.not_after:%Y-%m-%d}", _state(record, now))
    Console().print(table)


def _state(record: IssuedRecord, now: datetime) -> str:
    left = record.not_after - now
    if record.revoked is not None:
        return f"revoked {record.revoked:%Y-%m-%d}"
    if left.total_seconds() <= 0:
        return "expired"
    return f"expires in {left.days} days" if left < WARNED_BEFORE else "valid"
