"""`fedqueue institution add | remove | quarantine | release | list`: who takes part."""

import time
from collections.abc import Iterable, Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from aggregator_worker.defence import STRIKE
from broker_config import logins as login_file
from broker_config.connection import consumers
from broker_config.logins import Logins
from broker_config.provision import provision, remove_institution
from broker_config.topology import checked_institution, update_queue
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import ClientOptions, FederationFolder, InstitutionFacts
from operator_console.history import standing_text
from operator_console.operation_commands import OrderDesk, OrderRefusedError, order_desk
from shared.errors import SettingsError, TopologyError
from shared.lineage import standing_under
from shared.messages import Entry, pseudonym
from shared.plan import Plan

institution_app = typer.Typer(help="Who takes part in a federation.", no_args_is_help=True, rich_markup_mode=None)

UNHEARD_SECONDS = 10.0
LONGEST_REASON = 200
Id = Annotated[str, typer.Argument(metavar="ID", help="1 to 64 of the letters A-Z a-z 0-9 _ -")]


@institution_app.command()
def add(
    institution: Id,
    title: Annotated[str | None, typer.Option(help="Its name for people.")] = None,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Admit an institution: login, queues, an entry in the next manifest, and a folder to give to it."""
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        newcomer = _newcomer(federation, desk, institution, title)
        admit(federation, desk, newcomer)
    Console().print(
        f"{institution} is a member, incarnation {newcomer.incarnation}.\n"
        f"Give it {federation.institution(institution)}; with its own data and num_examples (or count_epsilon) in client.toml "
        "it then runs\n  fedqueue-client --config client.toml --check\n  fedqueue privacy plan --config client.toml\n"
        "  fedqueue-client --config client.toml",
        highlight=False,
        soft_wrap=True,
    )


@institution_app.command()
def remove(institution: Id, folder: Folder = DEFAULT_FOLDER) -> None:
    """Remove an institution: its entry is closed, then its login, connections and queues are gone. Its updates stay folded."""
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        _dismiss(federation, desk, institution)
    _lock_out(federation, institution)
    typer.echo(f"{institution} is removed; `fedqueue institution add {institution}` admits it again, as a new incarnation")


def _short(reason: str) -> str:
    if len(reason) > LONGEST_REASON:
        raise typer.BadParameter(f"it has {len(reason)} characters, and a manifest holds {LONGEST_REASON}")
    return reason


Why = Annotated[str, typer.Option("--reason", callback=_short, help="Why; all members read it in the lineage.")]


@institution_app.command()
def quarantine(institution: Id, reason: Why = "", folder: Folder = DEFAULT_FOLDER) -> None:
    """Fold nothing more of an institution. It stays a member; what it gave stays in the model until a roll-back."""
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        news = confine(federation, desk, institution, reason)
    typer.echo(
        f"{institution} is in quarantine{'' if news else ' already'}: nothing more of it is folded. What it gave is in the model "
        f"still; `fedqueue roll-back --without {institution} --dry-run` shows the model without it"
    )


@institution_app.command()
def release(institution: Id, reason: Why = "", folder: Folder = DEFAULT_FOLDER) -> None:
    """Fold an institution's updates again, with nothing held against it."""
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        entry = present(federation, desk, institution)
        if not entry.quarantined:
            typer.echo(f"{institution} is not in quarantine")
            return
        outcome = desk.give("release", institution=institution, reason=reason)
        if not outcome.applied and present(federation, desk, institution).quarantined:
            raise OrderRefusedError(f"the aggregator refused to release {institution}: {outcome.reason}")
    typer.echo(f"{institution} is released: its updates are folded again, and no strikes are held against it")


@institution_app.command("list")
def list_institutions(folder: Folder = DEFAULT_FOLDER) -> None:
    """Show every institution, removed ones too."""
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        table = Table("id", "title", "state", "updates", "epsilon", "incarnation", "strikes")
        for row in rows(federation, desk):
            table.add_row(*row)
    Console().print(table)


def admit(federation: FederationFolder, desk: OrderDesk, newcomer: InstitutionFacts) -> None:
    """Login, queues and files, then the order. Raises OrderRefusedError where it is refused; a stranger is locked out again."""
    _prepare(federation, newcomer, desk.plan)
    outcome = desk.give("admit", institution=newcomer.id, incarnation=newcomer.incarnation)
    entry = desk.table.get(pseudonym(federation.run_secret(), newcomer.id))
    if entry is None or entry.removed:
        _lock_out(federation, newcomer.id)
    elif entry.incarnation == newcomer.incarnation:
        return  # also where an earlier order, which waited for a leader, was followed before this one
    raise OrderRefusedError(f"the aggregator refused to admit {newcomer.id}: {outcome.reason}")


def rows(federation: FederationFolder, desk: OrderDesk) -> Iterator[tuple[str, ...]]:
    """The cells of `list`: id, title, state, updates, epsilon, incarnation, strikes."""
    secret = federation.run_secret()
    for facts in federation.facts().institutions:
        entry = desk.table.get(pseudonym(secret, facts.id))
        known = entry or Entry(incarnation=facts.incarnation)
        epsilon = "-" if known.epsilon_spent is None else f"{known.epsilon_spent:.2f}"
        state = state_of(entry, desk.plan.hash if desk.plan else "")
        strikes = f"{known.strikes / STRIKE:g}"
        yield facts.id, facts.title, state, str(known.counters.aggregated), epsilon, str(known.incarnation), strikes


def present(federation: FederationFolder, desk: OrderDesk, institution: str) -> Entry:
    """A member's entry. Raises SettingsError for a stranger and for one that was removed."""
    entry = desk.table.get(pseudonym(federation.run_secret(), institution))
    if entry is None:
        raise SettingsError(f"{institution} is not a member; `fedqueue institution list` shows who is")
    if entry.removed:
        raise SettingsError(f"{institution} was removed: nothing of it is folded, and it has no queue")
    return entry


def confine(federation: FederationFolder, desk: OrderDesk, institution: str, reason: str) -> bool:
    """Has an institution put into quarantine; False where it is there already. Raises OrderRefusedError."""
    if present(federation, desk, institution).quarantined:
        return False
    outcome = desk.give("quarantine", institution=institution, reason=reason)
    if not outcome.applied and not present(federation, desk, institution).quarantined:
        raise OrderRefusedError(f"the aggregator refused to put {institution} into quarantine: {outcome.reason}")
    return outcome.applied


def state_of(entry: Entry | None, plan_hash: str) -> str:
    """An institution's state in the table under a plan, in a few words."""
    if entry is None:
        return "not admitted yet"
    if entry.removed:
        return "removed"
    if entry.quarantined:
        return "quarantined"
    standing = standing_text(standing_under(entry, plan_hash), entry.standing_limit)
    return standing or ("member" if entry.nonce else "never connected")


def _newcomer(federation: FederationFolder, desk: OrderDesk, institution: str, title: str | None) -> InstitutionFacts:
    """What will be known of it, under the next incarnation. Raises SettingsError where it is a member already."""
    former = desk.table.get(pseudonym(federation.run_secret(), checked_institution(institution)))
    if former is not None and not former.removed:
        raise SettingsError(
            f"{institution} is a member already; after a lost disk or a restored backup, remove it first, then add it again"
        )
    before = {each.id: each.title for each in federation.facts().institutions}
    incarnation = former.incarnation + 1 if former else 1
    return InstitutionFacts(id=institution, title=title or before.get(institution, institution), incarnation=incarnation)


def _prepare(federation: FederationFolder, newcomer: InstitutionFacts, plan: Plan | None) -> None:
    """Everything that must be there when the aggregator admits it; can be repeated."""
    if plan is None:
        raise TopologyError("the lineage names no plan")
    logins = federation.logins().with_institutions([newcomer.id])
    login_file.save(logins, federation.path)
    provision(logins, logins.institutions)
    facts = federation.facts()
    others = [each for each in facts.institutions if each.id != newcomer.id]
    federation.keep(facts.model_copy(update={"institutions": [*others, newcomer]}))
    federation.write_client(newcomer, plan, ClientOptions())


def _dismiss(federation: FederationFolder, desk: OrderDesk, institution: str) -> None:
    """Orders the removal, unless the table has it already: a removal that broke off can then be repeated."""
    alias = pseudonym(federation.run_secret(), institution)
    entry = desk.table.get(alias)
    if entry is None and institution not in _ids(federation.facts().institutions):
        raise SettingsError(f"{institution} is not a member; `fedqueue institution list` shows who is")
    if entry is not None and entry.removed:
        return
    outcome = desk.give("remove", institution=institution)
    if not outcome.applied and not desk.table[alias].removed:
        raise OrderRefusedError(f"the aggregator refused to remove {institution}: {outcome.reason}")
    _wait_until_unheard(federation.logins(), institution)


def _wait_until_unheard(logins: Logins, institution: str) -> None:
    """The leader stops listening just after it has settled the order; a queue deleted before that would end its term."""
    administrator, deadline = logins.settings(logins.administrator), time.monotonic() + UNHEARD_SECONDS
    while consumers(administrator, update_queue(institution)) > 0 and time.monotonic() < deadline:
        time.sleep(0.1)


def _ids(institutions: Iterable[InstitutionFacts]) -> set[str]:
    return {each.id for each in institutions}


def _lock_out(federation: FederationFolder, institution: str) -> None:
    """The list of members goes first: an aggregator that starts must not look for a queue that is gone."""
    facts = federation.facts()
    institutions = [each.model_copy(update={"removed": True}) if each.id == institution else each for each in facts.institutions]
    federation.keep(facts.model_copy(update={"institutions": institutions}))
    logins = federation.logins()
    remove_institution(logins, institution)
    login_file.save(logins.without(institution), federation.path)
