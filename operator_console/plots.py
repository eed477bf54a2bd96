"""The report's plots as inline SVG: text stays text, and every colour is a CSS variable, for light and dark.

The only module that imports matplotlib, which takes a second to start.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import cycle, islice
from typing import Any
from xml.sax.saxutils import escape

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, LINE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0400{number:02x}" for number in range(1, 9))
"""Stand-ins that `inline_svg` replaces by CSS variables; matplotlib wants real colours."""
_SMALL: Any = {"color": MUTED, "fontsize": 9.5, "xytext": (0, 0), "textcoords": "offset points"}
DASHES = ("-", (0, (4, 2)), (0, (1.5, 1.5)))
WIDTH_INCHES = 5.3
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", LINE: "var(--line)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}
_CLEANED = ((r"xlink:href", "href"), (r" font-family: [^;]*;", ""), (r'<g id="[^"]*"', "<g"), (r"(?s)<style.*?</style>", ""))
"""The page has its own font, and ids must not occur in two plots."""
_LOOK: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedqueue",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, slots=True)
class Level:
    """A horizontal line that others are compared with."""

    text: str
    value: float


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened, on the horizontal axis; its number is explained below the plot."""

    at: float
    number: int


@dataclass(frozen=True, slots=True)
class Course:
    """A figure over time or versions. `xs` and `ys` are as long as each other."""

    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True, slots=True)
class Shares:
    """One institution's shares of all updates, weight and examples."""

    institution: str
    updates: float
    weight: float
    data: float | None


@dataclass(frozen=True, slots=True)
class OwnRows:
    """A figure of several models, by name, on one institution's own rows; not every model needs to have one."""

    institution: str
    figures: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A figure over seeds under one condition, and the least that its mean should be, if any."""

    text: str
    figures: Sequence[float]
    wanted: float | None = None


def colours(count: int) -> list[tuple[str, Any]]:
    """A colour and a dash pattern for each of so many series; no pair comes twice before all are used."""
    pairs = ((colour, dash) for dash in DASHES for colour in SERIES)
    return list(islice(cycle(pairs), count))


def css_colours(count: int) -> list[str]:
    """The CSS colours of the same series, for a legend."""
    return [_VARIABLES[colour] for colour, _ in colours(count)]


def metric_course(course: Course, *, name: str, over: str, levels: Sequence[Level], marks: Sequence[Mark] = ()) -> str:
    """The held-out figure of the federated model, with levels to compare it with and numbered marks."""

    def draw(axes: Axes) -> None:
        axes.plot(course.xs, course.ys, color=SERIES[0], linewidth=2, solid_joinstyle="round", zorder=3)
        axes.set(xlabel=over, ylabel=name)
        low, high = _span([*course.ys, *(level.value for level in levels)])
        axes.set_ylim(low, high)
        axes.margins(x=0.02)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for level in levels:
            axes.axhline(level.value, color=MUTED, linewidth=1, linestyle=DASHES[1], zorder=2)
        # At the left the course is still low, and does not run through the words.
        highest = max((level.value for level in levels), default=None)
        for level in levels:
            side = "bottom" if level.value == highest else "top"
            axes.annotate(level.text, (0.03, level.value), xycoords=("axes fraction", "data"), ha="left", va=side, **_SMALL)
        for mark in marks:
            axes.axvline(mark.at, color=SERIES[5], linewidth=1, linestyle=DASHES[2], zorder=1)
            axes.annotate(f"{mark.number}", (mark.at, 1.0), xycoords=("data", "axes fraction"), ha="center", color=SERIES[5])

    return inline_svg(draw, height_inches=3.3)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From a little below the least to a little above the greatest."""
    low, high = min(values), max(values)
    room = 0.1 * (high - low) or 0.05
    return low - room, high + room


