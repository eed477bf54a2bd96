"""`fedqueue institution add | remove | renew | quarantine | release | list`: who takes part."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from aggregator_worker.defence import STRIKE
from broker_config import logins as login_file
from broker_config.authority import KEY_FILE, REVOCATIONS_FOLDER
from broker_config.connection import consumers
from broker_config.definitions import AGGREGATOR, OPERATOR
from broker_config.keyring import load_trust
from broker_config.logins import Logins
from broker_config.provision import provision, remove_institution, revoke_login
from broker_config.topology import checked_institution, update_queue
from operator_console.broker_tls import CONFIGURATION, SERVER_FOLDER
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.completions import institutions
from operator_console.credentials import certify, enrol, withdraw
from operator_console.expiry import expiries, warnings_of
from operator_console.federation_folder import ClientOptions, Facts, FederationFolder, InstitutionFacts
from operator_console.history import standing_text
from operator_console.kit import RENEWED, sha256, write_kit
from operator_console.kit_request import KitRequest
from operator_console.operation_commands import NoAnswerError, OrderDesk, OrderRefusedError, order_desk
from shared.errors import SettingsError, TopologyError
from shared.keys import PublicKeys
from shared.lineage import standing_under
from shared.messages import Entry, pseudonym
from shared.plan import Plan

institution_app = typer.Typer(help="Who takes part in a federation.", no_args_is_help=True, rich_markup_mode=None)

UNHEARD_SECONDS = 10.0
LONGEST_REASON = 200
COLUMNS = ("id", "title", "state", "updates", "epsilon", "incarnation", "strikes", "valid until")
Id = Annotated[str, typer.Argument(metavar="ID", autocompletion=institutions, help="1 to 64 of the letters A-Z a-z 0-9 _ -")]
Request = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="What `fedqueue kit request` wrote there, so that no private key leaves the institution."),
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask whether the request's fingerprint was compared.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object for scripts.")]


@institution_app.command()
def add(
    institution: Id,
    title: Annotated[str | None, typer.Option(help="Its name for people.")] = None,
    request: Request = None,
    yes: Yes = False,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Admit an institution: login, queues, keys, an entry in the next manifest, and a kit to give to it."""
    federation = FederationFolder(folder)
    checked_institution(institution)
    asked = _compared(request, institution, yes=yes)
    with order_desk(federation) as desk:
        newcomer = _newcomer(federation, desk, institution, title, asked)
        admit(federation, desk, newcomer, asked)
    kit = federation.kit(institution)
    Console().print(
        f"{institution} is a member, incarnation {newcomer.incarnation}.\n"
        f"Give it {kit}, {_secrecy(asked)}. By telephone, its SHA-256:\n  {sha256(kit)}\n"
        "The README.md in it says how it is unpacked, pointed at data, checked and started.",
        highlight=False,
        soft_wrap=True,
    )


@institution_app.command()
def renew(institution: Id, request: Request = None, yes: Yes = False, folder: Folder = DEFAULT_FOLDER) -> None:
    """Issue another certificate, for an institution, the aggregator or the operator; message keys stay.

    The present one stays good until it ends: against a stolen key, remove the institution and add it again.
    """
    federation = FederationFolder(folder)
    if not federation.has_tls:
        raise SettingsError("this federation's broker is reached with passwords, so there is no certificate to renew")
    if (own := _own_folder(federation, institution)) is not None:
        certify(federation, institution, own)
        typer.echo(f"another certificate of {institution} is in {own}; it is taken at the next connection")
        return
    asked = _compared(request, institution, yes=yes)
    _demand_renewable(federation, institution, asked)
    certify(federation, institution, federation.institution(institution), asked)
    write_kit(federation.kit(institution), federation.institution(institution))
    kit = federation.renewal_kit(institution)
    write_kit(kit, federation.institution(institution), RENEWED)
    typer.echo(
        f"Give {institution} {kit}, {_secrecy(asked)}. By telephone, its SHA-256:\n  {sha256(kit)}\n"
        "Unpacked beside its client.toml it is taken at the worker's next connection, and no update is lost."
    )


