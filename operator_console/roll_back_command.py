"""`fedqueue roll-back`: the model as it would be without an institution, or as it was, becomes the newest version."""

import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Annotated

import typer

from aggregator_worker import roll_back as model_order
from aggregator_worker.roll_back import RollBack
from aggregator_worker.settings import AggregatorSettings
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.service import read_settings
from broker_config.streams import fetch_model
from broker_config.topology import LINEAGE, MODEL
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.completions import institutions, versions
from operator_console.federation_folder import FederationFolder
from operator_console.institution_commands import confine
from operator_console.lineage_commands import NoSuchVersionError
from operator_console.operation_commands import ANSWER_SECONDS, OrderDesk, OrderRefusedError, order_desk
from operator_console.replay_command import Chain, Result, lines, oldest_kept, read_chain, rebuilt, start_state
from shared import messages
from shared.broker import Broker
from shared.compact import l2_norm
from shared.errors import SettingsError
from shared.messages import Manifest, ManifestRecord, Metrics, OperationOutcome, pseudonym
from shared.parameters import Parameters, subtract

TRIES = 5
"""A version that comes between the look and the order makes the order void; while the run is paused, few come."""
SECONDS_PER_CHUNK = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """What the operator wants: whose updates to do without, and up to which version; the last ones where that is None."""

    federation: FederationFolder
    without: str | None
    to: int | None

    @property
    def alias(self) -> str:
        """The pseudonym of whom it is to be without; empty for nobody."""
        return pseudonym(self.federation.run_secret(), self.without) if self.without else ""


@dataclass(frozen=True, slots=True, eq=False)
class Prospect:
    """The model that would be published, the newest that it would replace, and how it was made."""

    head: ManifestRecord
    present: Parameters
    model: Parameters
    to_version: int
    made: tuple[str, ...]


