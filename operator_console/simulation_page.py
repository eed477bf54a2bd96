"""The page and the pictures of a comparison of simulated runs, in one folder; nothing on the page is fetched from anywhere."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from operator_console.history import write_whole
from operator_console.live_view import metric_name
from operator_console.plots import standalone
from operator_console.simulation_plots import pictures
from operator_console.simulation_records import Comparison, sheets, target_point, write_data

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "simulation.html"
_PICTURE_STYLE = ".page { fill: var(--card); }\ntext { font-family: system-ui, sans-serif; }\n"


def write_results(comparison: Comparison, folder: Path) -> Path:
    """All files of a comparison; returns the page. Files of the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(comparison, folder)
    drawn = pictures(comparison)
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    style = css[: css.index("* {")] + _PICTURE_STYLE
    for name, picture in drawn.items():
        write_whole(folder / f"{name}.svg", standalone(picture.svg, title=picture.alternative, style=style))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("simulation.html.jinja").render(
        title=comparison.title,
        lead=lead(comparison),
        unfinished=comparison.unfinished,
        seed=comparison.seed,
        courses=[picture for name, picture in drawn.items() if name != "slow-half"],
        slow=drawn.get("slow-half"),
        sheets=sheets(comparison),
        endings=[(tried.result.name, tried.result.ended) for tried in comparison.tried],
        notes=comparison.notes,
    )
    write_whole(folder / PAGE, page)
    return folder / PAGE


def lead(comparison: Comparison) -> str:
    """The finding in one sentence: who reached the target first, or who ended best."""
    name, target = metric_name(comparison.metric), comparison.target
    reached = [(point, tried) for tried in comparison.tried if (point := target_point(comparison, tried.result))]
    if target and reached:
        soonest = min(point.seconds for point, _ in reached)
        first = [tried.result.name for point, tried in reached if point.seconds == soonest]
        verb = "reaches" if len(first) == 1 else "reach"
        return f"{' and '.join(first)} {verb} {name} {target.value:g} first, after {soonest:,.1f} virtual seconds."
    if target:
        return f"No plan reaches {name} {target.value:g}."
    best = comparison.best
    figure = best.result.final.metrics.get(comparison.metric) if best else None
    return "No plan has a figure." if best is None or figure is None else f"{best.result.name} ends best, at {name} {figure:.4f}."
