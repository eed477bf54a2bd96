"""What `fedqueue-client personalise` says: three models on the same test rows, which is best, and what may be done with them."""

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from client_worker.personalise import Personalised, Rows, Source, best

NAMES = {"global": "the global model", "personalised": "the personalised model", "alone": "a model of these rows alone"}
STAYS_HERE = "It was trained without noise, and nothing of it was published: neither the model nor these figures may leave."


def told(rows: Rows, source: Source, found: Personalised) -> RenderableType:
    """A table of figures by model, and sentences."""
    names = [name for name in found.figures["global"] if name != "threshold"]
    winner = best(rows.spec, found.figures)
    title = f"on {len(rows.test)} test rows of this institution; the global model is version {source.version}"
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="dim")
    table.add_column("model", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for model, figures in found.figures.items():
        cells = [_text(figures[name]) for name in names]
        table.add_row(NAMES[model].removeprefix("the ").removeprefix("a "), *cells, style="bold" if model == winner else "")
    said = [_verdict(rows, found, winner), _distance(found), STAYS_HERE]
    return Group(table, *(Padding(Text(sentence), (0, 1)) for sentence in said))


def _verdict(rows: Rows, found: Personalised, winner: str) -> str:
    metric = rows.spec.first_metric
    same = () if found.model.penalty is not None else ("personalised",)  # as the global model, which stands for both
    others = [f"{_text(each[metric])} of {NAMES[name]}" for name, each in found.figures.items() if name not in (winner, *same)]
    return f"Best by {metric}: {NAMES[winner]}, with {_text(found.figures[winner][metric])} against {' and '.join(others)}."


def _distance(found: Personalised) -> str:
    if found.model.penalty is None:
        return "On training rows that were held back nothing did better than the global model itself: it was left as it is."
    return (
        f"How far it went from the global model (a penalty of {found.model.penalty:g} on the squared distance) was chosen by "
        "training rows that were held back, not by the test rows."
    )


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
