"""python -m tests.picture_dashboards: docs/pictures/dashboard-*.svg, what a real Prometheus knows, drawn by matplotlib.

Four hospitals learn for some minutes over a private RabbitMQ with TLS, one stands still for a part of them, and the alerts' hour
is a minute here. Panels, places, expressions and thresholds are those of deploy/monitoring/grafana/dashboards.
"""

import json
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from broker_config.node import SYSTEM
from tests.tls import TlsNode
from tests.watched_federation import Prometheus, eventually, unanswered, watching
from tests.watching import DASHBOARDS, PROJECT

PICTURES = PROJECT / "docs" / "pictures"
HOSPITALS = ["cleveland-clinic", "budapest", "zurich-basel", "va-long-beach"]
STOPPED = "budapest"
MINUTE_FOR_HOUR = {r"> 3600$": "> 60", r"for: \w+": "for: 1s", r"\[15m\]": "[30s]", r"offset 15m": "offset 30s"}
GOING_SECONDS, STANDING_STILL_SECONDS = 90.0, 90.0
COLOURS = {"green": "#1b7f5c", "orange": "#b5651d", "red": "#c0392b"}
ROW_INCHES, COLUMN_INCHES = 0.36, 0.62

Series = list[tuple[str, list[float], list[float]]]
"""Name, minutes, and a value at each."""


def named(legend: str, labels: dict[str, str]) -> str:
    """A legend with its labels filled in."""
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


def answers(prometheus: Prometheus, target: dict, span: dict[str, float]) -> Series:
    """What a target draws."""
    if target.get("instant"):
        found = prometheus.get("query", query=target["expr"])["result"]
        drawn = [(named(target["legendFormat"], each["metric"]), [0.0], [float(each["value"][1])]) for each in found]
        return apart(drawn) if target.get("format") == "heatmap" else drawn
    found = prometheus.get("query_range", query=target["expr"], **{name: str(value) for name, value in span.items()})["result"]
    return [
        (
            named(target["legendFormat"], each["metric"]),
            [(at - span["start"]) / 60 for at, _ in each["values"]],
            [float(value) for _, value in each["values"]],
        )
        for each in found
    ]


def apart(buckets: Series) -> Series:
    """A histogram's buckets in their order, each without those before it, as Grafana takes them apart."""
    ordered = sorted(buckets, key=lambda bucket: float(bucket[0]))
    below = [0.0, *(values[0] for _, _, values in ordered)]
    return [(name, times, [values[0] - before]) for (name, times, values), before in zip(ordered, below, strict=False)]


def told(value: float, panel: dict) -> str:
    """A value as a person reads it."""
    defaults = panel["fieldConfig"]["defaults"]
    for mapping in defaults.get("mappings", []):
        if f"{value:g}" in mapping["options"]:
            return str(mapping["options"][f"{value:g}"]["text"])
    units: dict[str, Callable[[float], str]] = {
        "s": lambda seconds: f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s",
        "percentunit": lambda part: f"{100 * part:.1f} %",
        "d": lambda days: f"{days:.0f} days",
        "suffix: x": lambda times: f"{times:.1f} x",
    }
    return units.get(defaults.get("unit", ""), lambda number: f"{number:.{defaults.get('decimals', 3)}f}")(value)


def colour(value: float, panel: dict) -> str:
    """By the panel's thresholds."""
    steps = panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return COLOURS[reached[-1]] if reached else "#33557a"


def draw_stat(axes: Axes, panel: dict, series: Series) -> None:
    """One large word."""
    axes.axis("off")
    name, _, values = series[0]
    text = name if panel["options"]["textMode"] == "name" else told(values[-1], panel)
    axes.text(0.5, 0.45, text, ha="center", va="center", fontsize=17, color=colour(values[-1], panel), transform=axes.transAxes)


def draw_bars(axes: Axes, panel: dict, series: Series) -> None:
    """One bar for each series, with its value beside it."""
    values = [value[-1] for _, _, value in series]
    axes.barh(range(len(series)), values, color=[colour(value, panel) for value in values], height=0.6)
    axes.set_yticks(range(len(series)), [name for name, _, _ in series], fontsize=7)
    axes.set_xlim(0, max([*values, 1e-9]) * 1.25)
    axes.set_xticks([])
    axes.invert_yaxis()
    for row, value in enumerate(values):
        axes.text(value, row, f" {told(value, panel)}", va="center", fontsize=7)


