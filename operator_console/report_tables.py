"""The report's tables and lists."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from operator_console.live_view import metric_name
from operator_console.report_records import Grid, Line, Records, best_alone, epsilon_text, title_of
from operator_console.summary import OWN_MODELS, Summary, best_at_home, figure_text, own_figures

NEVER_CAME = ("lost",)


def tiles(summary: Summary, plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The run in a few numbers."""
    metric = summary["metric"]
    name, alone = metric_name(metric), best_alone(summary)
    spent = [each["epsilon_spent"] for each in summary["institutions"] if each["epsilon_spent"] is not None]
    noisy = plan is not None and plan["privacy"]["mechanism"] != "none"
    return [
        (f"{name}, federated", figure_text(summary["federated"][metric])),
        (f"{name}, best institution alone", figure_text(alone[1] if alone else None)),
        (f"{name}, pooled data", figure_text(summary["pooled"][metric])),
        ("updates folded", str(summary["updates"]["aggregated"])),
        ("epsilon spent at most", f"{max(spent):.2f}" if noisy and spent else "no noise"),
        ("seconds", f"{summary['wall_seconds']:.0f}"),
    ]


def numbered_events(records: Records) -> list[tuple[int | None, str, str]]:
    """Number in the plots (None for a note), second, sentence."""
    first_ms, number, rows = records.lines[0]["at_ms"], 0, []
    for event in records.events:
        number += event.kind != "note"
        second = max(0.0, (event.at_ms - first_ms) / 1000)
        rows.append((number if event.kind != "note" else None, f"{second:.1f} s", event.text))
    return rows


def model_grid(records: Records) -> Grid:
    """Every model on all test rows."""
    summary = records.summary
    names = list(summary["federated"])
    models = [("Federated", summary["federated"]), ("Pooled data", summary["pooled"])]
    models += [(f"{title_of(records, each['id'])} alone", each["alone"]) for each in summary["institutions"]]
    rows = [[name, *(figure_text(figures[key]) for key in names)] for name, figures in models]
    return Grid(["Model", *map(metric_name, names)], rows, frozenset({0}))


def own_grid(records: Records) -> Grid | None:
    """Three models on each institution's own rows, by the first figure; None where nothing was measured.

    Rows stand out where the institution's own model is the best of the three.
    """
    metric = records.summary["metric"]
    measured = [each for each in records.summary["institutions"] if own_figures(each, metric)]
    if not measured:
        return None
    best = [best_at_home(each, metric) or "" for each in measured]
    rows = [
        [
            title_of(records, each["id"]),
            *(figure_text(own_figures(each, metric).get(name)) for name in OWN_MODELS),
            OWN_MODELS[name],
        ]
        for each, name in zip(measured, best, strict=True)
    ]
    strong = frozenset(number for number, name in enumerate(best) if name == "alone")
    return Grid(["On its own rows", *OWN_MODELS.values(), "best"], rows, strong)


def part_grid(records: Records) -> Grid:
    """Each institution's part in numbers."""
    rows = [
        [
            title_of(records, each["id"]),
            f"{each['num_examples']:,}" if each["num_examples"] else "-",
            str(each["updates"]),
            "-" if each["mean_staleness"] is None else f"{each['mean_staleness']:.1f}",
            f"{each['total_weight']:.2f}",
            "-" if each["epsilon_spent"] is None else f"{each['epsilon_spent']:.2f}",
            each.get("standing") or "takes part",
        ]
        for each in records.summary["institutions"]
    ]
    return Grid(["Institution", "examples", "updates", "mean staleness", "weight", "epsilon spent", "standing"], rows)


def left_grid(records: Records, plan: Mapping[str, Any] | None) -> Grid:
    """What each institution sent, all of it."""
    refused = Counter(
        each["institution"] for line in records.lines for each in line["not_folded"] if each["outcome"] not in NEVER_CAME
    )
    rows = [
        [
            title_of(records, each["id"]),
            f"{each['updates']} folded, {refused[each['id']]} not",
            f"{each['num_examples']:,}" if each["num_examples"] else "-",
            statement_text(each, plan),
            reports_text([report for report in records.reports if report["institution"] == each["id"]]),
        ]
        for each in records.summary["institutions"]
    ]
    return Grid(["Institution", "updates", "stated examples", "privacy statement", "reports of noised figures"], rows, wordy=True)


def statement_text(institution: Mapping[str, Any], plan: Mapping[str, Any] | None) -> str:
    """The privacy statement of an institution's last update."""
    if plan is None or plan["privacy"]["mechanism"] == "none":
        return "no noise"
    if institution["epsilon_spent"] is None:
        return "-"
    privacy = plan["privacy"]
    delta = institution["target_delta"] or privacy["target_delta"]
    clipping = privacy["clipping_norm"]
    spent = f"epsilon {institution['epsilon_spent']:.2f} at delta {small_text(delta)}"
    return f"{privacy['mechanism']}, clipping norm {clipping:g}, {spent}"


