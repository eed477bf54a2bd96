"""`fedqueue model`: the newest model, from the broker into a file."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer
from safetensors import SafetensorError
from safetensors.numpy import save_file

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import fetch_model, newest
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import FederationFolder
from shared.errors import StorageError


def model(
    out: Annotated[Path, typer.Option(metavar="FILE.safetensors", help="Where to write it.")] = Path("model.safetensors"),
    folder: Folder = DEFAULT_FOLDER,
) -> None:
    """Write the newest model, as the institutions have it, to a file."""
    logins = FederationFolder(folder).logins()
    with closing(connect(logins.settings(OPERATOR), name="fedqueue-model")) as broker:
        head, _ = newest(broker)
        parameters = fetch_model(broker, head)
    manifest = head.manifest
    try:
        save_file(dict(parameters), out, metadata={"run_id": manifest.run_id, "version": str(manifest.version)})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{out} cannot be written ({error}); name another file with --out") from error
    typer.echo(f"version {manifest.version} of run {manifest.run_id} is written to {out}: {len(parameters)} tensors, float32")
