"""The report's pictures: what the records show as plots, each with its words."""

from collections.abc import Mapping, Sequence
from typing import Any

from operator_console import plots
from operator_console.live_view import metric_name
from operator_console.plots import Course, Level, Mark, OwnRows, Shares
from operator_console.report_records import (
    Line,
    Picture,
    Records,
    best_alone,
    epsilon_text,
    selection_text,
    short_title,
    shown_institutions,
)
from operator_console.summary import OWN_MODELS, own_figures


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
        levels.append(Level(f"best alone {alone[1]:.3f}: {short_title(records, alone[0])}", alone[1]))
    return levels


def version_at(lines: Sequence[Line], at_ms: int) -> int:
    """The newest version at a moment."""
    return max((line["version"] for line in lines if line["at_ms"] <= at_ms), default=0)


def own_picture(records: Records) -> Picture | None:
    """The three models on each institution's own rows; None where nobody has fine-tuned the federated one."""
    metric = records.summary["metric"]
    rows = [OwnRows(short_title(records, each["id"]), own_figures(each, metric)) for each in shown_institutions(records)]
    rows = [row for row in rows if row.figures]
    if not any("personalised" in row.figures for row in rows):
        return None
    name = metric_name(metric)
    said = "; ".join(
        f"{row.institution} " + ", ".join(f"{OWN_MODELS[model]} {figure:.3f}" for model, figure in row.figures.items())
        for row in rows
    )
    legend = list(zip(plots.css_colours(len(OWN_MODELS)), OWN_MODELS.values(), strict=True))
    caption = f"{name} on each institution's own test rows{selection_text(records)}."
    return Picture(plots.own_rows(rows, list(OWN_MODELS), name=name), f"Dots: {name} on own rows: {said}.", caption, legend)


def shares_picture(records: Records) -> Picture:
    """Updates and weight against data."""
    every = records.summary["institutions"]
    updates, weight = sum(each["updates"] for each in every) or 1, sum(each["total_weight"] for each in every) or 1.0
    examples = sum(each["num_examples"] or 0 for each in every)
    rows = [
        Shares(
            short_title(records, each["id"]),
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
    caption = f"Share of all updates, of all weight, and of all training examples{selection_text(records)}."
    return Picture(plots.shares(rows), f"Bars: {said}.", caption, legend)


def staleness_picture(records: Records) -> Picture:
    """How stale each institution's updates were."""
    found: dict[str, list[int]] = {each["id"]: [] for each in shown_institutions(records)}
    for line in records.lines:
        for update in line["updates"]:
            if update["institution"] in found:
                found[update["institution"]].append(update["staleness"])
    rows = {short_title(records, institution): values for institution, values in found.items()}
    said = "; ".join(f"{name} up to {max(values)}" for name, values in rows.items() if values)
    meaning = "one dot per value, the larger the more updates of that institution had it"
    caption = f"Staleness of the folded updates: {meaning}{selection_text(records)}."
    return Picture(plots.staleness(rows), f"Dots: staleness by institution: {said}.", caption)


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
            courses[short_title(records, institution)] = Course(
                [0.0, *(at for at, _ in steps)], [0.0, *(spent for _, spent in steps)]
            )
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


def sweep_picture(records: Records) -> Picture | None:
    """What epsilon costs; None where the sweep was not made."""
    metric = records.summary["metric"]
    points = [
        (epsilon_text(row["epsilon"]), row["metrics"][metric])
        for row in records.sweep or ()
        if row["metrics"].get(metric) is not None
    ]
    if not points:
        return None
    name = metric_name(metric)
    said = "; ".join(f"epsilon {epsilon}: {value:.3f}" for epsilon, value in points)
    caption = f"Final {name} for each epsilon: runs in one process on the pure core, in virtual time."
    return Picture(plots.epsilon_cost(points, name=name), f"Dots: final {name} by epsilon: {said}.", caption)
