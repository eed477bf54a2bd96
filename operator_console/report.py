"""`fedqueue report`: one self-contained page from the files that a run left behind."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from operator_console.events import read_events
from operator_console.history import write_whole
from operator_console.live_view import metric_name
from operator_console.report_pictures import (
    epsilon_picture,
    metric_pictures,
    own_picture,
    shares_picture,
    staleness_picture,
    sweep_picture,
)
from operator_console.report_records import Records
from operator_console.report_tables import (
    left_grid,
    model_grid,
    not_folded,
    numbered_events,
    own_grid,
    part_grid,
    plan_rows,
    size_text,
    sweep_grid,
    tiles,
)
from operator_console.summary import findings
from shared.errors import SettingsError

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html"


def write_report(folder: Path) -> Path:
    """Writes `report.html` beside the run's other files. Raises SettingsError where the summary or the lineage is missing."""
    page = folder / PAGE
    write_whole(page, report_page(read_records(folder)))
    return page


def report_page(records: Records) -> str:
    """The whole page; everything that came from outside is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(content(records))


def content(records: Records) -> dict[str, Any]:
    """Everything that the template names."""
    summary = records.summary
    plan = next((line["plan"] for line in records.lines if "plan" in line), None)
    return {
        "summary": summary,
        "metric": metric_name(summary["metric"]),
        "tiles": tiles(summary, plan),
        "findings": findings(summary, records.titles),
        "courses": metric_pictures(records),
        "events": numbered_events(records),
        "models": model_grid(records),
        "own": own_grid(records),
        "own_picture": own_picture(records),
        "shares": shares_picture(records),
        "staleness": staleness_picture(records),
        "parts": part_grid(records),
        "epsilon": epsilon_picture(records, plan),
        "left": left_grid(records, plan),
        "model_size": size_text(records.lines[-1]["model_bytes"]),
        "noisy": plan is not None and plan["privacy"]["mechanism"] != "none",
        "sweep": sweep_picture(records),
        "sweep_grid": sweep_grid(records),
        "plan": plan_rows(plan),
        "not_folded": not_folded(records.lines),
    }


def read_records(folder: Path) -> Records:
    """What the files hold; sweep, events and reports may be missing."""
    facts = _optional(folder / "federation.json") or {"institutions": []}
    return Records(
        summary=json.loads(_required(folder / "summary.json")),
        lines=_lines(_required(folder / "lineage.jsonl")),
        titles={each["id"]: each["title"] for each in facts["institutions"]},
        events=read_events(folder / "events.json"),
        sweep=_optional(folder / "epsilon.json"),
        reports=_lines(_text(folder / "aggregator" / "reports.jsonl") or ""),
    )


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _required(path: Path) -> str:
    text = _text(path)
    if not text:
        raise SettingsError(f"{path} is missing; a run that reached its end writes it, `fedqueue demo` for one")
    return text


def _optional(path: Path) -> Any:
    text = _text(path)
    return json.loads(text) if text else None


def _lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]