@institution_app.command()
def remove(institution: Id, folder: Folder = DEFAULT_FOLDER) -> None:
    """Remove an institution: at once its login, connections, certificate; then entry and queues. Its updates stay folded."""
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        _demand_known(federation, desk, institution)
        shut_out(federation, institution)
        _dismiss(federation, desk, institution)
    _take_apart(federation, institution)
    typer.echo(f"{institution} is removed; `fedqueue institution add {institution}` admits it again, as a new incarnation")
    if (federation.authority / SERVER_FOLDER / CONFIGURATION).exists():
        typer.echo(
            f"Copy {federation.authority / REVOCATIONS_FOLDER} to the broker's computer: it refuses the certificate then too"
        )


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
def list_institutions(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Show every institution, removed ones too, and until when its certificate is valid."""
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        found = list(rows(federation, desk))
    ends = expiries(federation)
    warnings = warnings_of(ends, datetime.now(UTC))
    if as_json:
        members = [dict(zip(COLUMNS, row, strict=True)) for row in found]
        typer.echo(json.dumps({"schema": 1, "institutions": members, "warnings": warnings}))
        return
    shown = len(COLUMNS) - (not ends)
    table = Table(*(Column(name, no_wrap=name in ("id", "valid until")) for name in COLUMNS[:shown]))
    for row in found:
        table.add_row(*row[:shown])
    Console().print(table)
    for warning in warnings:
        typer.echo(f"! {warning}")


def admit(federation: FederationFolder, desk: OrderDesk, newcomer: InstitutionFacts, request: KitRequest | None = None) -> None:
    """Login, queues, keys and kit, then the order.

    Raises OrderRefusedError where it is refused; a stranger is locked out again.
    """
    keys = _prepare(federation, newcomer, desk.plan, request)
    outcome = desk.give(
        "admit",
        institution=newcomer.id,
        incarnation=newcomer.incarnation,
        signing_key=keys.signing,
        sealing_key=keys.sealing,
    )
    entry = desk.table.get(pseudonym(federation.run_secret(), newcomer.id))
    if entry is None or entry.removed:
        shut_out(federation, newcomer.id)
        _take_apart(federation, newcomer.id)
    elif entry.incarnation == newcomer.incarnation and entry.signing_key == keys.signing:
        return  # also where an earlier order, which waited for a leader, was followed before this one
    elif entry.incarnation == newcomer.incarnation:
        raise OrderRefusedError(f"an earlier order admitted {newcomer.id} with other keys: remove it, then add it again")
    raise OrderRefusedError(f"the aggregator refused to admit {newcomer.id}: {outcome.reason}")


def rows(federation: FederationFolder, desk: OrderDesk) -> Iterator[tuple[str, ...]]:
    """The cells of `list`, in the order of COLUMNS."""
    secret, ends = federation.run_secret(), expiries(federation)
    for facts in federation.facts().institutions:
        entry = desk.table.get(pseudonym(secret, facts.id))
        known = entry or Entry(incarnation=facts.incarnation)
        epsilon = "-" if known.epsilon_spent is None else f"{known.epsilon_spent:.2f}"
        state = state_of(entry, desk.plan.hash if desk.plan else "")
        strikes, until = f"{known.strikes / STRIKE:g}", f"{ends[facts.id]:%Y-%m-%d}" if facts.id in ends else "-"
        yield facts.id, facts.title, state, str(known.counters.aggregated), epsilon, str(known.incarnation), strikes, until


def present(federation: FederationFolder, desk: OrderDesk, institution: str) -> Entry:
    """A member's entry. Raises SettingsError for a stranger and for one that was removed."""
    entry = desk.table.get(pseudonym(federation.run_secret(), institution))
    if entry is None:
        raise federation.stranger(institution)
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


def _compared(file: Path | None, institution: str, *, yes: bool) -> KitRequest | None:
    """An institution's request, once a person has compared its fingerprint. Raises SettingsError, or ends where it differs."""
    if file is None:
        return None
    request = KitRequest.load(file)
    request.demand(institution)
    typer.echo(f"fingerprint of the request: {request.fingerprint}")
    if not yes and not typer.confirm(f"does {institution} read the same to you by telephone?"):
        raise SettingsError(f"nothing was changed; ask {institution} for its request again, over another way")
    return request


def _secrecy(request: KitRequest | None) -> str:
    return "which holds private keys, over a way that you trust" if request is None else "which holds no private key"


def _newcomer(
    federation: FederationFolder, desk: OrderDesk, institution: str, title: str | None, request: KitRequest | None
) -> InstitutionFacts:
    """What will be known of it, under the next incarnation. Raises SettingsError where it is a member already."""
    former = desk.table.get(pseudonym(federation.run_secret(), institution))
    if former is not None and not former.removed:
        raise SettingsError(
            f"{institution} is a member already; after a lost disk or a restored backup, remove it first, then add it again"
        )
    if former is not None and request is not None and request.keys.signing == former.signing_key:
        raise SettingsError(
            f"the request has the keys of incarnation {former.incarnation}, which was removed: "
            f"have `fedqueue kit request {institution}` make others, in an empty folder"
        )
    before = {each.id: each.title for each in federation.facts().institutions}
    incarnation = former.incarnation + 1 if former else 1
    return InstitutionFacts(id=institution, title=title or before.get(institution, institution), incarnation=incarnation)


def _prepare(
    federation: FederationFolder, newcomer: InstitutionFacts, plan: Plan | None, request: KitRequest | None
) -> PublicKeys:
    """Everything that must be there when the aggregator admits it; can be repeated."""
    if plan is None:
        raise TopologyError("the lineage names no plan")
    login_file.save(federation.logins().with_institutions([newcomer.id]), federation.path)
    facts = federation.facts()
    keys = enrol(federation, newcomer.id, request, again=newcomer.incarnation in _tried(facts, newcomer.id))
    logins = federation.logins()
    provision(logins, logins.institutions)
    others = [each for each in facts.institutions if each.id != newcomer.id]
    federation.keep(facts.model_copy(update={"institutions": [*others, newcomer]}))
    federation.write_client(newcomer, plan, ClientOptions())
    write_kit(federation.kit(newcomer.id), federation.institution(newcomer.id))
    return keys


def _tried(facts: Facts, institution: str) -> set[int]:
    """The incarnation under which its admission was begun before, where it was."""
    return {each.incarnation for each in facts.institutions if each.id == institution and not each.removed}


def _own_folder(federation: FederationFolder, login: str) -> Path | None:
    """Where the certificate of a login of the operator's own lies."""
    if login == AGGREGATOR:
        return federation.aggregator
    return federation.tls(login) if login in (OPERATOR, federation.logins().administrator) else None


def _demand_renewable(federation: FederationFolder, institution: str, request: KitRequest | None) -> None:
    keys = load_trust(federation.operator_keys).institutions.get(institution)
    if keys is None:
        raise federation.stranger(institution)
    if request is not None and request.keys != keys:
        raise SettingsError(
            f"the request has other message keys than {institution}, and a renewal changes none: it must be made in the folder "
            "with the present ones; where those are lost or stolen, remove the institution and add it again"
        )
    if request is None and not (federation.institution(institution) / KEY_FILE).exists():
        raise SettingsError(f"the key of {institution} was made there: ask for a request, and name it as --request")


def _demand_known(federation: FederationFolder, desk: OrderDesk, institution: str) -> None:
    known = {each.id for each in federation.facts().institutions}
    if institution not in known and pseudonym(federation.run_secret(), institution) not in desk.table:
        raise federation.stranger(institution)


def shut_out(federation: FederationFolder, institution: str) -> None:
    """Takes an institution's login, connections, certificates and keys away, whatever the aggregator does."""
    revoke_login(federation.logins(), institution)
    withdraw(federation, institution)


def _dismiss(federation: FederationFolder, desk: OrderDesk, institution: str) -> None:
    """Orders the removal, unless the table has it already: a removal that broke off can then be repeated."""
    alias = pseudonym(federation.run_secret(), institution)
    entry = desk.table.get(alias)
    if entry is not None and entry.removed:
        return
    try:
        outcome = desk.give("remove", institution=institution)
    except NoAnswerError as error:
        raise NoAnswerError(
            f"{institution} cannot connect any more, and the rest waits: {error}; then remove it again"
        ) from error
    if not outcome.applied and not desk.table[alias].removed:
        raise OrderRefusedError(f"the aggregator refused to remove {institution}: {outcome.reason}")
    _wait_until_unheard(federation.logins(), institution)


def _wait_until_unheard(logins: Logins, institution: str) -> None:
    """The leader stops listening just after it has settled the order; a queue deleted before that would end its term."""
    administrator, deadline = logins.settings(logins.administrator), time.monotonic() + UNHEARD_SECONDS
    while consumers(administrator, update_queue(institution)) > 0 and time.monotonic() < deadline:
        time.sleep(0.1)


def _take_apart(federation: FederationFolder, institution: str) -> None:
    """The list of members goes first: an aggregator that starts must not look for a queue that is gone."""
    facts = federation.facts()
    institutions = [each.model_copy(update={"removed": True}) if each.id == institution else each for each in facts.institutions]
    federation.keep(facts.model_copy(update={"institutions": institutions}))
    logins = federation.logins()
    remove_institution(logins, institution)
    login_file.save(logins.without(institution), federation.path)
