"""What `fedqueue sent` tells of an institution's ledger: as an object for scripts, as cells for a terminal and a page."""

from collections.abc import Sized
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from client_worker.course import Norms
from client_worker.sent import Charged, Sent, SentUpdate

SCHEMA = 1
NOT_NOTED = "-"
MOMENT = "%Y-%m-%d %H:%M"


def sent_object(found: Sent) -> dict[str, Any]:
    """Everything, for scripts. What stands under `private` is of before the noise, and stays in the institution."""
    opened, totals = found.totals.opened or {}, found.totals
    return {
        "schema": SCHEMA,
        **{name: opened.get(name) for name in ("run_id", "institution", "incarnation")},
        "ledger": {"rows": found.rows, "last_hash": found.last_hash},
        "updates": [_update_object(update) for update in found.updates],
        "reports": [asdict(report) for report in found.reports],
        "never_left": [asdict(charged) for charged in found.unsent],
        "released_count": None
        if totals.counted is None
        else {"value": totals.counted, "epsilon": totals.count_epsilon, "at_seconds": found.counted_at_seconds},
        "totals": {
            "updates": len(found.updates),
            "bytes": found.size,
            "epsilon_by_target_delta": {f"{delta:g}": spent for delta, spent in totals.epsilon_spent.items()},
            "epsilon_carried_over": totals.carried,
            "epsilon_of_reports": found.epsilon_of_reports,
            "trainings_without_noise": totals.unprotected,
        },
    }


def _update_object(update: SentUpdate) -> dict[str, Any]:
    charged = asdict(update.charged)
    del charged["row"], charged["at_seconds"]
    return {
        "sequence": update.sequence,
        "hash": update.hash,
        "bytes": update.size,
        "sealed_at_seconds": update.sealed_at_seconds,
        "sent_at_seconds": update.sent_at_seconds,
        "outcome": update.outcome,
        **charged,
        "noise_norm": update.noise_norm,
        "norm": update.norm,
        "private": None if update.norms is None else update.norms.fields,
    }


HEAD = (
    *("update", "time, UTC", "version", "hash", "bytes", "before clipping", "after", "cut"),
    *("noise", "as sent", "multiplier", "epsilon", "in all", "outcome"),
)


def update_cells(update: SentUpdate) -> list[str]:
    """One update under `HEAD`."""
    charged, at = update.charged, update.sent_at_seconds or update.sealed_at_seconds
    before, after, cut = _norm_cells(update.norms)
    return [
        str(update.sequence),
        moment(at),
        _text(charged.base_version),
        update.hash[:12],
        NOT_NOTED if update.size is None else f"{update.size:,}",
        before,
        after,
        cut,
        figure(update.noise_norm),
        figure(update.norm),
        "none" if charged.noise_multiplier is None else figure(charged.noise_multiplier),
        figure(charged.epsilon),
        figure(charged.epsilon_in_all),
        update.outcome,
    ]


def _norm_cells(norms: Norms | None) -> tuple[str, str, str]:
    if norms is None:
        return NOT_NOTED, NOT_NOTED, NOT_NOTED
    cut = f"{100 * norms.clipped / norms.count:.0f} %" if norms.of == "gradients" else ("yes" if norms.clipped else "no")
    return figure(norms.before), figure(norms.after), cut


def totals_lines(found: Sent) -> list[str]:
    """What it comes to, a sentence each."""
    totals = found.totals
    counts = f"{_counted(found.updates, 'update')}, {found.size:,} bytes; {_counted(found.reports, 'report')}"
    lines = [f"{counts}; charged, and nothing of it left: {_counted(found.unsent, 'training')}."]
    for delta, spent in sorted(totals.epsilon_spent.items()):
        lines.append(f"Spent: epsilon {spent:.4g} at target delta {delta:g}{_of_it(found)}.")
    if found.reports:
        lines.append(f"Reports spent epsilon {found.epsilon_of_reports:.4g} more, of the validation rows.")
    if totals.counted is not None:
        lines.append(
            f"The number of examples was released once, with noise: {totals.counted}, at epsilon {totals.count_epsilon:g}."
        )
    if totals.unprotected:
        lines.append(f"{totals.unprotected} trainings were without noise: no epsilon holds for these rows.")
    return lines


def _of_it(found: Sent) -> str:
    lost = sum(charged.epsilon or 0.0 for charged in found.unsent)
    parts = [f"{found.totals.carried:.4g} of it by an earlier incarnation"] if found.totals.carried else []
    parts += [f"{lost:.4g} of it for trainings that never left"] if lost else []
    return f", {' and '.join(parts)}" if parts else ""


def unsent_cells(charged: Charged) -> list[str]:
    """A training that was charged and never left."""
    when, version = moment(charged.at_seconds), _text(charged.base_version)
    return [str(charged.row), when, version, figure(charged.epsilon), figure(charged.epsilon_in_all)]


def every_charge(found: Sent) -> list[Charged]:
    """In the order of the ledger, those too that never left."""
    return sorted([update.charged for update in found.updates] + found.unsent, key=lambda charged: charged.row)


def spent_course(found: Sent) -> list[float]:
    """Epsilon in all after each charged training."""
    return [charged.epsilon_in_all for charged in every_charge(found) if charged.epsilon_in_all is not None]


def budget(found: Sent) -> float | None:
    """The newest plan's epsilon, as far as it was noted."""
    return next((charged.budget for charged in reversed(every_charge(found)) if charged.budget is not None), None)


def moment(at_seconds: int) -> str:
    """In UTC."""
    return datetime.fromtimestamp(at_seconds, UTC).strftime(MOMENT)


def figure(value: float | None) -> str:
    """Three digits, or that it was not noted."""
    return NOT_NOTED if value is None else f"{value:.3g}"


def _counted(each: Sized, name: str) -> str:
    return f"{len(each):,} {name}{'' if len(each) == 1 else 's'}"


def _text(value: object) -> str:
    return NOT_NOTED if value is None else str(value)
