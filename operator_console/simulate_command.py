"""`fedqueue simulate`: rules compared in virtual time, before anyone deploys, or on the arrival times of a real run."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer
from rich.console import Console

from operator_console.command_options import positive
from shared.errors import SettingsError
from shared.plan import RuleName

if TYPE_CHECKING:  # torch and matplotlib take seconds, which `fedqueue --help` should not
    from operator_console.simulation_records import Comparison

OUT = Path("simulations")
INTERRUPTED = 130

Out = Annotated[Path | None, typer.Option(metavar="FOLDER", help="For page, plots and data; without it, one below simulations/.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the figures as JSON instead of a table.")]


def simulate(  # noqa: PLR0913 - typer takes one parameter for each option
    scenario: Annotated[Path | None, typer.Argument(metavar="SCENARIO.toml", help="See docs/simulator.md.")] = None,
    *,
    from_lineage: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Instead of a scenario: a demo's run folder, or a federation's.")
    ] = None,
    rule: Annotated[list[str] | None, typer.Option(help="With --from-lineage: a rule to try; repeatable. All, without.")] = None,
    buffer_size: Annotated[int | None, typer.Option(min=1, help="With --from-lineage: K; without it, the run's.")] = None,
    server_learning_rate: Annotated[
        float | None, typer.Option(callback=positive, help="With --from-lineage; without it, the run's, or a rule's usual one.")
    ] = None,
    staleness_exponent: Annotated[float | None, typer.Option(min=0, help="With --from-lineage; without it, the run's.")] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Compare aggregation rules in virtual time: a table, plots and figures. The same command twice gives the same files."""
    if (scenario is None) == (from_lineage is None):
        raise typer.BadParameter("give a scenario file, or --from-lineage with a run's folder")
    if from_lineage is not None:
        from operator_console.what_if_command import Choice, what_if

        what_if(from_lineage, Choice(rules(rule), buffer_size, server_learning_rate, staleness_exponent), out, as_json=as_json)
        return
    if rule or buffer_size or server_learning_rate or staleness_exponent is not None:
        raise typer.BadParameter("--rule and the others change a real run's plan; a scenario says its plans under [[compare]]")
    show(lambda comparison_of: _compared(scenario or Path(), comparison_of), out, as_json=as_json)


def _compared(file: Path, told: Callable[["Comparison"], None]) -> None:
    """Every plan of a scenario; tells what there is after each."""
    from operator_console.simulation_records import Comparison, Tried
    from simulator.engine import prepare, run
    from simulator.plans import plan_of
    from simulator.population import read_scenario

    scenario = read_scenario(file)
    prepared = prepare(scenario)
    population = prepared.population
    institutions = len(population.institutions)
    plans = [plan_of(scenario.plan, each, population.spec, institutions=institutions) for each in scenario.variants]
    tried: list[Tried] = []
    for variant, plan in zip(scenario.variants, plans, strict=True):
        tried.append(Tried(run(prepared, variant), plan.aggregation))
        title = scenario.title or scenario.name
        told(Comparison(title, scenario.seed, list(tried), len(plans), scenario.target, scenario_notes(institutions)))


def scenario_notes(institutions: int) -> list[str]:
    """What a simulation's figures mean."""
    return [
        f"{institutions:,} institutions, trained for real on their own rows; how long that takes is the scenario's to say.",
        "The network and the aggregator take no time here. MB are update and model bodies, without manifests and protocol.",
        "Slow half: the share of the weight / of the data, of the institutions whose trainings take longer than the median.",
    ]


def show(compare: Callable[[Callable[["Comparison"], None]], None], out: Path | None, *, as_json: bool) -> None:
    """Runs a comparison and tells what came of it; after Ctrl-C, of what was finished until then, with exit code 130."""
    newest: list[Comparison] = []
    progress = Console(stderr=True)
    interrupted = False
    with progress.status("reading") as status:

        def told(comparison: "Comparison") -> None:
            newest[:] = [comparison]
            status.update(f"{len(comparison.tried)} of {comparison.planned} plans are finished")

        try:
            compare(told)
        except KeyboardInterrupt:
            interrupted = True
    if newest:
        present(newest[0], out, as_json=as_json)
    if interrupted:
        progress.print("interrupted" if newest else "interrupted before the first plan was finished; nothing is written")
        raise typer.Exit(INTERRUPTED)


def present(comparison: "Comparison", out: Path | None, *, as_json: bool) -> None:
    """Prints the table or JSON, and writes the files."""
    from operator_console.simulation_page import lead, write_results
    from operator_console.simulation_records import document, sheets

    folder = out or OUT / folder_name(comparison.title)
    try:
        page = write_results(comparison, folder)
    except OSError as error:
        raise SettingsError(f"{folder}: {error.strerror}; choose another --out") from error
    if as_json:
        typer.echo(json.dumps(document(comparison), allow_nan=False))
        return
    console = Console()
    for sheet in sheets(comparison):
        console.print(sheet.printed())
    for line in (lead(comparison), comparison.unfinished):
        console.print(line, highlight=False, soft_wrap=True, markup=False) if line else None
    console.print(f"page: {page}", highlight=False, soft_wrap=True, markup=False)


def folder_name(title: str) -> str:
    """A title as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", title).strip("-.")[:60].lower() or "simulation"


def rules(names: Sequence[str] | None) -> list[RuleName]:
    """The rules of these names, or all of them. Raises BadParameter."""
    known: tuple[RuleName, ...] = get_args(RuleName)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint="--rule")
    return [name for name in known if not names or name in names]


def numbers(text: str, *, option: str, whole: bool = False, least: float = 0.0) -> Sequence[float]:
    """The numbers of an option such as `0.3,1`, each once, in order. Raises BadParameter."""
    found = []
    for part in text.split(","):
        try:
            number = float(int(part)) if whole else float(part)
        except ValueError:
            raise typer.BadParameter(f"{part.strip()!r} is not a {'whole ' * whole}number", param_hint=option) from None
        if not least <= number < float("inf"):
            raise typer.BadParameter(f"{part.strip()} is not {least:g} or more", param_hint=option)
        found.append(number)
    return list(dict.fromkeys(found))
