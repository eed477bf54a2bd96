"""A run on the terminal: a view that stays in place, or plain lines where there is no terminal."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from operator_console.view_state import Row, State, ViewState

PLAIN_LINE_SECONDS = 5.0
WIDE_COLUMNS = 110
SHOWN_EVENTS = 6
STYLES: dict[State, tuple[str, str]] = {
    "waiting": ("○", "dim"),
    "training": ("●", "green"),
    "slow": ("◐", "yellow"),
    "silent": ("◌", "bold yellow"),
    "killed": ("✖", "bold red"),
    "restarted": ("↻", "cyan"),
    "paused": ("‖", "yellow"),
    "finished": ("✓", "blue"),
    "budget spent": ("■", "magenta"),
    "plan refused": ("■", "red"),
    "quarantined": ("✖", "red"),
    "removed": ("✖", "dim"),
}
MOST_TELLING: tuple[State, ...] = (
    "killed",
    "silent",
    "quarantined",
    "plan refused",
    "restarted",
    "slow",
    "waiting",
    "training",
    "paused",
    "budget spent",
    "finished",
    "removed",
)
LINES_BESIDE_ROWS = 6 + SHOWN_EVENTS + 4
METRIC_NAMES = {"auc": "AUC", "log_loss": "log loss", "rmse": "RMSE", "mae": "MAE", "r2": "R²", "f1": "F1"}
_SPARKS = "▁▂▃▄▅▆▇█"


def metric_name(metric: str) -> str:
    """A figure's name for people."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def span_text(seconds: float) -> str:
    """A time for people: its two largest units."""
    whole = max(0, round(seconds))
    for name, size, below, unit in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            rest = whole % size // unit
            return f"{whole // size} {name}" + (f" {rest} {below}" if rest else "")
    return f"{whole // 60} min" if whole >= 300 else f"{whole} s"


def render(view: ViewState) -> RenderableType:
    """The view, fitted to the width and the characters of whatever console prints it."""
    return _Screen(view)


