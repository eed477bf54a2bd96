"""`fedqueue model export | card`: a model from the broker into a file with its card, the best one unless another is asked for."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import newest as newest_record
from client_worker.files import read_task
from operator_console.card_facts import card_of, tells_of
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.completions import versions
from operator_console.federation_folder import FederationFolder
from operator_console.history import History, follow
from operator_console.kept_model import KeptModel, NoSuchModelError, best_model, model_of_version, newest_model
from operator_console.model_file import Format, card_file, card_in, write_model, write_without_card
from shared.broker import Broker
from shared.errors import DataError

model_app = typer.Typer(help="Take a model home.", no_args_is_help=True, rich_markup_mode=None)


@model_app.command()
def export(  # noqa: PLR0913 - typer takes one parameter for each option
    *,
    folder: Folder = DEFAULT_FOLDER,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; else model.safetensors or model.onnx.")
    ] = None,
    form: Annotated[
        Format,
        typer.Option("--format", help="safetensors: parameters alone. onnx: a graph that runs without fedqueue and torch."),
    ] = "safetensors",
    best: Annotated[bool, typer.Option("--best", help="The best by the held-out figure, and no other.")] = False,
    newest: Annotated[bool, typer.Option("--newest", help="The newest, also where an earlier one was better.")] = False,
    version: Annotated[int | None, typer.Option(min=0, autocompletion=versions, help="That of a version.")] = None,
    name_institutions: Annotated[
        bool, typer.Option("--name-institutions", help="The card names institutions and their examples; else it numbers them.")
    ] = False,
) -> None:
    """Write a model to a file, and its card beside it: the best one; without held-out rows the newest.

    The file holds the card too: the task with its columns, figures, privacy, lineage. ONNX needs the extra onnx.
    """
    if best + newest + (version is not None) > 1:
        raise typer.BadParameter("--best, --newest and --version exclude each other")
    federation, out = FederationFolder(folder), out or Path(f"model.{form}")
    if out == card_file(out):
        raise typer.BadParameter("the card goes into a file of that name; let the model's end in .safetensors or .onnx")
    spec = read_task(federation.task_file)
    history = History(federation.names())
    with closing(connect(federation.logins().settings(OPERATOR), name="fedqueue-model")) as broker:
        chosen = _chosen(broker, best=best, newest=newest, version=version)
        parameters = chosen.read(broker)
        follow(broker, history)
    if tells_of(history, chosen.version):
        facts = card_of(history, spec, chosen.version, chosen.why, named=name_institutions)
        write_model(out, form, facts, parameters)
        told = f"its card: {card_file(out)}"
    else:
        write_without_card(out, form, {"version": str(chosen.version)}, parameters)
        told = "the lineage no longer reaches back to it, so it has no card: fedqueue predict needs --task"
    run_id = federation.facts().run_id
    typer.echo(f"version {chosen.version} of run {run_id} is written to {out}: {len(parameters)} tensors, {form}")
    typer.echo(f"why this one: {chosen.why}")
    typer.echo(told)


@model_app.command()
def card(
    model: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `fedqueue model export` wrote.")],
) -> None:
    """Print the card that is in a model file, as Markdown."""
    found = card_in(model)
    if found is None:
        raise DataError(f"{model}: holds no model card; `fedqueue model export` writes files that do")
    typer.echo(found.markdown(), nl=False)


def _chosen(broker: Broker, *, best: bool, newest: bool, version: int | None) -> KeptModel:
    """The model that is meant."""
    head, lineage = newest_record(broker)
    if version is not None:
        return model_of_version(broker, version)
    found = None if newest or lineage.plan is None else best_model(head, lineage.plan)
    if best and found is None:
        raise NoSuchModelError("no version was measured on held-out rows, so none is the best; --newest takes the newest")
    return found or newest_model(head)
