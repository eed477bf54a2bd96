"""The table of attempts as docs/security.md shows it."""

from collections.abc import Iterable
from pathlib import Path

from tests.hostile.attempt import CONNECTION, Attempt

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- attempts -->\n", "<!-- /attempts -->"


def table(attempts: Iterable[Attempt]) -> str:
    """In Markdown, one numbered line for each."""
    lines = ["| | tries to | gets | in the log of the | learns |", "|---|---|---|---|---|"]
    for number, each in enumerate(attempts, start=1):
        lines.append(f"| {number} | {_cell(each.tries)} | {_cell(each.gets)} | {_log(each)} | {_cell(each.learns)} |")
    return "\n".join(lines) + "\n"


def _log(attempt: Attempt) -> str:
    return f"{attempt.log}: its connection" if attempt.evidence == CONNECTION else attempt.log


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def shown() -> str:
    """What stands between the markers."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0]


def write(text: str) -> None:
    """Puts a table between the markers."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])
