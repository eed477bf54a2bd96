"""`python -m campaigns.privacy_audit_picture RESULT.json OUT.svg`: an audit's result as a picture, and as a table for a page."""

import io
import json
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shared.outermost import run_program

_INK, _MUTED, _LINE, _ACCOUNTED, _SHOWN = "#24292f", "#57606a", "#d0d7de", "#b35900", "#0969da"
_LOOK: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fedqueue",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _LINE,
    "xtick.color": _INK,
    "ytick.color": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def draw(
    result: Annotated[Path, typer.Argument(help="What campaigns.privacy_audit wrote with --json.")],
    out: Annotated[Path, typer.Argument(help="The SVG to write.")],
) -> None:
    """Draws an audit's result, and prints its table."""
    document = json.loads(result.read_text())
    out.write_text(picture(document))
    typer.echo(markdown(document), nl=False)


def picture(document: Any) -> str:
    """An SVG of the findings in a result's JSON; the same result gives the same bytes."""
    findings = document["findings"]
    with mpl.rc_context(_LOOK):
        figure = Figure(figsize=(6.6, 3.8), layout="constrained")
        axes = figure.add_subplot()
        for place, finding in enumerate(findings):
            _draw_one(axes, place, finding)
        axes.set_xticks(range(len(findings)), [_name(finding) for finding in findings])
        axes.set_xlim(-0.6, len(findings) - 0.4)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(f"epsilon, delta {document['target_delta']:g}")
        axes.grid(axis="y", color=_LINE, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=9)
        text = io.StringIO()
        figure.savefig(text, format="svg", facecolor="white", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


def _draw_one(axes: Axes, place: int, finding: Any) -> None:
    """The first one also names what is drawn; matplotlib leaves names out of a legend that begin with an underscore."""

    def name(words: str) -> str:
        return words if place == 0 else "_" + words

    if finding["accounted_epsilon"] is not None:
        span = (place - 0.3, place + 0.3)
        axes.hlines(finding["accounted_epsilon"], *span, color=_ACCOUNTED, linewidth=3, label=name("accounted in the ledger"))
    alone = list(finding["epsilon_at_least_by_seed"].values())
    spread = [place - 0.15 + 0.06 * (number % 3) for number in range(len(alone))]
    axes.plot(spread, alone, "o", color=_MUTED, markersize=3.5, label=name("shown by one run"))
    axes.bar(place + 0.14, finding["epsilon_at_least"], 0.16, color=_SHOWN, label=name("shown by all runs together (95 %)"))
    could = finding["epsilon_could_show"]
    axes.hlines(could, place + 0.03, place + 0.25, color=_MUTED, linestyle=":", label=name("the most that could have been shown"))
    if finding["accounted_epsilon"] is not None and finding["gaussian_estimate"] is not None:
        axes.plot(
            place - 0.03,
            finding["gaussian_estimate"],
            "D",
            color=_INK,
            markersize=5,
            label=name("estimate, if noise is Gaussian"),
        )


def _name(finding: Any) -> str:
    words = "no noise" if finding["plan_epsilon"] is None else f"epsilon {finding['plan_epsilon']:g}"
    return f"{words}\nAUC {finding['auc']:.3f}"


def markdown(document: Any) -> str:
    """The findings as a table of Markdown."""
    titles = (
        "accounted",
        "shown at least",
        "by one run",
        "most it could show",
        "estimate",
        "AUC",
        "TPR",
        "correct guesses",
        "sigma",
    )
    rows = [titles, ("---",) * len(titles), *(_cells(finding) for finding in document["findings"])]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _cells(finding: Any) -> tuple[str, ...]:
    alone = finding["epsilon_at_least_by_seed"].values()
    private = finding["accounted_epsilon"] is not None
    return (
        f"{finding['accounted_epsilon']:.3f}" if private else "no noise",
        f"{finding['epsilon_at_least']:.2f}",
        f"{min(alone):.2f} to {max(alone):.2f}",
        f"{finding['epsilon_could_show']:.2f}",
        f"{finding['gaussian_estimate']:.2f}, at least {finding['gaussian_estimate_at_least']:.2f}" if private else "-",
        f"{finding['auc']:.3f}",
        f"{finding['tpr_at_1_percent_fpr']:.3f}",
        f"{finding['correct']} of {finding['guesses']}",
        f"{finding['noise_multiplier']:.3f}" if private else "-",
    )


if __name__ == "__main__":
    run_program(app)
