"""`fedqueue sent --html FILE`: one page for the data-protection officer, of the institution's own ledger. It needs no network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from client_worker.sent import Sent
from operator_console import plots
from operator_console.plots import Level
from operator_console.report_records import Grid, Picture
from operator_console.sent_tables import (
    HEAD,
    budget,
    figure,
    moment,
    spent_course,
    totals_lines,
    unsent_cells,
    update_cells,
)

TEMPLATES = Path(__file__).parent / "templates"
UNSENT_HEAD = ("row", "time, UTC", "version", "epsilon", "in all")
REPORT_HEAD = ("row", "time, UTC", "version", "epsilon")
CHECKSUM_HEAD = ("update", "SHA-256 of its bytes", "outcome")


def page(found: Sent, *, max_epsilon: float | None = None, is_public: bool = False) -> str:
    """The whole page; whatever comes from outside is escaped. `max_epsilon` is the policy's, where it is known."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("sent.html.jinja").render(content(found, max_epsilon, is_public))


def content(found: Sent, max_epsilon: float | None, is_public: bool) -> dict[str, Any]:
    """Everything that the template names."""
    totals = found.totals
    return {
        "opened": totals.opened or {},
        "dataset": totals.dataset,
        "unit": (totals.dataset or {}).get("unit", "record"),
        "is_public": is_public,
        "tiles": _tiles(found, max_epsilon),
        "course": _course(found, max_epsilon),
        "totals": totals_lines(found),
        "updates": Grid(HEAD, [update_cells(update) for update in found.updates]),
        "unsent": Grid(UNSENT_HEAD, [unsent_cells(charged) for charged in found.unsent]),
        "reports": Grid(
            REPORT_HEAD,
            [[str(each.row), moment(each.at_seconds), str(each.version), figure(each.epsilon)] for each in found.reports],
        ),
        "checksums": Grid(CHECKSUM_HEAD, [[str(update.sequence), update.hash, update.outcome] for update in found.updates]),
        "counted": totals.counted,
        "rows": found.rows,
        "last_hash": found.last_hash,
        "unprotected": totals.unprotected,
    }


def _tiles(found: Sent, max_epsilon: float | None) -> list[tuple[str, str]]:
    spent, allowed = spent_course(found), budget(found)
    tiles = [("epsilon spent", figure(spent[-1]) if spent else "none")]
    if allowed is not None:
        tiles.append(("allowed by the plan", f"{allowed:g}"))
    if max_epsilon is not None:
        tiles.append(("most by your policy", f"{max_epsilon:g}"))
    return [
        *tiles,
        ("updates", str(len(found.updates))),
        ("bytes that left", f"{found.size:,}"),
        ("reports", str(len(found.reports))),
    ]


def _course(found: Sent, max_epsilon: float | None) -> Picture | None:
    spent, allowed = spent_course(found), budget(found)
    if not spent:
        return None
    levels = [Level(f"plan {allowed:g}", allowed)] if allowed is not None else []
    if max_epsilon is not None and max_epsilon != allowed:
        levels.append(Level(f"your policy {max_epsilon:g}", max_epsilon))
    against = f" of {allowed:g}" if allowed is not None else ""
    return Picture(
        plots.epsilon_by_training(spent, levels),
        f"Steps: epsilon in all after each of {len(spent)} trainings, at the end {spent[-1]:.3g}{against}.",
        "Each step is one local training. It was charged before it began, and stays charged also where nothing of it ever left.",
    )
