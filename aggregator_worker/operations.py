"""The operator's orders, applied to the federation's table; each is settled by id in the next manifest."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from aggregator_worker.federation import Federation
from aggregator_worker.latest import most_institutions
from broker_config.topology import checked_institution
from shared.errors import SettingsError
from shared.messages import Entry, Operation, OperationOutcome, Phase

_KEY = re.compile(r"([0-9a-f]{64})?")


class RefusedOperationError(ValueError):
    """An order that cannot be followed; the text goes into the manifest."""


def apply(federation: Federation, operation: Operation, pseudonym_of: Callable[[str], str]) -> OperationOutcome | None:
    """Applies one order that concerns the table or the phase. None when its id was settled before."""

    def follow() -> str:
        _follow(federation, operation, pseudonym_of)
        return _said(operation.arguments)

    return settled(federation, operation, follow)


def settled(federation: Federation, operation: Operation, follow: Callable[[], str | None]) -> OperationOutcome | None:
    """What becomes of an order that `follow` follows, or refuses with RefusedOperationError. None when its id is known.

    What `follow` returns is told with the order.
    """
    if is_settled(federation, operation):
        return None
    try:
        applied, reason = True, follow() or ""
    except RefusedOperationError as error:
        applied, reason = False, str(error)
    outcome = OperationOutcome(operation_id=operation.operation_id, kind=operation.kind, applied=applied, reason=reason)
    federation.pending.operations.append(outcome)
    return outcome


def is_settled(federation: Federation, operation: Operation) -> bool:
    """Whether an order's id is among the last that were settled."""
    pending = (done.operation_id for done in federation.pending.operations)
    return operation.operation_id in {*federation.lineage.operation_ids, *pending}


def _follow(federation: Federation, operation: Operation, pseudonym_of: Callable[[str], str]) -> None:
    match operation.kind:
        case "pause":
            _set_phase(federation, "paused", "paused by the operator")
        case "resume":
            _set_phase(federation, "running", "")
        case "stop":
            _set_phase(federation, "finished", "stopped by the operator")
        case "admit":
            _admit(federation, pseudonym_of(_institution(operation.arguments)), operation.arguments)
        case "remove":
            _remove(federation, pseudonym_of(_institution(operation.arguments)))
        case "quarantine":
            _confine(federation, pseudonym_of(_institution(operation.arguments)))
        case "release":
            _release(federation, pseudonym_of(_institution(operation.arguments)))
        case _:
            raise RefusedOperationError(f"this aggregator cannot {operation.kind} yet")


def _said(arguments: Mapping[str, Any]) -> str:
    """Why the operator orders it, for all who read manifests."""
    reason = arguments.get("reason", "")
    return reason[:200] if isinstance(reason, str) else ""


def _institution(arguments: Mapping[str, Any]) -> str:
    institution = arguments.get("institution")
    if not isinstance(institution, str):
        raise RefusedOperationError("the order names no institution")
    try:
        return checked_institution(institution)
    except SettingsError as error:
        raise RefusedOperationError(str(error)[:200]) from error


def _set_phase(federation: Federation, phase: Phase, reason: str) -> None:
    if federation.head.manifest.phase == "finished":
        raise RefusedOperationError("the run is finished")
    federation.pending.phase, federation.pending.phase_reason = phase, reason


def _admit(federation: Federation, pseudonym: str, arguments: Mapping[str, Any]) -> None:
    incarnation = arguments.get("incarnation", 1)
    former = federation.table.get(pseudonym)
    if type(incarnation) is not int or incarnation < 1:
        raise RefusedOperationError("the incarnation must be a whole number from 1 on")
    if former is not None and incarnation <= former.incarnation:
        raise RefusedOperationError(f"incarnation {incarnation} is not above {former.incarnation}, which was issued before")
    members = sum(not entry.removed for entry in federation.table.values())
    if former is None and members >= federation.plan.limits.institutions:
        raise RefusedOperationError(f"the plan allows {federation.plan.limits.institutions} institutions")
    state = federation.state
    if former is None and state.is_table and members >= most_institutions(len(state.model)):
        raise RefusedOperationError(f"{members} rows of {len(state.model)} tensors are all that a state can hold under this rule")
    fresh = former or Entry(incarnation=incarnation)
    # the largest nonce of all, sent by whoever had its login for a while, must not keep a newcomer from saying hello
    renewed = {"incarnation": incarnation, "watermark": 0, "last_hash": "", "nonce": "", "active": True, "removed": False}
    federation.change(pseudonym, fresh.model_copy(update=renewed | _keys(arguments)))


def _keys(arguments: Mapping[str, Any]) -> dict[str, str]:
    """A newcomer's public keys; none of a former incarnation's is left."""
    given = {name: arguments.get(name, "") for name in ("signing_key", "sealing_key")}
    if not all(isinstance(key, str) and _KEY.fullmatch(key) for key in given.values()):
        raise RefusedOperationError("a public key is 64 hexadecimal digits")
    return given


def _remove(federation: Federation, pseudonym: str) -> None:
    entry = _member(federation, pseudonym)
    federation.change(pseudonym, entry.model_copy(update={"active": False, "removed": True}))


def _confine(federation: Federation, pseudonym: str) -> None:
    """Into quarantine: its numbers go on being settled, nothing of it is folded, and the others share its weight."""
    entry = _member(federation, pseudonym)
    if entry.quarantined:
        raise RefusedOperationError("it is in quarantine already")
    federation.change(pseudonym, entry.model_copy(update={"quarantined": True}))


def _release(federation: Federation, pseudonym: str) -> None:
    """Out of quarantine with nothing against it, and with no weight but what it earns from now on."""
    entry = _member(federation, pseudonym)
    if not entry.quarantined:
        raise RefusedOperationError("it is not in quarantine")
    federation.change(pseudonym, entry.model_copy(update={"quarantined": False, "strikes": 0}))


def _member(federation: Federation, pseudonym: str) -> Entry:
    entry = federation.entry(pseudonym)
    if entry is None:
        raise RefusedOperationError("it is not a member")
    return entry
