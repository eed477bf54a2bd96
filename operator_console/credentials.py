"""Who may connect, and whose messages are believed: certificates and message keys, laid into each party's folder."""

from collections.abc import Iterable
from pathlib import Path

from broker_config.authority import CA_FILE, CERTIFICATE_FILE, KEY_FILE, Authority, write_issued
from broker_config.definitions import AGGREGATOR, OPERATOR
from broker_config.keyring import SEALING_FILE, SIGNING_FILE, load_identity, load_trust, save_identity, save_trust
from broker_config.written import write_public
from operator_console.federation_folder import FederationFolder
from operator_console.kit import KEYS
from operator_console.kit_request import KitRequest
from shared.keys import Identity, PublicKeys, Trust


def found_credentials(folder: FederationFolder, institutions: Iterable[str], *, sealed: bool) -> dict[str, PublicKeys]:
    """Message keys of the operator, the aggregator and every institution, and with TLS their certificates.

    Returns the institutions' public keys by name.
    """
    operator, aggregator = Identity.create(), Identity.create()
    members = {each: Identity.create() for each in institutions}
    known = {name: identity.public for name, identity in members.items()}
    kits = Trust(operator=operator.public, aggregators={AGGREGATOR: aggregator.public}, sealed=sealed)
    save_identity(operator, folder.operator_keys)
    save_trust(kits.with_institutions(known), folder.operator_keys)
    others = {folder.institution(name): identity for name, identity in members.items()}
    for place, identity in {folder.aggregator: aggregator, **others}.items():
        save_identity(identity, place / KEYS)
        save_trust(kits, place / KEYS)
    if folder.has_tls:
        for user in (OPERATOR, folder.logins().administrator):
            if not (folder.tls(user) / KEY_FILE).exists():
                certify(folder, user, folder.tls(user))
        certify(folder, AGGREGATOR, folder.aggregator)
        for name in members:
            certify(folder, name, folder.institution(name))
    return known


def enrol(folder: FederationFolder, institution: str, request: KitRequest | None, *, again: bool) -> PublicKeys:
    """Keys of an institution that is to be admitted, and with TLS its certificate; what is not secret comes from its request.

    `again` is whether an attempt at the same admission was made before: its keys may be in an order that waits.
    """
    place = folder.institution(institution)
    if request is not None:
        for name in (KEY_FILE, f"{KEYS}/{SIGNING_FILE}", f"{KEYS}/{SEALING_FILE}"):
            (place / name).unlink(missing_ok=True)
        keys = request.keys
    else:
        keys = _identity(place / KEYS, kept=again).public
    believed = load_trust(folder.operator_keys)
    save_trust(believed.with_institutions({institution: keys}), folder.operator_keys)
    save_trust(Trust(operator=believed.operator, aggregators=believed.aggregators, sealed=believed.sealed), place / KEYS)
    if folder.has_tls:
        certify(folder, institution, place, request)
    return keys


def certify(folder: FederationFolder, user: str, place: Path, request: KitRequest | None = None) -> None:
    """A new certificate, with a key of its own or for the key of a request, and the authority's. Raises SettingsError."""
    authority = Authority.open(folder.authority)
    if request is None:
        write_issued(place, authority.issue(user), authority.certificate)
        return
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    certificate = authority.sign_request(request.certificate_request.encode(), user=user)
    (place / KEY_FILE).unlink(missing_ok=True)
    write_public(place / CERTIFICATE_FILE, certificate)
    write_public(place / CA_FILE, authority.certificate)


def withdraw(folder: FederationFolder, institution: str) -> None:
    """Revokes an institution's certificates, believes its keys no longer, and deletes its kits. Can be repeated.

    What it signed before is in the journals still: the operator keeps the key that tells.
    """
    if folder.has_tls:
        Authority.open(folder.authority).revoke(institution)
    save_trust(load_trust(folder.operator_keys).without(institution), folder.operator_keys)
    for kit in (folder.kit(institution), folder.renewal_kit(institution)):
        kit.unlink(missing_ok=True)


def _identity(place: Path, *, kept: bool) -> Identity:
    if kept and (place / SIGNING_FILE).exists():
        return load_identity(place)
    fresh = Identity.create()
    save_identity(fresh, place)
    return fresh
