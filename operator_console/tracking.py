"""The figures of each version, for tools that draw them: step is the version, a metric is a name and a number. Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import fmean
from typing import Any

LAST = "federation/version"
"""The last metric of every step: a step that has it is whole."""
Metrics = Mapping[str, float]


def steps(lines: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Metrics]]:
    """Step and metrics of each line of lineage.jsonl, which begin with version 0.

    Names are `held_out/FIGURE`, `federation/...` and, of each institution that the table has, `updates/ID`, `weight_share/ID`,
    `data_share/ID`, `epsilon/ID`, and `staleness/ID` where the version holds an update of it.
    """
    table: dict[str, Mapping[str, Any]] = {}
    for line in lines:
        table |= line["institutions"]
        metrics = {**_held_out(line), **_of_institutions(line, table), **_of_all(line)}
        yield line["version"], {name: value for name, value in metrics.items() if math.isfinite(value)}


def _held_out(line: Mapping[str, Any]) -> dict[str, float]:
    return {f"held_out/{name}": float(value) for name, value in line["metrics"].items() if value is not None}


def _of_institutions(line: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    weight = sum(each["total_weight"] for each in table.values())
    examples = sum(each["num_examples"] or 0 for each in table.values())
    found: dict[str, float] = {}
    for institution, entry in table.items():
        found[f"updates/{institution}"] = entry["updates"]
        if weight:
            found[f"weight_share/{institution}"] = entry["total_weight"] / weight
        if entry["num_examples"] and examples:
            found[f"data_share/{institution}"] = entry["num_examples"] / examples
        if entry["epsilon_spent"] is not None:
            found[f"epsilon/{institution}"] = entry["epsilon_spent"]
        stale = [update["staleness"] for update in line["updates"] if update["institution"] == institution]
        if stale:
            found[f"staleness/{institution}"] = fmean(stale)
    return found


def _of_all(line: Mapping[str, Any]) -> dict[str, float]:
    stale = [update["staleness"] for update in line["updates"]]
    spread = {"federation/staleness_mean": fmean(stale), "federation/staleness_max": float(max(stale))} if stale else {}
    return {
        **spread,
        "federation/updates_folded": len(line["updates"]),
        "federation/updates_not_folded": len(line["not_folded"]),
        "federation/seconds": line["seconds"],
        LAST: line["version"],
    }
