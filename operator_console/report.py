"""`fedqueue report`: one self-contained page from the files that a run left behind."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from operator_console.events import read_events
from operator_console.history import write_whole
from operator_console.report_content import Records, content
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
