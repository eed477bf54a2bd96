"""Certificates of a federation with TLS: whose end, whose are of another authority, and whether the revocation list is whole."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from broker_config.authority import CERTIFICATE_FILE, CRL_FILE, KEY_FILE, Authority
from broker_config.definitions import AGGREGATOR, OPERATOR
from operator_console.broker_tls import SERVER_FOLDER
from operator_console.expiry import expiries, remedy_for, warnings_of
from operator_console.federation_folder import FederationFolder
from operator_console.finding import Finding

RENEW = "`fedqueue institution renew {who}`"
WRITE_AGAIN = "`fedqueue institution renew operator` writes it again"


def certificates(folder: FederationFolder, now: datetime) -> Iterator[Finding]:
    """Everything about certificates; nothing where the broker is reached with passwords. Raises SettingsError."""
    if not folder.has_tls:
        return
    if not folder.authority.exists():
        yield Finding("certificates", True, "the federation has no authority of its own; whoever issues them knows until when")
        return
    authority = Authority.open(folder.authority)
    ends = expiries(folder)
    bad = [*_endings(folder, now), *_strangers(folder, x509.load_pem_x509_certificate(authority.certificate))]
    yield from bad
    if not bad:
        first = min(ends, key=lambda who: ends[who])
        yield Finding("certificates", True, f"{len(ends)} hold, that of {first} ends first, {ends[first]:%Y-%m-%d}")
    yield from _revocations(folder, authority, now)


def _endings(folder: FederationFolder, now: datetime) -> Iterator[Finding]:
    for sentence in warnings_of(expiries(folder), now):
        what, _, remedy = sentence.partition(": ")
        yield Finding("certificates", False, what, remedy)


def _strangers(folder: FederationFolder, own: x509.Certificate) -> Iterator[Finding]:
    for who, file in _files(folder):
        try:
            x509.load_pem_x509_certificate(file.read_bytes()).verify_directly_issued_by(own)
        except OSError as error:
            yield Finding("certificates", False, f"{file} cannot be read: {error.strerror}", remedy_for(who))
        except (ValueError, TypeError, InvalidSignature):
            yield Finding("certificates", False, f"{file} was not issued by the authority in {folder.authority}", remedy_for(who))


def _files(folder: FederationFolder) -> Iterator[tuple[str, Path]]:
    """Whose certificates lie here, with their keys, and where; those of institutions are theirs once they have their kits."""
    institutions = [each.id for each in folder.facts().institutions if not each.removed]
    places = {
        OPERATOR: folder.tls(OPERATOR),
        folder.logins().administrator: folder.tls(folder.logins().administrator),
        AGGREGATOR: folder.aggregator,
        "server:": folder.authority / SERVER_FOLDER,
        **{each: folder.institution(each) for each in institutions},
    }
    for who, place in places.items():
        if (place / KEY_FILE).exists():
            yield who, place / CERTIFICATE_FILE


def _revocations(folder: FederationFolder, authority: Authority, now: datetime) -> Iterator[Finding]:
    """Brokers refuse everybody by a list that is over, and let the revoked in by one that lacks them."""
    file = folder.authority / CRL_FILE
    try:
        listed = x509.load_pem_x509_crl(file.read_bytes())
    except (OSError, ValueError) as error:
        yield Finding("revocation list", False, f"{file} cannot be read: {error}", WRITE_AGAIN)
        return
    fault = _fault_of(listed, authority, now) or _fault_of_copies(file, authority.revocations)
    if fault:
        yield Finding("revocation list", False, f"{file} {fault}", WRITE_AGAIN)
        return
    count, age = len(list(listed)), (now - listed.last_update_utc).days
    what = f"{count} certificate{'' if count == 1 else 's'} revoked; written {age} day{'' if age == 1 else 's'} ago"
    yield Finding("revocation list", True, f"{what}. A broker on another computer needs a copy of {authority.revocations}")


def _fault_of(listed: x509.CertificateRevocationList, authority: Authority, now: datetime) -> str:
    key = x509.load_pem_x509_certificate(authority.certificate).public_key()
    if not listed.is_signature_valid(key):  # type: ignore[arg-type]
        return "is not signed by this authority"
    if listed.next_update_utc is not None and listed.next_update_utc <= now:
        return f"is over since {listed.next_update_utc:%Y-%m-%d}: brokers refuse everybody by it"
    revoked = [each for each in authority.issued() if each.revoked is not None and each.not_after > now]
    lacking = [each.user for each in revoked if listed.get_revoked_certificate_by_serial_number(each.serial) is None]
    return f"lacks the revoked certificate of {', '.join(lacking)}, who may still connect" if lacking else ""


def _fault_of_copies(file: Path, revocations: Path) -> str:
    copies = list(revocations.glob("*.r0"))
    other = [str(each) for each in copies if each.read_bytes() != file.read_bytes()]
    if not copies:
        return f"has no copy in {revocations}, where a broker looks for it"
    return f"is another list than {', '.join(other)}, by which a broker goes" if other else ""