def shares(rows: Sequence[Shares]) -> str:
    """Each institution's share of updates and of weight as bars; its share of the data as a line across them."""

    def draw(axes: Axes) -> None:
        places = range(len(rows))
        axes.barh([place - 0.19 for place in places], [row.updates for row in rows], 0.34, color=SERIES[0])
        axes.barh([place + 0.19 for place in places], [row.weight for row in rows], 0.34, color=SERIES[1])
        for place, row in enumerate(rows):
            if row.data is not None:
                axes.plot([row.data, row.data], [place - 0.42, place + 0.42], color=INK, linewidth=2)
        name_rows(axes, [row.institution for row in rows])
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_xlim(left=0)

    return inline_svg(draw, height_inches=0.9 + 0.42 * len(rows))


def own_rows(rows: Sequence[OwnRows], models: Sequence[str], *, name: str) -> str:
    """For each institution a dot of each of a few models, and their span as a line; colours in the order of `css_colours`."""

    def draw(axes: Axes) -> None:
        for place, row in enumerate(rows):
            axes.plot([min(row.figures.values()), max(row.figures.values())], [place, place], color=LINE, linewidth=2, zorder=1)
        # One below the other, so that equal figures do not hide each other.
        for lane, model in enumerate(models):
            found = [(row.figures[model], place) for place, row in enumerate(rows) if model in row.figures]
            heights = [place + 0.17 * (lane - (len(models) - 1) / 2) for _, place in found]
            axes.scatter([figure for figure, _ in found], heights, 44, color=SERIES[lane], linewidths=0, zorder=2)
        name_rows(axes, [row.institution for row in rows])
        axes.set_xlabel(name)
        axes.set_xlim(*_span([figure for row in rows for figure in row.figures.values()]))

    return inline_svg(draw, height_inches=1.1 + 0.36 * len(rows))


def staleness(rows: Mapping[str, Sequence[int]]) -> str:
    """How often each institution's aggregated updates had which staleness: the larger a dot, the more of them."""

    def draw(axes: Axes) -> None:
        for place, values in enumerate(rows.values()):
            counted = sorted(Counter(values).items())
            most = max((count for _, count in counted), default=1)
            sizes = [20 + 130 * count / most for _, count in counted]
            axes.scatter(
                [value for value, _ in counted], [place] * len(counted), sizes, color=SERIES[0], alpha=0.75, linewidths=0
            )
        name_rows(axes, list(rows))
        axes.set_xlabel("staleness in versions")
        axes.set_xlim(left=-0.7)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))

    return inline_svg(draw, height_inches=1.1 + 0.36 * len(rows))


def epsilon_over_time(courses: Mapping[str, Course], *, budget: float | None) -> str:
    """What each institution had spent at each moment; lines in the order of `css_colours`."""

    def draw(axes: Axes) -> None:
        for course, (colour, dash) in zip(courses.values(), colours(len(courses)), strict=True):
            axes.step(course.xs, course.ys, where="post", color=colour, linestyle=dash, linewidth=1.8)
        if budget is not None:
            axes.axhline(budget, color=MUTED, linewidth=1, linestyle=DASHES[1])
            axes.annotate(f"budget {budget:g}", (0.0, budget), xycoords=("axes fraction", "data"), va="bottom", **_SMALL)
        axes.set(xlabel="seconds", ylabel="epsilon spent")
        axes.set_ylim(bottom=0)
        axes.margins(x=0.02)

    return inline_svg(draw, height_inches=3.0)


def epsilon_by_training(spent: Sequence[float], levels: Sequence[Level]) -> str:
    """What was spent after each training, the first at 1, against what may be spent at most."""

    def draw(axes: Axes) -> None:
        axes.step([0, *range(1, len(spent) + 1)], [0.0, *spent], where="post", color=SERIES[0], linewidth=1.8)
        axes.scatter(range(1, len(spent) + 1), spent, 14, color=SERIES[0], zorder=3, linewidths=0)
        for level in levels:
            axes.axhline(level.value, color=MUTED, linewidth=1, linestyle=DASHES[1])
            axes.annotate(level.text, (0.0, level.value), xycoords=("axes fraction", "data"), va="bottom", **_SMALL)
        axes.set(xlabel="local trainings that were charged", ylabel="epsilon in all")
        axes.set_ylim(0, 1.15 * max([*spent, *(level.value for level in levels)]))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)

    return inline_svg(draw, height_inches=3.0)


