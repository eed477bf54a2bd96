"""From a run's records to what the report's template shows: words, tables and plots."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from operator_console import plots
from operator_console.events import Event
from operator_console.live_view import metric_name
from operator_console.plots import Course, Level, Mark, Shares
from operator_console.summary import Summary, better, better_at_home, figure_text, findings

MOST_ROWS_IN_A_PLOT = 40
LONGEST_NAME = 26
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Records:
    """What the files of a run hold. `lines` are lineage.jsonl's, `sweep` epsilon.json's rows, None where it was not made."""

    summary: Summary
    lines: Sequence[Line]
    titles: Mapping[str, str]
    events: Sequence[Event] = ()
    sweep: Sequence[Mapping[str, Any]] | None = None
    reports: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """A plot with what it shows in words: `alternative` for those who do not see it, `caption` for everybody."""

    svg: str
    alternative: str
    caption: str
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """A table. The first cell of a row is its name; rows in `strong` stand out."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong: frozenset[int] = field(default_factory=frozenset)


def content(records: Records) -> dict[str, Any]:
    """Everything that the template names."""
    summary = records.summary
    plan = next((line["plan"] for line in records.lines if "plan" in line), None)
    return {
        "summary": summary,
        "metric": metric_name(summary["metric"]),
        "tiles": tiles(summary, plan),
        "findings": findings(summary),
        "courses": metric_pictures(records),
        "events": numbered_events(records),
        "models": model_grid(records),
        "own": own_grid(records),
        "shares": shares_picture(records),
        "staleness": staleness_picture(records),
        "parts": part_grid(records),
        "epsilon": epsilon_picture(records, plan),
        "left": left_grid(records, plan),
        "noisy": plan is not None and plan["privacy"]["mechanism"] != "none",
        "sweep": sweep_picture(records),
        "sweep_grid": sweep_grid(records),
        "plan": plan_rows(plan),
        "not_folded": not_folded(records.lines),
    }


def title_of(records: Records, institution: str) -> str:
    """The institution's title, shortened to fit beside a plot."""
    title = records.titles.get(institution) or institution
    return title if len(title) <= LONGEST_NAME else f"{title[: LONGEST_NAME - 1].rstrip()}…"


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


def best_alone(summary: Summary) -> tuple[str, float] | None:
    """The institution whose own model is best on all test rows."""
    metric, best = summary["metric"], None
    for each in summary["institutions"]:
        value = each["alone"][metric]
        if value is not None and (best is None or better(metric, value, best[1])):
            best = (each["id"], value)
    return best


def metric_pictures(records: Records) -> list[Picture]:
    """The held-out figure over time and over versions; none where no version was measured."""
    metric, first = records.summary["metric"], records.lines[0]
    measured = [line for line in records.lines if line["metrics"].get(metric) is not None]
    if not measured:
        return []
    values = [line["metrics"][metric] for line in measured]
    name, levels = metric_name(metric), metric_levels(records)
    said = f"from {values[0]:.3f} to {values[-1]:.3f}; " + "; ".join(level.text for level in levels)
    marks = [event for event in records.events if event.kind != "note"]
    by_time = [Mark(max(0.0, (event.at_ms - first["at_ms"]) / 1000), number) for number, event in enumerate(marks, start=1)]
    by_version = [Mark(version_at(records.lines, event.at_ms), number) for number, event in enumerate(marks, start=1)]
    return [
        Picture(
            plots.metric_course(Course([line[key] for line in measured], values), name=name, over=over, levels=levels, marks=at),
            f"Line: {name} of the federated model over {over}, {said}.",
            f"{name} of each version on the operator's held-out rows, over {over}.",
        )
        for key, over, at in (("seconds", "seconds", by_time), ("version", "versions", by_version))
    ]


def metric_levels(records: Records) -> list[Level]:
    """What the course is compared with."""
    summary, levels = records.summary, []
    pooled, alone = summary["pooled"][summary["metric"]], best_alone(summary)
    if pooled is not None:
        levels.append(Level(f"pooled data {pooled:.3f}", pooled))
    if alone is not None:
        levels.append(Level(f"best alone {alone[1]:.3f}: {title_of(records, alone[0])}", alone[1]))
    return levels


