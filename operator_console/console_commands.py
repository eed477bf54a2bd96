"""`fedqueue console` and `fedqueue console-user`: the web console, and who may log in to it."""

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import FederationFolder
from operator_console.web.accounts import FILE as USERS_FILE
from operator_console.web.accounts import AccountBook, Role
from operator_console.web.trail import FILE as TRAIL_FILE
from operator_console.web.trail import Trail
from shared.errors import SettingsError
from shared.logs import configure

DRAWN_BYTES = 15
LOCAL_ACCOUNT = "the console's computer"
"""Who the audit names for a change of users: whoever may write into the federation's folder."""

console_user_app = typer.Typer(help="Who may log in to the web console.", no_args_is_help=True, rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 of the letters A-Z a-z 0-9 . _ @ -")]
Drawn = Annotated[bool, typer.Option("--draw", help="Draw a password and show it once, instead of asking for one.")]


def console(  # noqa: PLR0913 - typer takes one parameter for each option
    *,
    folder: Folder = DEFAULT_FOLDER,
    bind: Annotated[str, typer.Option(help="Address to listen on; another than of this computer alone needs TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8080,
    certificate: Annotated[Path | None, typer.Option(metavar="FILE", help="For TLS: the certificate, with its chain.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="For TLS: its private key, without a passphrase.")] = None,
    public_url: Annotated[
        str, typer.Option(metavar="URL", help="How browsers reach it through a reverse proxy: https://console.example.org")
    ] = "",
    in_the_clear: Annotated[
        bool,
        typer.Option(
            "--everybody-on-the-network-may-read-and-change-what-i-send",
            help="Listen beyond this computer without TLS: passwords and orders then cross the network as they are.",
        ),
    ] = False,
) -> None:
    """Show the federation in a browser, live, and take orders there, until Ctrl-C."""
    from operator_console.web.server import Console, ServerOptions

    configure(level="warning")
    options = ServerOptions(
        bind=bind, port=port, certificate=certificate, key=key, public_url=public_url, in_the_clear=in_the_clear
    )
    opened = Console(folder, options)
    typer.echo(f"{opened.url}{f', as {public_url}' if public_url else ''}; Ctrl-C ends it")
    opened.serve()


@console_user_app.command()
def add(
    name: Name,
    role: Annotated[Role, typer.Option(help="A viewer looks; an operator also gives orders and reads the audit.")],
    draw: Drawn = False,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Let somebody log in. The password is asked for, or is the first line of standard input."""
    with _changed(folder, f"add the console user {name} as {role}") as accounts:
        accounts.add(name, role, _password(draw=draw))
    typer.echo(f"{name} may log in as {role}")


@console_user_app.command()
def remove(name: Name, folder: Folder = DEFAULT_FOLDER) -> None:
    """Let somebody in no more; open sessions end at once."""
    with _changed(folder, f"remove the console user {name}") as accounts:
        accounts.remove(name)
    typer.echo(f"{name} may not log in any more, and open sessions have ended")


@console_user_app.command()
def password(name: Name, draw: Drawn = False, folder: Folder = DEFAULT_FOLDER) -> None:
    """Give somebody another password; open sessions end at once."""
    with _changed(folder, f"another password of the console user {name}") as accounts:
        accounts.demand(name)
        accounts.set_password(name, _password(draw=draw))
    typer.echo(f"{name} has another password, and open sessions have ended")


@console_user_app.command("list")
def list_users(folder: Folder = DEFAULT_FOLDER) -> None:
    """Show who may log in, and as what."""
    users = AccountBook(FederationFolder(folder).console / USERS_FILE).all()
    for name, account in sorted(users.items()):
        typer.echo(f"{name}  {account.role}")
    if not users:
        typer.echo("nobody may log in yet")


@contextmanager
def _changed(folder: Path, did: str) -> Iterator[AccountBook]:
    """The book of a federation; a change that was made is a line of the audit."""
    federation = FederationFolder(folder)
    federation.facts()
    yield AccountBook(federation.console / USERS_FILE)
    Trail(federation.console / TRAIL_FILE).write(LOCAL_ACCOUNT, did, "done")


def _password(*, draw: bool) -> str:
    if draw:
        drawn = secrets.token_urlsafe(DRAWN_BYTES)
        typer.echo(f"password, shown this once: {drawn}")
        return drawn
    if sys.stdin.isatty():
        return str(typer.prompt("password", hide_input=True, confirmation_prompt=True))
    line = sys.stdin.readline().rstrip("\r\n")
    if not line:
        raise SettingsError("there is no password: write it as the first line of standard input, or have one drawn with --draw")
    return line