def epsilon_cost(points: Iterable[tuple[str, float]], *, name: str) -> str:
    """The final figure at each epsilon, the most private last."""
    rows = list(points)

    def draw(axes: Axes) -> None:
        places = list(range(len(rows)))
        values = [value for _, value in rows]
        axes.plot(places, values, color=LINE, linewidth=1.5, zorder=2)
        axes.scatter(places, values, 60, color=SERIES[0], zorder=3, linewidths=0)
        for place, value in zip(places, values, strict=True):
            axes.annotate(f"{value:.3f}", (place, value), xytext=(0, 9), textcoords="offset points", ha="center")
        axes.set_xticks(places, [text for text, _ in rows])
        axes.set(xlabel="epsilon", ylabel=name)
        low, high = _span(values)
        room = max(high - low, 0.02)
        axes.set(ylim=(low - 0.2 * room, high + 0.35 * room), xlim=(-0.5, len(rows) - 0.5))

    return inline_svg(draw, height_inches=2.7)


def epsilon_seeds(columns: Sequence[Repeated], *, name: str) -> str:
    """The figure of every seed as a dot, their mean as a line with its value, and what is wanted of it as a dashed line."""

    def draw(axes: Axes) -> None:
        places = range(len(columns))
        means = [sum(column.figures) / len(column.figures) for column in columns]
        for place, column, mean in zip(places, columns, means, strict=True):
            spread = [place + 0.3 * (number / max(1, len(column.figures) - 1) - 0.5) for number in range(len(column.figures))]
            axes.scatter(spread, column.figures, 22, color=SERIES[0], alpha=0.4, linewidths=0, zorder=2)
            axes.plot([place - 0.22, place + 0.22], [mean, mean], color=SERIES[0], linewidth=2.4, zorder=3)
            axes.annotate(
                f"{mean:.3f}", (place + 0.25, mean), xytext=(0, 0), textcoords="offset points", ha="left", va="center", color=INK
            )
            if column.wanted is not None:
                axes.plot([place - 0.22, place + 0.22], [column.wanted] * 2, color=SERIES[5], linewidth=1.6, linestyle=DASHES[1])
        axes.set_xticks(places, [column.text for column in columns])
        axes.set(xlabel="epsilon", ylabel=name, xlim=(-0.4, len(columns) - 0.4))
        wanted = [column.wanted for column in columns if column.wanted is not None]
        axes.set_ylim(*_span([figure for column in columns for figure in column.figures] + wanted))

    return inline_svg(draw, height_inches=3.1)


def standalone(svg: str, *, title: str, style: str) -> str:
    """A plot as a file of its own: `style` is CSS that sets the variables, `title` says in words what is seen."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    width, height = box.groups() if box else ("100%", "100%")
    opening, rest = svg.replace(' aria-hidden="true" focusable="false"', "").split(">", 1)
    names = 'xmlns="http://www.w3.org/2000/svg" role="img" aria-labelledby="title"'
    opening = opening.replace("<svg", f'<svg {names} width="{width}" height="{height}"')
    page = '<rect class="page" width="100%" height="100%"/>'
    return f'{opening}>\n<title id="title">{escape(title)}</title>\n<style>\n{style}</style>\n{page}{rest}\n'


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A row for each name, the first one on top."""
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.grid(visible=False, axis="y")


def inline_svg(draw: Callable[[Axes], None], *, height_inches: float) -> str:
    """An <svg> element without a namespace, a fixed size or anything outside itself."""
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        draw(figure.add_subplot())
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata=_NO_METADATA)
    return _inline(text.getvalue())


def _inline(document: str) -> str:
    svg = document[document.index("<svg") :].strip()
    opening, rest = svg.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', opening)
    for pattern, replacement in _CLEANED:
        rest = re.sub(pattern, replacement, rest)
    for stand_in, variable in _VARIABLES.items():
        rest = rest.replace(stand_in, variable)
    return f'<svg {box.group() if box else ""} aria-hidden="true" focusable="false">{rest}'
