"""`fedqueue privacy plan | ledger show | verify | export | accept-dataset`: for an institution, on its own machine."""

import json
from collections import defaultdict
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from broker_config.connection import connect
from broker_config.service import process_name, read_settings
from broker_config.streams import newest
from client_worker.cli import member
from client_worker.dataset_entry import dataset_facts, unit_of
from client_worker.files import fingerprint, read_task
from client_worker.ledger import Ledger
from client_worker.ledger_audit import LedgerAudit, audited
from client_worker.ledger_reading import LedgerContent, read_ledger, totals_of
from client_worker.ledger_rows import LedgerRow
from client_worker.settings import ClientSettings
from client_worker.standing import require_membership
from shared.errors import SettingsError, TopologyError
from shared.plan import Plan

privacy_app = typer.Typer(
    help="An institution's privacy: what a plan costs, what was spent.", no_args_is_help=True, rich_markup_mode=None
)
ledger_app = typer.Typer(help="The privacy ledger, read beside a running worker.", no_args_is_help=True, rich_markup_mode=None)
privacy_app.add_typer(ledger_app, name="ledger")

Config = Annotated[Path, typer.Option("--config", help="The institution's client.toml.")]
ConfigOr = Annotated[Path | None, typer.Option("--config", help="The institution's client.toml.")]
StateFolder = Annotated[
    Path | None, typer.Option("--state-folder", help="Instead of --config: the folder that holds ledger.sqlite.")
]
Out = Annotated[Path | None, typer.Option("--out", help="A file to write; without it, standard output.")]

_WHAT = {
    "OPENED": "run {run_id}, {institution}, incarnation {incarnation}",
    "DATASET": "training file {fingerprint:.12}, protected: {unit}",
    "COUNTED": "number of examples, released: {value}",
    "CARRIED": "from an earlier incarnation",
    "RESERVED": "{mechanism} on version {base_version}, {steps} steps",
    "SEALED": "{hash:.12}",
    "SETTLED": "{outcome}",
    "REPORTED": "metrics of version {version}, on validation rows",
}


@privacy_app.command()
def plan(config: Config) -> None:
    """Show what the federation's plan costs here: the noise, epsilon after each update, what is spent. Exit 1 if refused."""
    from operator_console.privacy_forecast import course_table, facts_table, forecast

    settings = read_settings(ClientSettings, config)
    unit = unit_of(read_task(settings.task_file))
    totals = totals_of(settings.ledger_file)
    told = forecast(
        _plan_at_broker(settings),
        settings.policy,
        totals,
        unit=unit,
        num_examples=settings.num_examples or totals.counted,
        count_epsilon=settings.count_epsilon,
    )
    console = Console()
    console.print(facts_table(told))
    if told.after:
        console.print(course_table(told))
    if told.noise_multiplier is not None:
        console.print(f"Spent so far: epsilon {told.spent:.3f}, by {told.done} local trainings.", highlight=False)
    if told.refused is not None:
        console.print(f"The policy refuses this plan, by {told.refused.limit}: {told.refused}", highlight=False, markup=False)
        raise typer.Exit(1)
    console.print("The policy allows this plan.", highlight=False)


def _plan_at_broker(settings: ClientSettings) -> Plan:
    with closing(connect(settings.broker, name=process_name("fedqueue-privacy", settings.institution))) as broker:
        _, lineage = newest(broker)
    require_membership(lineage, member(settings))
    if lineage.plan is None:
        raise TopologyError("the lineage at the broker holds no plan; ask the operator to look at it with `fedqueue doctor`")
    return lineage.plan


@ledger_app.command()
def show(config: ConfigOr = None, state_folder: StateFolder = None) -> None:
    """Show the rows: what was trained on, reserved, sealed, sent and settled, and what it cost."""
    Console().print(rows_table(read_ledger(_ledger_file(config, state_folder))))


@ledger_app.command()
def verify(config: ConfigOr = None, state_folder: StateFolder = None) -> None:
    """Check chain, order, kept bytes and every stated epsilon. Exit 1 at the first row that is wrong."""
    from client_worker.privacy import epsilon_after

    file = _ledger_file(config, state_folder)
    content = read_ledger(file)
    Console().print(verdict(content, audited(content, epsilon_after, source=str(file))), highlight=False, soft_wrap=True)


