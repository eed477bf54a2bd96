"""`fedqueue sent`: what has left this institution, for its engineer and its data-protection officer; on its own machine."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from broker_config.service import read_settings
from broker_config.written import write_private
from client_worker import sent as of_ledger
from client_worker.ledger_audit import audited
from client_worker.ledger_reading import LedgerContent, read_ledger
from client_worker.ledger_rows import chained
from client_worker.sent import Sent
from client_worker.settings import ClientSettings
from operator_console.sent_tables import HEAD, sent_object, totals_lines, update_cells
from shared.errors import SettingsError

Config = Annotated[Path | None, typer.Option("--config", help="The institution's client.toml.")]
StateFolder = Annotated[
    Path | None, typer.Option("--state-folder", help="Instead of --config: the folder that holds ledger.sqlite.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts; its `schema` number changes when a key does.")]
Html = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write a page for the data-protection officer, after a full check.")
]
Public = Annotated[bool, typer.Option("--public", help="Leave out what is private: lengths from before the noise.")]


def sent(
    config: Config = None,
    state_folder: StateFolder = None,
    as_json: AsJson = False,
    html: Html = None,
    public: Public = False,
) -> None:
    """List every update that ever left this institution, what it cost and what became of it; reads its ledger alone."""
    file, most = _ledger(config, state_folder)
    content = read_ledger(file)
    found = of_ledger.sent(chained(content.rows, source=str(file)), {} if public else content.private)
    if as_json:
        typer.echo(json.dumps(sent_object(found), allow_nan=False))
    if html is not None:
        _check(content, file)
        _write_page(html, found, most, is_public=public)
    elif not as_json:
        console = Console()
        console.print(updates_table(found))
        for line in totals_lines(found):
            console.print(line, highlight=False)


def _ledger(config: Path | None, state_folder: Path | None) -> tuple[Path, float | None]:
    """The file, and the most that the policy allows where the settings are named."""
    if (config is None) == (state_folder is None):
        raise SettingsError("name the ledger by --config, the institution's client.toml, or by --state-folder; one of them")
    if config is None:
        return (state_folder or Path()) / "ledger.sqlite", None
    settings = read_settings(ClientSettings, config)
    return settings.ledger_file, settings.policy.max_epsilon


def _check(content: LedgerContent, file: Path) -> None:
    """As `fedqueue privacy ledger verify`. Raises WrongLedgerError."""
    from client_worker.privacy import epsilon_after

    audited(content, epsilon_after, source=str(file))


def _write_page(file: Path, found: Sent, max_epsilon: float | None, *, is_public: bool) -> None:
    from operator_console.sent_page import page

    text = page(found, max_epsilon=max_epsilon, is_public=is_public)
    try:
        write_private(file, text.encode())
    except OSError as error:
        raise SettingsError(f"--html {file}: {error.strerror or error}; name another file") from error
    typer.echo(f"page: {file}, which only you can read")


def updates_table(found: Sent) -> Table:
    """What is printed without `--json`."""
    table = Table(*HEAD, box=SIMPLE, caption="before, after, cut, noise, as sent: lengths; see docs/bank.md", pad_edge=False)
    for column in table.columns[1:-1]:
        column.justify = "right"
    for column in table.columns[:4]:
        column.no_wrap = True
    for update in found.updates:
        table.add_row(*update_cells(update))
    return table
