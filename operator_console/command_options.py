"""Options that several commands of `fedqueue` share, and what their values may be."""

from pathlib import Path
from typing import Annotated

import typer

from operator_console.broker_commands import DEFAULT_FOLDER

__all__ = ["DEFAULT_FOLDER", "EpsilonText", "Folder", "epsilon_of", "positive"]

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
