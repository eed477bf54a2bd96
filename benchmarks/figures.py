"""Figures as one line of JSON, or as a table for people."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

from broker_config.service import ending_on_sigterm
from shared.errors import FederationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def tell(measure: Callable[[], "DataclassInstance"], *, as_json: bool) -> None:
    """Measures and prints what was found, or ends the program with the reason why there is nothing to print."""
    try:
        with ending_on_sigterm():
            figures = measure()
    except FederationError as error:
        raise SystemExit(str(error)) from error
    say(asdict(figures), as_json=as_json)


def say(figures: Mapping[str, float | str], *, as_json: bool) -> None:
    """Prints them."""
    print(json.dumps(figures) if as_json else "\n".join(_row(name, value) for name, value in figures.items()))


def _row(name: str, value: float | str) -> str:
    shown = value if isinstance(value, str) else f"{value:,}"
    return f"{name.replace('_', ' '):36}{shown:>16}"
