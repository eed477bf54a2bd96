"""What the operator's simulation found that noise costs, for the plan that institutions will read."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import SettingsError
from shared.plan import SimulatedCost

METRICS = ("auc", "accuracy", "mae", "log_loss")
"""The first of these that both runs have is the one that is told."""


def simulated_cost(file: Path, epsilon: float | None) -> SimulatedCost:
    """From an `epsilon.json` as `simulator.comparison` writes it: the run at this epsilon beside the one without noise.

    Raises SettingsError where the file holds no such pair.
    """
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        figures = {row["epsilon"]: row["metrics"] for row in rows}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"--simulation {file} cannot be read as an epsilon.json: {error!r}") from error
    if epsilon is None or not {None, epsilon} <= figures.keys():
        held = ", ".join(f"{each:g}" for each in figures if each is not None) or "none"
        without = "one" if None in figures else "none"
        raise SettingsError(
            f"--simulation {file} holds runs at epsilon {held} and {without} without noise; the plan's epsilon is "
            f"{'none' if epsilon is None else f'{epsilon:g}'}: simulate that one, or leave the option out"
        )
    return _pair(file, figures[None], figures[epsilon])


def _pair(file: Path, without_noise: Mapping[str, Any], with_noise: Mapping[str, Any]) -> SimulatedCost:
    for metric in METRICS:
        pair: Sequence[Any] = [each.get(metric) for each in (without_noise, with_noise)]
        if all(isinstance(value, float) for value in pair):
            return SimulatedCost(metric=metric.replace("_", " "), without_noise=pair[0], with_noise=pair[1])
    raise SettingsError(f"--simulation {file} has none of {', '.join(METRICS)} in both runs")
