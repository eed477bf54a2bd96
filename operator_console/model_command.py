"""`fedqueue model`: a model from the broker into a file, the best one unless another is asked for."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError
from safetensors.numpy import save_file

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import newest as newest_record
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import FederationFolder
from operator_console.kept_model import KeptModel, NoSuchModelError, best_model, model_of_version, newest_model
from shared.broker import Broker
from shared.errors import StorageError


def model(
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="Where to write it.")] = Path("model.safetensors"),
    folder: Folder = DEFAULT_FOLDER,
    best: Annotated[bool, typer.Option("--best", help="The best by the held-out figure, and no other.")] = False,
    newest: Annotated[bool, typer.Option("--newest", help="The newest, also where an earlier one was better.")] = False,
    version: Annotated[int | None, typer.Option(min=0, help="That of a version.")] = None,
) -> None:
    """Write a model, as the institutions have it, to a file: the best one; without held-out rows the newest."""
    if best + newest + (version is not None) > 1:
        raise typer.BadParameter("--best, --newest and --version exclude each other")
    logins = FederationFolder(folder).logins()
    with closing(connect(logins.settings(OPERATOR), name="fedqueue-model")) as broker:
        run_id, chosen = _chosen(broker, best=best, newest=newest, version=version)
        parameters = chosen.read(broker)
    try:
        save_file(dict(parameters), out, metadata={"run_id": run_id, "version": str(chosen.version)})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{out} cannot be written ({error}); name another file with --out") from error
    typer.echo(f"version {chosen.version} of run {run_id} is written to {out}: {len(parameters)} tensors, float32")
    typer.echo(f"why this one: {chosen.why}")


def _chosen(broker: Broker, *, best: bool, newest: bool, version: int | None) -> tuple[str, KeptModel]:
    """The run, and the model that is meant."""
    head, lineage = newest_record(broker)
    run_id = head.manifest.run_id
    if version is not None:
        return run_id, model_of_version(broker, version)
    found = None if newest or lineage.plan is None else best_model(head, lineage.plan)
    if best and found is None:
        raise NoSuchModelError("no version was measured on held-out rows, so none is the best; --newest takes the newest")
    return run_id, found or newest_model(head)
