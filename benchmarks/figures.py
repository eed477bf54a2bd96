"""Figures as one line of JSON, or as a table for people."""

import json
from collections.abc import Mapping


def say(figures: Mapping[str, float | str], *, as_json: bool) -> None:
    """Prints them."""
    print(json.dumps(figures) if as_json else "\n".join(_row(name, value) for name, value in figures.items()))


def _row(name: str, value: float | str) -> str:
    shown = value if isinstance(value, str) else f"{value:,}"
    return f"{name.replace('_', ' '):36}{shown:>16}"