def draw_lines(axes: Axes, panel: dict, series: Series) -> None:
    """Curves over the minutes."""
    for name, minutes, values in series:
        axes.plot(minutes, values, label=name, linewidth=1.4)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    if panel["fieldConfig"]["defaults"].get("min") == 0:
        axes.set_ylim(0, max([*(value for _, _, values in series for value in values), 1e-3]) * 1.1)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("minutes", fontsize=7)


def draw_states(axes: Axes, panel: dict, series: Series) -> None:
    """A strip for each series, coloured by its state."""
    for row, (_, minutes, values) in enumerate(series):
        colours = [colour(value, panel) for value in values]
        axes.scatter(minutes, [row] * len(minutes), c=colours, marker="s", s=28)
    axes.set_yticks(range(len(series)), [name for name, _, _ in series], fontsize=7)
    axes.set_ylim(-0.6, len(series) - 0.4)
    axes.tick_params(labelsize=7)
    axes.set_xlabel("minutes", fontsize=7)


DRAWN_BY = {"stat": draw_stat, "bargauge": draw_bars, "timeseries": draw_lines, "state-timeline": draw_states}


def draw_table(axes: Axes, prometheus: Prometheus) -> None:
    """The alerts, each with what it says."""
    axes.axis("off")
    for row, alert in enumerate(prometheus.get("alerts")["alerts"]):
        kind = f"{alert['labels']['severity']}, {alert['state']}"
        text = f"{alert['labels']['alertname']} ({kind})\n   {alert['annotations']['summary']}"
        axes.text(0, 0.95 - 0.22 * row, text, fontsize=7, va="top", transform=axes.transAxes)


# Room for names at the left, and for a legend at the right, in parts of the whole width.
MARGINS = {"bargauge": (0.1, 0.02), "state-timeline": (0.09, 0.02), "timeseries": (0.035, 0.09)}


def draw(prometheus: Prometheus, dashboard: dict, span: dict[str, float], instance: str) -> None:
    """Writes the picture of one dashboard."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    figure = plt.figure(figsize=(24 * COLUMN_INCHES, rows * ROW_INCHES))
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        before, after = MARGINS.get(panel["type"], (0.02, 0.01))
        left, width, height = place["x"] / 24 + before, place["w"] / 24 - before - after, (place["h"] - 2.2) / rows
        axes = figure.add_axes((left, 1 - (place["y"] + place["h"] - 1.1) / rows, width, height))
        axes.set_title(panel["title"], fontsize=8.5, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        if panel["type"] == "table":
            draw_table(axes, prometheus)
            continue
        targets = [target | {"expr": target["expr"].replace("$instance", instance)} for target in panel["targets"]]
        DRAWN_BY[panel["type"]](axes, panel, [each for target in targets for each in answers(prometheus, target, span)])
    figure.savefig(PICTURES / f"dashboard-{dashboard['uid'].removeprefix('fedqueue-')}.svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    """Writes the pictures."""
    with tempfile.TemporaryDirectory(prefix="fedqueue-test-") as scratch:
        node = TlsNode.start(Path(scratch) / "node", SYSTEM)
        try:
            with watching(node, Path(scratch) / "watched", HOSPITALS, MINUTE_FOR_HOUR) as watched:
                instance = watched.addresses[HOSPITALS[0]]
                assert eventually(lambda: not unanswered(watched, instance)), unanswered(watched, instance)
                begin = time.time()
                time.sleep(GOING_SECONDS)
                watched.clients[STOPPED].send_signal(signal.SIGSTOP)
                time.sleep(STANDING_STILL_SECONDS)
                span = {"start": begin, "end": time.time(), "step": 2.0}
                for file in DASHBOARDS:
                    draw(watched.prometheus, json.loads(file.read_text()), span, instance)
        finally:
            node.cluster.stop(remove=True)


if __name__ == "__main__":
    main()
