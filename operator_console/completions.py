"""What a shell offers after TAB: institutions and versions of the federation in the folder at hand, if there is one."""

import json
from pathlib import Path

import typer

from operator_console.federation_folder import Facts

OFFERED_VERSIONS = 20


def institutions(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the institutions that begin so."""
    try:
        facts = Facts.model_validate_json((_folder(context) / "federation.json").read_bytes())
    except (OSError, ValueError):
        return []
    return [each.id for each in facts.institutions if each.id.startswith(incomplete)]


def versions(context: typer.Context, incomplete: str) -> list[str]:
    """The newest versions as `fedqueue status` last saw them, newest first, that begin so."""
    try:
        newest = int(json.loads((_folder(context) / LAST_KNOWN).read_bytes())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return []
    known = map(str, range(newest, max(-1, newest - OFFERED_VERSIONS), -1))
    return [each for each in known if each.startswith(incomplete)]


LAST_KNOWN = "last-status.json"
"""What `fedqueue status` saw last, in the federation's folder."""


def _folder(context: typer.Context) -> Path:
    return Path(context.params.get("folder") or "federation")
