"""What the demo did to the run from outside, as it is shown while it runs and in the report afterwards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from operator_console.history import write_whole

Kind = Literal["slow", "killed", "restarted", "note"]


class Event(BaseModel):
    """`at_ms` is the wall clock, as in manifests. `text` is a sentence for people."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at_ms: int
    kind: Kind
    institution: str | None = None
    text: str


_EVENTS = TypeAdapter(list[Event])


def write_events(path: Path, events: Sequence[Event]) -> None:
    """Writes `events.json`."""
    write_whole(path, _EVENTS.dump_json(list(events), indent=2).decode() + "\n")


def read_events(path: Path) -> list[Event]:
    """Reads `events.json`; none where there is no such file."""
    return _EVENTS.validate_json(path.read_bytes()) if path.exists() else []
