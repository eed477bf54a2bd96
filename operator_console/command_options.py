"""Options that several commands of `fedqueue` share, and what their values may be."""

import math
import re
from pathlib import Path
from typing import Annotated

import typer

from operator_console.broker_commands import DEFAULT_FOLDER

__all__ = ["DEFAULT_FOLDER", "EpsilonText", "Folder", "bytes_of", "epsilon_of", "figure_of", "positive"]
_SIZE = re.compile(r"(\d+)\s*(B|KiB|MiB|GiB|TiB)?", re.IGNORECASE)
_UNITS = {unit: 1 << (10 * power) for power, unit in enumerate(("b", "kib", "mib", "gib", "tib"))}

Folder = Annotated[Path, typer.Option("--dir", help="Folder of the federation: broker.json, settings, secrets.")]
EpsilonText = Annotated[
    str, typer.Option("--epsilon", help="Privacy budget of each institution: a positive number, or none for no noise at all.")
]


def epsilon_of(text: str) -> float | None:
    """The budget that `--epsilon` names; None for no noise."""
    if text.strip().lower() == "none":
        return None
    try:
        epsilon = float(text)
    except ValueError:
        epsilon = 0.0
    if not 0 < epsilon < float("inf"):
        raise typer.BadParameter(f"{text!r} is neither a positive number nor none", param_hint="--epsilon")
    return epsilon


def positive(value: float | None) -> float | None:
    """The callback of an option that must be above 0."""
    if value is not None and not 0 < value < float("inf"):
        raise typer.BadParameter(f"{value:g} is not a positive number")
    return value


def bytes_of(text: str | None) -> int | None:
    """The size that an option names, such as 512MiB; a bare number is bytes."""
    if text is None:
        return None
    match = _SIZE.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise typer.BadParameter(f"{text!r} is not a size such as 512MiB, 1GiB or 1073741824")
    return int(match[1]) * _UNITS[(match[2] or "B").lower()]


def figure_of(text: str | None) -> tuple[str, float | None]:
    """The figure and the value that `--stop-at` names; no figure and no value where it is not given."""
    if text is None:
        return "", None
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not name.strip() or not math.isfinite(value):
        raise typer.BadParameter(f"{text!r} is not a figure and its value, such as auc=0.78", param_hint="--stop-at")
    return name.strip(), value