def reports_text(reports: Sequence[Mapping[str, Any]]) -> str:
    """How many reports, of which figures, at what cost."""
    if not reports:
        return "none"
    figures = sorted({key for report in reports for key in report} - {"institution", "version", "epsilon"})
    return f"{len(reports)} of {', '.join(map(metric_name, figures))}; epsilon {reports[0]['epsilon']:g} each"


def small_text(value: float) -> str:
    """A tiny number without a padded exponent."""
    return f"{value:g}".replace("e-0", "e-")


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size} bytes" if size < 1024 else f"{size / 1024:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"


def sweep_grid(records: Records) -> Grid | None:
    """The same federation at several epsilons, with every figure; None where the sweep was not made."""
    rows = records.sweep or ()
    names = [name for name in records.summary["federated"] if any(row["metrics"].get(name) is not None for row in rows)]
    if not names:
        return None
    cells = [
        [
            epsilon_text(row["epsilon"]),
            "-" if row["noise_multiplier"] is None else f"{row['noise_multiplier']:.2f}",
            *(figure_text(row["metrics"].get(name)) for name in names),
        ]
        for row in rows
    ]
    return Grid(["epsilon", "noise multiplier", *map(metric_name, names)], cells)


def not_folded(lines: Sequence[Line]) -> list[tuple[str, int]]:
    """Why updates were settled without being folded, and how often."""
    reasons = Counter(f"{each['outcome']}: {each['reason']}" for line in lines for each in line["not_folded"])
    return reasons.most_common(12)


def plan_rows(plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The plan in words."""
    if plan is None:
        return []
    aggregation, local = plan["aggregation"], plan["local"]
    training = f"{local['steps']} steps of SGD on {local['sample_rate']:.0%} samples, learning rate {local['learning_rate']:g}"
    return [
        ("Task", f"{plan['task']} (task hash {plan['task_hash'][:12]})"),
        ("A version is made", buffer_text(aggregation)),
        (
            "Weight of an update",
            f"server learning rate, times share of the data, times {staleness_text(aggregation['staleness'])}",
        ),
        ("Server learning rate", f"{aggregation['server_learning_rate']:g}"),
        ("One local training", training),
        ("Updates planned", f"{local['updates']} from each institution"),
        ("Privacy", privacy_text(plan["privacy"])),
        ("The run ends", ending_text(plan["ending"])),
    ]


def buffer_text(aggregation: Mapping[str, Any]) -> str:
    """When a version is made."""
    size, wait = aggregation["buffer_size"], f"after {aggregation['max_wait_seconds']:g} s at the latest"
    if size == 1:
        return "from each update as it comes, from several where they come together"
    return f"from {'exactly' if aggregation['exact_buffer'] else 'up to'} {size} updates, {wait}"


def privacy_text(privacy: Mapping[str, Any]) -> str:
    """What the plan asks of every institution."""
    if privacy["mechanism"] == "none":
        return "no noise"
    target = f"epsilon at most {privacy['epsilon']:g} at target delta {small_text(privacy['target_delta'])}"
    return f"{privacy['mechanism']}: {target}, clipping norm {privacy['clipping_norm']:g}"


def ending_text(ending: Mapping[str, Any]) -> str:
    """When the run is over. A plan of an older version names fewer ends."""
    ends, metric = [], metric_name(ending.get("metric") or "")
    if ending.get("target") is not None:
        times = "" if ending["in_a_row"] == 1 else f", {ending['in_a_row']} times in a row"
        ends.append(f"once {metric} on held-out rows reaches {ending['target']:g}{times}")
    if ending["updates"] is not None:
        ends.append(f"after {ending['updates']} updates, at least {ending['updates_each']} from each institution")
    if ending.get("institutions") is not None:
        ends.append(f"once {ending['institutions']} institutions have given all they could")
    if ending.get("versions") is not None:
        ends.append(f"after {ending['versions']} versions")
    if ending.get("patience") is not None:
        ends.append(f"after {ending['patience']} versions without a better {metric}")
    if ending.get("seconds") is not None:
        ends.append(f"after {ending['seconds']:g} seconds")
    return "; or ".join(ends) or "when the operator stops it"


def staleness_text(rule: Mapping[str, Any]) -> str:
    """The staleness weight as a formula in words."""
    match rule["function"]:
        case "constant":
            return "1 whatever the staleness"
        case "polynomial":
            return f"(1 + staleness) to the power of -{rule['exponent']:g}"
        case _:
            return f"1 up to staleness {rule['hinge_threshold']}, then falling with slope {rule['hinge_slope']:g}"
