"""`fedqueue kit request`: what an institution does, on its own machine, so that no private key ever leaves it."""

from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console

from broker_config.authority import KEY_FILE
from broker_config.keyring import SIGNING_FILE, load_identity, save_identity
from broker_config.topology import checked_institution
from broker_config.written import write_private, write_public
from operator_console.kit import KEYS
from operator_console.kit_request import KitRequest
from shared.errors import SettingsError
from shared.keys import Identity

RENEWAL = "renewal"

kit_app = typer.Typer(help="What an institution asks its operator for.", no_args_is_help=True, rich_markup_mode=None)


@kit_app.callback()
def kit() -> None:
    """What an institution asks its operator for."""


@kit_app.command()
def request(
    institution: Annotated[str, typer.Argument(metavar="ID", help="The id that the operator knows this institution by.")],
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Where keys are made, and the kit goes later; without it, ./ID.")
    ] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="For a renewal with another TLS key, made in DIR/renewal beside the present one.")
    ] = False,
) -> None:
    """Make keys here, and one file without a secret for the operator, who makes a kit of it. Keys that are here already stay."""
    place = folder or Path(checked_institution(institution))
    asked = make_request(place, institution, new_key=new_key)
    file = place / f"{institution}.request"
    write_public(file, asked.text().encode())
    Console().print(
        f"{file} is for the operator, and holds no secret. The private keys stay in {place}: send them to nobody.\n"
        f"Compare by telephone what `fedqueue institution add` or `renew` shows there:  {asked.fingerprint}"
        + (f"\nUnpack the renewal into {place / RENEWAL}, then: mv {place / RENEWAL}/*.pem {place}" if new_key else ""),
        highlight=False,
        soft_wrap=True,
        markup=False,
    )


def make_request(folder: Path, institution: str, *, new_key: bool = False) -> KitRequest:
    """A request for the keys in a folder; what is missing is made. Raises SettingsError."""
    checked_institution(institution)
    keys = folder / KEYS
    present = (keys / SIGNING_FILE).exists()
    if new_key and not present:
        raise SettingsError(f"{keys} holds no keys, so there is nothing to renew: leave --new-key out")
    identity = load_identity(keys) if present else Identity.create()
    key = _tls_key(folder / RENEWAL if new_key else folder, fresh=new_key)
    if not present:
        save_identity(identity, keys)
    return KitRequest.make(institution, key, identity)


def _tls_key(folder: Path, *, fresh: bool) -> ec.EllipticCurvePrivateKey:
    file = folder / KEY_FILE
    if not fresh and file.exists():
        return _read_key(file)
    key = ec.generate_private_key(ec.SECP256R1())
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    none = serialization.NoEncryption()
    write_private(file, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none))
    return key


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise SettingsError(f"{file} cannot be read as a private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"{file} is no key of an elliptic curve; make another one with --new-key")
    return key