def watch(tick: Callable[[], ViewState | None], *, console: Console, plain_every_seconds: float = PLAIN_LINE_SECONDS) -> None:
    """Shows what `tick` returns until it returns None; `tick` waits a moment itself, and does the caller's work.

    The terminal is left as it was, with the last view on it, also after Ctrl-C and other exceptions out of `tick`.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        _watch_in_place(tick, console)
    else:
        _watch_in_lines(tick, console, plain_every_seconds)


def _watch_in_place(tick: Callable[[], ViewState | None], console: Console) -> None:
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while (view := tick()) is not None:
            live.update(render(view), refresh=True)


def _watch_in_lines(tick: Callable[[], ViewState | None], console: Console, every_seconds: float) -> None:
    told, last, printed_at = 0, None, -math.inf
    while (view := tick()) is not None:
        for event in (*view.events[told:], *(f"! {each}" for each in view.urgent if last is None or each not in last.urgent)):
            _say(console, event)
        told, last = len(view.events), view
        if time.monotonic() - printed_at >= every_seconds:
            printed_at = time.monotonic()
            _say(console, plain_line(view))
    if last is not None:
        _say(console, plain_line(last))


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
    sys.stdout.flush()


def plain_line(view: ViewState) -> str:
    """The view in one line, for logs."""
    of_target = f" of {view.target}" if view.target else ""
    figure = f", {metric_name(view.metric)} {view.metric_values[-1]:.3f}" if view.metric_values else ""
    rows = ", ".join(f"{row.institution} {row.updates} ({row.state})" for row in view.rows)
    return f"{view.elapsed_seconds:.0f} s  version {view.version}, {view.updates}{of_target} updates{figure}: {rows}"


@dataclass(frozen=True, slots=True)
class _Screen:
    view: ViewState

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view, width = self.view, options.max_width
        pen = _Pen(ascii_only=options.ascii_only, cells=14 if width >= WIDE_COLUMNS else 7)
        urgent = [Text(f" ! {sentence}", style="bold yellow") for sentence in view.urgent]
        yield from urgent
        yield _title(view)
        yield _progress(view, pen, width)
        beside = LINES_BESIDE_ROWS + len(view.notes) + sum(len(each.wrap(console, width)) for each in urgent)
        rows = _fitting(view.rows, console.height - beside if console.is_terminal else len(view.rows))
        yield _table(view, rows, pen, width)
        if len(rows) < len(view.rows):
            yield Padding(Text(f"and {len(view.rows) - len(rows)} more, which need less attention", style="dim"), (0, 1))
        yield from (Padding(line, (0, 1)) for line in _below(view, rows))


@dataclass(frozen=True, slots=True)
class _Pen:
    """Draws with the characters that the terminal has."""

    ascii_only: bool
    cells: int

    @property
    def tick(self) -> str:
        """Marks a second figure on a bar."""
        return "|" if self.ascii_only else "┃"

    def bar(self, share: float, *, mark: float | None = None, style: str = "cyan") -> Text:
        """`share` of the cells filled; `mark` is where a second figure stands."""
        full, empty = ("=", ".") if self.ascii_only else ("━", "╌")
        filled = round(min(1.0, max(0.0, share)) * self.cells)
        text = Text()
        for cell in range(self.cells):
            if mark is not None and cell == min(self.cells - 1, int(mark * self.cells)):
                text.append(self.tick, style="bold")
            else:
                text.append(full if cell < filled else empty, style=style if cell < filled else "dim")
        return text

    def sparkline(self, values: Sequence[float], width: int) -> str:
        """The values from their least to their greatest, squeezed into `width` characters."""
        if self.ascii_only or len(values) < 2 or width < 2:
            return ""
        count = min(width, len(values))
        picked = [values[(number + 1) * len(values) // count - 1] for number in range(count)]
        low, high = min(picked), max(picked)
        step = (high - low) / (len(_SPARKS) - 1) or 1.0
        return "".join(_SPARKS[round((value - low) / step)] for value in picked)

    def state(self, state: State) -> Text:
        """The word, with its sign where there are signs."""
        sign, style = STYLES[state]
        return Text(state if self.ascii_only else f"{sign} {state}", style=style)


def _fitting(rows: Sequence[Row], room: int) -> Sequence[Row]:
    """As many rows as there is room for, in their order; those in the most telling states where there are too many."""
    if len(rows) <= room:
        return rows
    told = sorted(range(len(rows)), key=lambda number: MOST_TELLING.index(rows[number].state))
    return [rows[number] for number in sorted(told[: max(1, room)])]


def _below(view: ViewState, rows: Sequence[Row]) -> Iterator[Text]:
    for row in rows:
        if row.state == "plan refused":
            yield Text(f"{row.institution} {row.standing}", style="red")
    for event in view.events[-SHOWN_EVENTS:]:
        yield Text(event, style="default")
    if view.phase != "running":
        yield Text(f"{view.phase}: {view.phase_reason}" if view.phase_reason else view.phase, style="bold")
    if view.management_url:
        yield Text.assemble(("queues: ", "dim"), (view.management_url, "underline"))
    if view.login:
        yield Text(f"read-only login: {view.login}", style="dim")
    for note in view.notes:
        yield Text(note, style="dim")


def _title(view: ViewState) -> RenderableType:
    grid = Table.grid(expand=True, padding=(0, 1))
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_column(justify="right", no_wrap=True)
    grid.add_row(Text(f" {view.title}", style="bold"), Text(f"{span_text(view.elapsed_seconds)} ", style="dim"))
    return grid


def _progress(view: ViewState, pen: _Pen, width: int) -> RenderableType:
    line = Text(" version ").append(str(view.version), style="bold")
    line.append("   updates ").append(str(view.updates), style="bold")
    if view.target:
        line.append(f" of {view.target} ").append_text(pen.bar(view.updates / view.target))
    if view.metric_values:
        line.append(f"   held-out {metric_name(view.metric)} ").append(f"{view.metric_values[-1]:.3f}", style="bold")
        line.append(" ").append(pen.sparkline(view.metric_values, min(40, width - line.cell_len - 2)), style="green")
    line.no_wrap, line.overflow = True, "ellipsis"
    return line


def _table(view: ViewState, rows: Sequence[Row], pen: _Pen, width: int) -> RenderableType:
    padding = (0, 1) if width >= WIDE_COLUMNS else (0, 0)
    table = Table(box=box.ASCII2 if pen.ascii_only else box.SIMPLE_HEAD, expand=True, padding=padding)
    table.add_column("institution", ratio=1, no_wrap=True, overflow="ellipsis", min_width=10)
    table.add_column("state", no_wrap=True, min_width=14)
    table.add_column("updates", justify="right", no_wrap=True)
    table.add_column("stale", justify="right", no_wrap=True)
    table.add_column(f"weight {pen.tick} data", no_wrap=True)
    table.add_column("epsilon" if view.epsilon_budget is None else f"epsilon of {view.epsilon_budget:g}", no_wrap=True)
    top = max([0.0, *(share for row in view.rows for share in (row.weight_share, row.data_share) if share is not None)])
    for row in rows:
        table.add_row(
            Text(row.institution),
            pen.state(row.state),
            str(row.updates),
            "" if row.last_staleness is None else str(row.last_staleness),
            _weight(row, pen, top),
            _epsilon(row, pen, view.epsilon_budget),
        )
    return table


def _weight(row: Row, pen: _Pen, top: float) -> Text:
    """A bar of the weight received; its mark is the share of the data."""
    if row.weight_share is None or not top:
        return Text("")
    mark = None if row.data_share is None else row.data_share / top
    return pen.bar(row.weight_share / top, mark=mark).append(f" {row.weight_share:4.0%}")


def _epsilon(row: Row, pen: _Pen, budget: float | None) -> Text:
    if budget is None:
        return Text("no noise", style="dim")
    if row.epsilon_spent is None:
        return Text("")
    used = row.epsilon_spent / budget
    return pen.bar(used, style="magenta").append(f" {row.epsilon_spent:.2f}")