def version_at(lines: Sequence[Line], at_ms: int) -> int:
    """The newest version at a moment."""
    return max((line["version"] for line in lines if line["at_ms"] <= at_ms), default=0)


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
    """Own model and federated model on each institution's own rows, by the first figure; None where nothing was measured."""
    summary, metric = records.summary, records.summary["metric"]
    measured = [each for each in summary["institutions"] if each["own"]["federated"].get(metric) is not None]
    if not measured:
        return None
    at_home = [each["id"] for each in better_at_home(summary)]
    rows = [
        [
            title_of(records, each["id"]),
            figure_text(each["own"]["alone"][metric]),
            figure_text(each["own"]["federated"][metric]),
            "its own" if each["id"] in at_home else "federated",
        ]
        for each in measured
    ]
    strong = frozenset(number for number, each in enumerate(measured) if each["id"] in at_home)
    return Grid(["On its own rows", "own model", "federated", "better"], rows, strong)


def shown_institutions(records: Records) -> list[dict[str, Any]]:
    """As many as a plot can show, those with the most weight first where there are more."""
    institutions = records.summary["institutions"]
    if len(institutions) <= MOST_ROWS_IN_A_PLOT:
        return list(institutions)
    return sorted(institutions, key=lambda each: each["total_weight"], reverse=True)[:MOST_ROWS_IN_A_PLOT]


def shares_picture(records: Records) -> Picture:
    """Updates and weight against data."""
    every = records.summary["institutions"]
    updates, weight = sum(each["updates"] for each in every) or 1, sum(each["total_weight"] for each in every) or 1.0
    examples = sum(each["num_examples"] or 0 for each in every)
    rows = [
        Shares(
            title_of(records, each["id"]),
            each["updates"] / updates,
            each["total_weight"] / weight,
            each["num_examples"] / examples if each["num_examples"] and examples else None,
        )
        for each in shown_institutions(records)
    ]
    said = "; ".join(
        f"{row.institution} {row.updates:.0%} of updates, {row.weight:.0%} of weight"
        + (f", {row.data:.0%} of data" if row.data is not None else "")
        for row in rows
    )
    legend = [("var(--series-1)", "updates"), ("var(--series-2)", "weight"), ("var(--ink)", "data (line)")]
    caption = "Share of all updates, of all weight, and of all training examples."
    return Picture(plots.shares(rows), f"Bars: {said}.", caption, legend)


def staleness_picture(records: Records) -> Picture:
    """How stale each institution's updates were."""
    found: dict[str, list[int]] = {each["id"]: [] for each in shown_institutions(records)}
    for line in records.lines:
        for update in line["updates"]:
            if update["institution"] in found:
                found[update["institution"]].append(update["staleness"])
    rows = {title_of(records, institution): values for institution, values in found.items()}
    said = "; ".join(f"{name} up to {max(values)}" for name, values in rows.items() if values)
    caption = "Staleness of the folded updates: one dot per value, the larger the more updates of that institution had it."
    return Picture(plots.staleness(rows), f"Dots: staleness by institution: {said}.", caption)


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
        ]
        for each in records.summary["institutions"]
    ]
    return Grid(["Institution", "examples", "updates", "mean staleness", "weight", "epsilon spent"], rows)


def epsilon_picture(records: Records, plan: Mapping[str, Any] | None) -> Picture | None:
    """Epsilon over time; None where nobody spent any."""
    courses: dict[str, Course] = {}
    for institution in [each["id"] for each in shown_institutions(records)]:
        steps = [
            (line["seconds"], line["institutions"][institution]["epsilon_spent"])
            for line in records.lines
            if line["institutions"].get(institution, {}).get("epsilon_spent") is not None
        ]
        if steps:
            courses[title_of(records, institution)] = Course([at for at, _ in steps], [spent for _, spent in steps])
    if not courses:
        return None
    said = "; ".join(f"{name} {course.ys[-1]:.2f}" for name, course in courses.items())
    budget = plan["privacy"]["epsilon"] if plan else None
    return Picture(
        plots.epsilon_over_time(courses, budget=budget),
        f"Steps: epsilon spent by each institution over time, at the end: {said}.",
        "Epsilon that each institution has stated with its updates; every training begun counts, also one that was cut short.",
        list(zip(plots.css_colours(len(courses)), courses, strict=True)),
    )


def left_grid(records: Records, plan: Mapping[str, Any] | None) -> Grid:
    """What each institution sent, all of it."""
    model_bytes = records.lines[-1]["model_bytes"]
    sent = Counter(each["institution"] for each in records.reports)
    rows = []
    for each in records.summary["institutions"]:
        own = [report for report in records.reports if report["institution"] == each["id"]]
        rows.append(
            [
                title_of(records, each["id"]),
                f"{each['updates']} of about {size_text(model_bytes)}",
                f"{each['num_examples']:,}" if each["num_examples"] else "-",
                statement_text(each, plan),
                reports_text(own) if sent[each["id"]] else "none",
            ]
        )
    return Grid(["Institution", "folded updates", "stated examples", "privacy statement", "reports of noised figures"], rows)


