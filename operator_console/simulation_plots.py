"""Simulated runs as pictures: the figure by virtual time, updates and bytes, what it came to, and the slow half's weight."""

from collections.abc import Callable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from operator_console import plots
from operator_console.live_view import metric_name
from operator_console.plots import INK, MUTED, SERIES
from operator_console.report_records import Picture
from operator_console.simulation_records import Comparison, all_bytes, slow_half
from simulator.results import Point

AGAINST: Mapping[str, tuple[str, Callable[[Point], float]]] = {
    "seconds": ("virtual seconds", lambda point: point.seconds),
    "updates": ("updates that arrived", lambda point: point.updates),
    "bytes": ("megabytes of updates and models", lambda point: all_bytes(point) / 1e6),
}
"""Label and value of the horizontal axes."""
LEGEND_COLUMNS = 3


def pictures(comparison: Comparison) -> dict[str, Picture]:
    """Each picture by the name of its file."""
    found = {f"figure-by-{key}": _course(comparison, key) for key in AGAINST}
    found["final-figure"] = _finals(comparison)
    if any(slow_half(tried.result.contributions) for tried in comparison.tried):
        found["slow-half"] = _slow(comparison)
    return found


def _course(comparison: Comparison, key: str) -> Picture:
    label, place = AGAINST[key]
    metric, target = comparison.metric, comparison.target
    name = metric_name(metric)

    def draw(axes: Axes) -> None:
        for tried, (colour, dash) in zip(comparison.tried, plots.colours(len(comparison.tried)), strict=True):
            measured = [point for point in tried.result.points if point.metrics.get(metric) is not None]
            figures = [float(point.metrics[metric] or 0.0) for point in measured]
            style: Any = {"color": colour, "linestyle": dash, "linewidth": 1.8, "solid_joinstyle": "round"}
            axes.plot([place(point) for point in measured], figures, label=tried.result.name, **style)
        if target is not None:
            axes.axhline(target.value, color=MUTED, linewidth=1, linestyle=plots.DASHES[1], zorder=1)
        axes.set(xlabel=label, ylabel=name)
        axes.margins(x=0.02)
        _legend(axes, len(comparison.tried))

    height = 3.3 + _legend_inches(len(comparison.tried))
    ends = "; ".join(f"{each.result.name} ends at {_text(each.result.final.metrics.get(metric))}" for each in comparison.tried)
    dashed = f" The dashed line is the target, {target.value:g}." if target else ""
    return Picture(
        plots.inline_svg(draw, height_inches=height),
        f"Lines: {name} on the held-out rows against {label}; {ends}.",
        f"{name} on the held-out rows, by {label}.{dashed}",
    )


def _finals(comparison: Comparison) -> Picture:
    metric = comparison.metric
    name, tried = metric_name(metric), comparison.tried
    finals = [each.result.final.metrics.get(metric) for each in tried]
    bests = [each.result.best.metrics.get(metric) for each in tried]

    def draw(axes: Axes) -> None:
        for place, (final, best) in enumerate(zip(finals, bests, strict=True)):
            if best is not None:
                axes.scatter([best], [place], 46, facecolors="none", edgecolors=SERIES[0], linewidths=1.4, zorder=2)
            if final is not None:
                axes.scatter([final], [place], 60, color=SERIES[0], linewidths=0, zorder=3)
                axes.annotate(
                    f"{final:.3f}", (final, place), xytext=(0, 8), textcoords="offset points", ha="center", fontsize=9.5
                )
        plots.name_rows(axes, [each.result.name for each in tried])
        axes.set_xlabel(name)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.margins(x=0.12)

    said = "; ".join(f"{each.result.name} {_text(final)}" for each, final in zip(tried, finals, strict=True))
    return Picture(
        plots.inline_svg(draw, height_inches=1.1 + 0.4 * len(tried)),
        f"Dots: the final {name} of each plan: {said}.",
        f"{name} of the last version (dot) and of the best one (ring).",
    )


def _slow(comparison: Comparison) -> Picture:
    halves = [(each.result.name, slow_half(each.result.contributions)) for each in comparison.tried]

    def draw(axes: Axes) -> None:
        for place, (_, half) in enumerate(halves):
            if half is not None:
                axes.barh([place], [half.weight_share], 0.5, color=SERIES[1])
                axes.plot([half.data_share] * 2, [place - 0.38, place + 0.38], color=INK, linewidth=2)
        plots.name_rows(axes, [name for name, _ in halves])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlim(left=0)
        axes.set_xlabel("share of the weight")

    said = "; ".join(f"{name} {half.weight_share:.0%} of {half.data_share:.0%}" for name, half in halves if half)
    return Picture(
        plots.inline_svg(draw, height_inches=1.1 + 0.4 * len(halves)),
        f"Bars: the slow half's share of the weight, a line at its share of the data: {said}.",
        "What the institutions slower than the median count (bar) against their part of the data (line).",
    )


def _legend(axes: Axes, count: int) -> None:
    figure: Any = axes.get_figure()
    columns = min(count, LEGEND_COLUMNS)
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=9.5, labelcolor=INK, handlelength=2.4)


def _legend_inches(count: int) -> float:
    return 0.25 * -(-count // LEGEND_COLUMNS)


def _text(figure: float | None) -> str:
    return "no figure" if figure is None else f"{figure:.3f}"