def roll_back(
    without: Annotated[
        str | None, typer.Option(metavar="INSTITUTION", autocompletion=institutions, help="Leave out this institution's updates.")
    ] = None,
    to: Annotated[
        int | None, typer.Option(min=0, metavar="VERSION", autocompletion=versions, help="Leave out everything after it.")
    ] = None,
    *,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="First put the institution into quarantine.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Publish the model without an institution's updates, or of an earlier version, as a new version on the same chain."""
    if without is None and to is None:
        raise typer.BadParameter("say whom to do without, --without INSTITUTION, or where to go back to, --to VERSION")
    request = Request(FederationFolder(folder), without, to)
    if quarantine and without is None:
        raise typer.BadParameter("--quarantine needs --without, which says whom")
    if without is not None:
        _demand_confined(request, or_will_be=quarantine or dry_run)
    prospect = _looked(request)
    for line in told(prospect, request):
        typer.echo(line)
    if dry_run:
        return
    # asked without a connection, which a person who thinks about it for long would let time out
    if not yes and not typer.confirm(f"publish this as version {prospect.head.manifest.version + 1}?"):
        raise typer.Exit(1)
    made, to_version = _carried_out(request, prospect, quarantine=quarantine)
    over = made.phase == "finished"
    then = "the run stays finished" if over else "institutions train on from it; numbers and budgets stay as they are"
    typer.echo(f"version {made.version} is published: {_goal(request, to_version)}; {then}")


def _demand_confined(request: Request, *, or_will_be: bool) -> None:
    """Raises SettingsError where the institution's next update would only be folded again."""
    name = request.without or ""
    request.federation.demand_known(name)
    with order_desk(request.federation) as desk:
        entry = desk.table.get(request.alias)
    if entry is not None and not (entry.quarantined or entry.removed or or_will_be):
        raise SettingsError(
            f"{name} still takes part, so its next update would be folded into what it is to be out of: first "
            f"`fedqueue institution quarantine {name}`, or add --quarantine"
        )


def _looked(request: Request) -> Prospect:
    logins = request.federation.logins()
    journals = logins.limits.journal_stream_bytes is not None
    with closing(connect(logins.settings(OPERATOR), name="fedqueue-roll-back")) as broker:
        return prospect_of(broker, request, journals=journals)


def prospect_of(broker: Broker, request: Request, *, journals: bool) -> Prospect:
    """The model that is wanted: rebuilt from the journals, or, where nobody is left out, as the broker still holds it.

    Raises SettingsError where journals are needed and there are none, NoSuchVersionError, and what `rebuilt` raises.
    """
    chain = read_chain(broker)
    head = chain.versions[chain.newest]
    to = chain.newest if request.to is None else request.to
    if to not in chain.versions:
        raise NoSuchVersionError(f"{LINEAGE} holds the versions {min(chain.versions)} to {chain.newest}, not {to}")
    if request.without is None and to == chain.newest:
        raise SettingsError(f"version {to} is the newest: there is nothing to roll back")
    present = fetch_model(broker, head)
    if request.without is None:
        kept = oldest_kept(broker, chain)
        if to in kept:
            return Prospect(head, present, start_state(broker, chain, to).model, to, ("as the broker holds it",))
        if not journals:
            raise SettingsError(_nothing_left(to, kept))
    elif not journals:
        raise SettingsError(
            f"without {request.without} the model must be rebuilt from journals, and this federation keeps none: `fedqueue init "
            "--journal SIZE` has them. What is left is --to VERSION, a version from before its first update"
        )
    names = request.federation.names()
    result = rebuilt(broker, names, version=to, without=request.alias or None)
    model = result.replay.state.model
    if messages.encode_model(head.manifest.run_id, model, chain.plan.broadcast).hash == head.manifest.model.hash:
        raise SettingsError(_no_change(request.without or "anybody", chain, result))
    return Prospect(head, present, model, to, tuple(lines(result, request.without)))


def _nothing_left(to: int, kept: list[int]) -> str:
    held = f"its models begin with version {kept[0]}" if kept else "it holds none"
    return (
        f"{MODEL} no longer has the model of version {to}: {held}. It could be rebuilt from journals, and this federation keeps "
        "none: `fedqueue init --journal SIZE` has them"
    )


def _no_change(without: str, chain: Chain, result: Result) -> str:
    told = f"version {chain.newest} holds no update of {without} that could be left out"
    return told + (f": what it gave up to version {result.start} cannot be" if result.holds_theirs else ", nothing would change")


def told(prospect: Prospect, request: Request) -> Iterator[str]:
    """What is shown before anything is ordered."""
    head = prospect.head.manifest
    yield f"newest: version {head.version}; wanted: {_goal(request, prospect.to_version)}"
    yield from prospect.made
    if prospect.to_version < head.version:
        yield f"Versions {prospect.to_version + 1} to {head.version} no longer count in the model, whoever gave their updates."
    change = l2_norm(subtract(prospect.model, prospect.present))
    yield f"the model moves by {change:.6g} (L2), from a length of {l2_norm(prospect.present):.6g}"
    yield from _figures(prospect, request.federation)


def _goal(request: Request, to_version: int) -> str:
    return f"version {to_version}" + (f" without {request.without}" if request.without else "")


def _figures(prospect: Prospect, federation: FederationFolder) -> Iterator[str]:
    if not federation.aggregator_file.exists():
        yield f"held-out figures: none, {federation.aggregator_file} is not here to name held-out rows"
        return
    settings = read_settings(AggregatorSettings, federation.aggregator_file)
    if settings.held_out_file is None or settings.task_file is None:
        yield "held-out figures: none, the aggregator has no held-out rows (`held_out_file` in aggregator.toml)"
        return
    # torch takes seconds to import, and only held-out rows need it
    from aggregator_worker.evaluation import evaluation_on, held_out
    from shared.tasks.spec import parse_task

    task = parse_task(settings.task_file.read_text(), source=str(settings.task_file))
    evaluate = evaluation_on(task, held_out(task, settings.held_out_file))
    before, after = evaluate(prospect.present), evaluate(prospect.model)
    yield from compared(before, after)


def compared(before: Metrics, after: Metrics) -> Iterator[str]:
    """Held-out figures, now and then."""
    for name, value in before.items():
        now, then = ("-" if each is None else f"{each:.4f}" for each in (value, after.get(name)))
        yield f"held-out {name}: {now} now, {then} after it"


def _carried_out(request: Request, prospect: Prospect, *, quarantine: bool) -> tuple[Manifest, int]:
    """Orders everything; returns the manifest that made the new version, and which version that is."""
    if quarantine:
        with order_desk(request.federation) as desk:
            if not _is_removed(desk, request):
                confine(request.federation, desk, request.without or "", "before a roll-back")
    with _paused(request.federation):
        return _published(request, prospect)


@contextmanager
def _paused(federation: FederationFolder) -> Iterator[None]:
    """A pause, unless there is one or the run is finished. Where something fails inside, the run stays paused, and says so."""
    with order_desk(federation) as desk:
        pauses = desk.head.manifest.phase == "running"
        if pauses and not (outcome := desk.give("pause")).applied:
            raise OrderRefusedError(f"the aggregator refused to pause the run: {outcome.reason}")
    done = False
    try:
        yield
        done = True
    finally:
        if pauses and done:
            with order_desk(federation) as desk:
                desk.give("resume")
        elif pauses:
            typer.echo("nothing was rolled back, and the run is paused: `fedqueue resume` lets it go on", err=True)


def _is_removed(desk: OrderDesk, request: Request) -> bool:
    entry = desk.table.get(request.alias)
    return entry is not None and entry.removed


def _published(request: Request, prospect: Prospect) -> tuple[Manifest, int]:
    """Gives the order; made again where a version came between. Raises OrderRefusedError with the aggregator's reason."""
    for _ in range(TRIES):
        with order_desk(request.federation) as desk:
            head = desk.head
            is_newest = head.manifest.model.hash == prospect.head.manifest.model.hash
            outcome = order(desk, request, prospect) if is_newest else None
            if outcome is not None and outcome.applied:
                return desk.head.manifest, prospect.to_version
            if outcome is not None and (desk.head.epoch, desk.head.manifest.version) == (head.epoch, head.manifest.version):
                raise OrderRefusedError(f"the aggregator refused to roll back: {outcome.reason}")
        typer.echo("a version was made meanwhile: the model is rebuilt")
        prospect = _looked(request)
    raise OrderRefusedError(f"{TRIES} times a version was made while the model was rebuilt; try again when the queues are empty")


def order(desk: OrderDesk, request: Request, prospect: Prospect) -> OperationOutcome:
    """Gives the orders that carry the model, and returns what became of them."""
    manifest, plan = desk.head.manifest, desk.plan
    if plan is None:
        raise SettingsError("the lineage names no plan")
    orders = list(
        model_order.orders(
            prospect.model,
            RollBack(prospect.to_version, request.alias),
            run_id=manifest.run_id,
            operation_id=secrets.token_hex(16),
            replaces=manifest.model.hash,
            chunk_bytes=plan.limits.chunk_bytes,
        )
    )
    return desk.give_all(orders, timeout_seconds=ANSWER_SECONDS + SECONDS_PER_CHUNK * len(orders))[0]