def statement_text(institution: Mapping[str, Any], plan: Mapping[str, Any] | None) -> str:
    """The privacy statement of an institution's last update."""
    if plan is None or plan["privacy"]["mechanism"] == "none":
        return "no noise"
    if institution["epsilon_spent"] is None:
        return "-"
    privacy = plan["privacy"]
    delta = institution["target_delta"] or privacy["target_delta"]
    clipping = privacy["clipping_norm"]
    return f"{privacy['mechanism']}, clipping norm {clipping:g}, epsilon {institution['epsilon_spent']:.2f} at delta {delta:g}"


def reports_text(reports: Sequence[Mapping[str, Any]]) -> str:
    """How many reports, of which figures, at what cost."""
    figures = sorted({key for report in reports for key in report} - {"institution", "version", "epsilon"})
    return f"{len(reports)} of {', '.join(map(metric_name, figures))}; epsilon {reports[0]['epsilon']:g} each"


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size} bytes" if size < 1024 else f"{size / 1024:.1f} KiB" if size < 2**20 else f"{size / 2**20:.1f} MiB"


def sweep_picture(records: Records) -> Picture | None:
    """What epsilon costs; None where the sweep was not made."""
    metric = records.summary["metric"]
    points = [(epsilon_text(row["epsilon"]), row[metric]) for row in records.sweep or () if row.get(metric) is not None]
    if not points:
        return None
    name = metric_name(metric)
    said = "; ".join(f"epsilon {epsilon}: {value:.3f}" for epsilon, value in points)
    caption = f"Final {name} for each epsilon: runs in one process on the pure core, in virtual time."
    return Picture(plots.epsilon_cost(points, name=name), f"Dots: final {name} by epsilon: {said}.", caption)


def sweep_grid(records: Records) -> Grid | None:
    """The same as a table, with every figure."""
    rows = records.sweep or ()
    names = [name for name in records.summary["federated"] if any(row.get(name) is not None for row in rows)]
    if not names:
        return None
    cells = [[epsilon_text(row["epsilon"]), *(figure_text(row.get(name)) for name in names)] for row in rows]
    return Grid(["epsilon", *map(metric_name, names)], cells)


def epsilon_text(epsilon: float | None) -> str:
    """None is training without noise."""
    return "none" if epsilon is None else f"{epsilon:g}"


def not_folded(lines: Sequence[Line]) -> list[tuple[str, int]]:
    """Why updates were settled without being folded, and how often."""
    reasons = Counter(f"{each['outcome']}: {each['reason']}" for line in lines for each in line["not_folded"])
    return reasons.most_common(12)


def plan_rows(plan: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """The plan in words."""
    if plan is None:
        return []
    aggregation, local, privacy, ending = plan["aggregation"], plan["local"], plan["privacy"], plan["ending"]
    noise = (
        "no noise"
        if privacy["mechanism"] == "none"
        else (
            f"{privacy['mechanism']}: epsilon at most {privacy['epsilon']:g} at target delta {privacy['target_delta']:g}, "
            f"clipping norm {privacy['clipping_norm']:g}"
        )
    )
    kind = "exactly" if aggregation["exact_buffer"] else "up to"
    return [
        ("Task", f"{plan['task']} (task hash {plan['task_hash'][:12]})"),
        ("A version is made", f"of {kind} {aggregation['buffer_size']} updates, or after {aggregation['max_wait_seconds']:g} s"),
        ("Weight of an update", f"share of the data, times {staleness_text(aggregation['staleness'])}"),
        ("Server learning rate", f"{aggregation['server_learning_rate']:g}"),
        (
            "One local training",
            f"{local['steps']} steps of SGD on {local['sample_rate']:.0%} samples, learning rate {local['learning_rate']:g}",
        ),
        ("Updates planned", f"{local['updates']} from each institution"),
        ("Privacy", noise),
        (
            "The run ends",
            "when told to"
            if ending["updates"] is None
            else f"after {ending['updates']} updates, at least {ending['updates_each']} from each",
        ),
    ]


def staleness_text(rule: Mapping[str, Any]) -> str:
    """The staleness weight as a formula in words."""
    match rule["function"]:
        case "constant":
            return "1 whatever the staleness"
        case "polynomial":
            return f"(1 + staleness) to the power of -{rule['exponent']:g}"
        case _:
            return f"1 up to staleness {rule['hinge_threshold']}, then falling with slope {rule['hinge_slope']:g}"