@ledger_app.command()
def export(config: ConfigOr = None, state_folder: StateFolder = None, out: Out = None) -> None:
    """Write all rows as JSON lines with their hashes, for an auditor."""
    text = "".join(f"{json.dumps(exported(row))}\n" for row in read_ledger(_ledger_file(config, state_folder)).rows)
    if out is None:
        typer.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"--out {out}: {error.strerror}") from error


@ledger_app.command()
def accept_dataset(config: Config) -> None:
    """Go on with the training file as it is now, with the worker stopped. What is spent stays spent."""
    settings = read_settings(ClientSettings, config)
    file = settings.ledger_file
    before = totals_of(file).dataset
    if before is None:
        raise SettingsError(
            f"{file} names no training file yet; the worker writes it at its first start, nothing is to be accepted"
        )
    unit = unit_of(read_task(settings.task_file))
    facts = dataset_facts(settings, fingerprint=fingerprint(settings.training_file), unit=unit)
    if all(before[key] == facts[key] for key in ("fingerprint", "unit")):
        typer.echo("The ledger names this training file already; nothing was written.")
        return
    ledger = Ledger(file, run_id=settings.run_id, institution=settings.institution, incarnation=settings.incarnation)
    with closing(ledger):
        ledger.accept_dataset(facts)
    typer.echo(
        f"Written: from now on the training file is {str(facts['fingerprint'])[:12]} by {unit}, before it was "
        f"{before['fingerprint'][:12]} by {before['unit']}. Everything spent before stays spent."
    )


def _ledger_file(config: Path | None, state_folder: Path | None) -> Path:
    if (config is None) == (state_folder is None):
        raise SettingsError("name the ledger by --config, the institution's client.toml, or by --state-folder; one of them")
    if state_folder is not None:
        return state_folder / "ledger.sqlite"
    return read_settings(ClientSettings, config).ledger_file if config is not None else Path()


def exported(row: LedgerRow) -> dict[str, Any]:
    """A row with its fields spelled out; packed again in MessagePack they are what the hash covers."""
    return {
        "number": row.number,
        "state": row.state,
        "at_seconds": row.at_seconds,
        "fields": dict(row.fields),
        "previous": row.previous,
        "hash": row.hash,
    }


def rows_table(content: LedgerContent) -> Table:
    """What `show` prints."""
    table = Table("row", "time, UTC", "state", "update", "what", "noise", "epsilon", box=SIMPLE)
    for column in table.columns[:3]:
        column.no_wrap = True
    sequences = {row.fields.get("reservation"): row.fields["sequence"] for row in content.rows if row.state == "SEALED"}
    for row in content.rows:
        fields = row.fields
        sequence = fields.get("sequence", sequences.get(row.number, ""))
        noise, epsilon = fields.get("noise_multiplier"), fields.get("epsilon_spent", fields.get("epsilon"))
        at = datetime.fromtimestamp(row.at_seconds, UTC).strftime("%Y-%m-%d %H:%M")
        table.add_row(
            str(row.number),
            at,
            row.state,
            str(sequence),
            _WHAT.get(row.state, "").format_map(defaultdict(str, fields)),
            "" if noise is None else f"{noise:.4g}",
            "" if epsilon is None else f"{epsilon:.4g}",
        )
    table.caption = (
        f"times are UTC; the outbox keeps {len(content.outbox)} updates; not checked: `fedqueue privacy ledger verify`"
    )
    return table


def verdict(content: LedgerContent, audit: LedgerAudit) -> str:
    """What `verify` prints where everything holds."""
    totals = audit.totals
    spent = ", ".join(
        f"epsilon {epsilon:.4g} at target delta {delta:g}" for delta, epsilon in sorted(totals.epsilon_spent.items())
    )
    bare = f"; {totals.unprotected} trainings were without noise, no epsilon covers them" if totals.unprotected else ""
    return (
        f"ok: {len(content.rows):,} rows, {totals.reservations:,} trainings reserved, {len(audit.sealed):,} updates sealed, "
        f"{len(content.outbox)} kept as sealed, spent: {spent or 'no epsilon'}{bare}"
    )
