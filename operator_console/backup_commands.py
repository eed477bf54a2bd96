"""`fedqueue backup | restore | republish`: the operator's side kept and brought back, and a run that its broker has lost."""

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from aggregator_worker import checkpoint
from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.secret_files import demand_private
from operator_console.backup import Backup, hash_of, is_sealed, left_out, read_backup, write_backup
from operator_console.command_options import DEFAULT_FOLDER, Folder
from operator_console.federation_folder import FederationFolder
from operator_console.republish import publish_again, state_folder
from shared.errors import SettingsError

Archive = Annotated[Path, typer.Argument(metavar="FILE", help="The backup.")]
Passphrase = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Holds the passphrase that the backup is encrypted with; mode 600.")
]


def backup(file: Archive, folder: Folder = DEFAULT_FOLDER, passphrase_file: Passphrase = None) -> None:
    """Keep keys, secrets, settings and checkpoint in one file; the aggregator may run meanwhile."""
    federation, secret = FederationFolder(folder), _passphrase(passphrase_file)
    kept = write_backup(federation, file, secret)
    _list(kept)
    if others := left_out(federation):
        typer.echo(f"left out: {', '.join(others)}")
    if not any(each.path.endswith(f"/{checkpoint.FILE_NAME}") for each in kept.files):
        typer.echo("there is no checkpoint in this folder: keep that of the aggregator's machine too")
    if secret is None:
        typer.echo("it is not encrypted and holds every key and password: keep it as safe as them, or use --passphrase-file")
    typer.echo(f"{file}: {len(kept.files)} files of run {kept.run_id}, sha256 {kept.sha256}")


def restore(
    file: Archive,
    folder: Folder = DEFAULT_FOLDER,
    passphrase_file: Passphrase = None,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Refuse any other file than the one of this hash.")] = None,
) -> None:
    """Put a backup into a folder that is empty or not there, after every file of it was checked."""
    secret, sealed = _passphrase(passphrase_file), is_sealed(file)
    if sealed and secret is None:
        raise SettingsError(f"{file} is encrypted: name its passphrase's file with --passphrase-file")
    if not sealed and secret is not None:
        raise SettingsError(f"{file} is not encrypted, so it is not the backup that this passphrase belongs to")
    if sha256 is not None and hash_of(file) != sha256.strip().lower():
        raise SettingsError(f"{file} has another SHA-256 than {sha256}: it is another backup, or it was altered")
    kept = read_backup(file, folder, secret)
    _list(kept)
    saved = checkpoint.load(state_folder(FederationFolder(folder)))
    version = "without a checkpoint" if saved is None else f"its checkpoint of version {saved.newest.manifest.version}"
    typer.echo(f"{folder}: {len(kept.files)} files of run {kept.run_id}, {version}")


def republish(folder: Folder = DEFAULT_FOLDER) -> None:
    """Put the run onto a broker that has lost it, from the checkpoint: the lineage goes on from its last manifests."""
    federation = FederationFolder(folder)
    with closing(connect(federation.logins().settings(OPERATOR), name="fedqueue-republish")) as broker:
        newest = publish_again(broker, federation)
    typer.echo(
        f"the lineage goes on from version {newest.manifest.version} of run {newest.manifest.run_id}; start the aggregator: "
        "it publishes the model again"
    )


def _list(kept: Backup) -> None:
    for each in kept.files:
        typer.echo(f"{each.sha256}  {each.size:>12,}  {each.path}")


def _passphrase(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        words = file.read_bytes().strip()
    except OSError as error:
        raise SettingsError(f"the passphrase file {file} cannot be read: {error.strerror}") from error
    demand_private(file, "the passphrase")
    if not words:
        raise SettingsError(f"the passphrase file {file} is empty")
    return words
