"""The certificate authority of a federation: who may connect to its broker, and whom its members take for the broker.

It issues certificates for TLS on both sides. A user's common name is its login on the broker. The authority's key stays in
its folder, with a list of what it issued; nothing but this module reads that key.
"""

import fcntl
import hashlib
import ipaddress
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker_config.secret_files import demand_private
from broker_config.written import write_private, write_public
from shared.errors import SettingsError

CERTIFICATE_FILE, KEY_FILE, CA_FILE = "certificate.pem", "key.pem", "ca.pem"
AUTHORITY_KEY_FILE, CRL_FILE, ISSUED_FILE, REVOCATIONS_FOLDER = "ca.key", "crl.pem", "issued.json", "revoked"
_AUTHORITY_DAYS = 3650
# A computer whose clock is behind must take a fresh certificate too.
_BACKDATED = timedelta(hours=1)
_SERVER = "server:"  # no id of an institution has a colon
_LONGEST_NAME = 64  # of a common name, RFC 5280
_LEAST_RSA_BITS = 2048

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key (PKCS8, not encrypted), both PEM."""

    certificate: bytes
    key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class IssuedRecord:
    """What was issued to whom; `user` is `server:<first host>` for a broker's certificate."""

    user: str
    serial: int
    not_before: datetime
    not_after: datetime
    revoked: datetime | None = None

    def document(self) -> dict[str, str | None]:
        """The record as JSON holds it: the serial in hexadecimal, times in ISO 8601."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else f"{value:x}" if isinstance(value, int) else value
            for name, value in asdict(self).items()
        }


class Authority:
    """An authority in a folder; make or open one with `create` and `open`."""

    def __init__(self, folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._folder = folder
        self._own = certificate
        self._key = key

    @classmethod
    def create(cls, folder: Path, *, name: str) -> "Authority":
        """A new authority; raises SettingsError where the folder has one already, which all its members trust."""
        if (folder / AUTHORITY_KEY_FILE).exists():
            raise SettingsError(
                f"{folder} holds an authority already: keep it, for certificates of another one open no door here"
            )
        if not 1 <= len(name) <= _LONGEST_NAME:
            raise SettingsError(f"the name of an authority has 1 to {_LONGEST_NAME} characters, {name!r} has not")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _named(name)
        usage = _usage(key_cert_sign=True, crl_sign=True)
        certificate = (
            _builder(key.public_key(), subject, issuer=subject, not_after=_now() + timedelta(days=_AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .sign(key, hashes.SHA256())
        )
        made = cls(folder, certificate, key)
        write_public(folder / CA_FILE, _pem(certificate))
        made._write_records([])
        write_private(folder / AUTHORITY_KEY_FILE, _key_pem(key))  # last: with it the authority is there
        return made

    @classmethod
    def open(cls, folder: Path) -> "Authority":
        """The authority that `create` left; raises SettingsError where there is none, or where others can read its key."""
        try:
            demand_private(folder / AUTHORITY_KEY_FILE, "the authority's key")
            certificate = x509.load_pem_x509_certificate((folder / CA_FILE).read_bytes())
            key = serialization.load_pem_private_key((folder / AUTHORITY_KEY_FILE).read_bytes(), password=None)
        except OSError as error:
            raise SettingsError(f"{error.filename} cannot be read ({error.strerror}); `fedqueue ca create` writes it") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SettingsError(f"{folder} holds no authority of a federation: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise SettingsError(f"{folder / AUTHORITY_KEY_FILE} is not the key of {folder / CA_FILE}")
        return cls(folder, certificate, key)

    @property
    def revocations(self) -> Path:
        """The folder in which a broker of this computer finds the list of revoked certificates, named as OpenSSL looks for it."""
        return self._folder / REVOCATIONS_FOLDER

    @property
    def certificate(self) -> bytes:
        """Its own certificate, PEM: what members trust."""
        return _pem(self._own)

    def issue(self, user: str, *, days: int = 365) -> Issued:
        """A key and a certificate that opens a connection as `user`."""
        key = ec.generate_private_key(ec.SECP256R1())
        return Issued(self._issued_to(user, key.public_key(), days), _key_pem(key))

    def issue_server(self, hosts: Sequence[str], *, days: int = 365) -> Issued:
        """A key and a certificate for a broker that is reached under these host names and addresses."""
        if not hosts:
            raise SettingsError("a broker's certificate needs the host names or addresses under which it is reached")
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        builder = self._leaf(key.public_key(), hosts[0][:_LONGEST_NAME], days, ExtendedKeyUsageOID.SERVER_AUTH)
        certificate = builder.add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        self._record(_SERVER + hosts[0], certificate)
        return Issued(_pem(certificate), _key_pem(key))

    def sign_request(self, request: bytes, *, user: str, days: int = 365) -> bytes:
        """A certificate (PEM) for a key that was made elsewhere and never leaves it.

        Of the request only name and key are taken. Raises SettingsError where its name is not `user`, where it is not signed
        with its own key, or where the key is of a weak kind.
        """
        try:
            asked = x509.load_pem_x509_csr(request)
            key = asked.public_key()
            signed = asked.is_signature_valid
        except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
            raise SettingsError(f"this is not a certificate request in PEM: {error}") from error
        names = [str(each.value) for each in asked.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        if names != [user]:
            raise SettingsError(f"the request names {', '.join(names) or 'nobody'}, not {user}: ask for one made for {user}")
        if not signed:
            raise SettingsError("the request is not signed with its own key: whoever made it does not hold that key")
        return self._issued_to(user, _strong(key), days)

    def revoke(self, user: str) -> list[IssuedRecord]:
        """Revokes every certificate of a user that still holds, in `crl.pem` too; returns those."""
        with self._locked():
            records, now = self.issued(), _now()
            met = [each for each in records if each.user == user and each.revoked is None and each.not_after > now]
            self._write_records([replace(each, revoked=now) if each in met else each for each in records])
        return met

    def issued(self) -> list[IssuedRecord]:
        """Everything that was issued, the oldest first."""
        file = self._folder / ISSUED_FILE
        try:
            return [_record_from(each) for each in json.loads(file.read_bytes())]
        except OSError as error:
            raise SettingsError(f"{file} cannot be read ({error.strerror}); bring it back from a backup") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SettingsError(f"{file} is not a list of certificates; bring it back from a backup") from error

    def _issued_to(self, user: str, key: PublicKey, days: int) -> bytes:
        if not 1 <= len(user) <= _LONGEST_NAME or ":" in user:
            raise SettingsError(f"{user!r} is no name of a login: 1 to {_LONGEST_NAME} characters, no colon")
        certificate = self._leaf(key, user, days, ExtendedKeyUsageOID.CLIENT_AUTH).sign(self._key, hashes.SHA256())
        self._record(user, certificate)
        return _pem(certificate)

    def _leaf(self, key: PublicKey, name: str, days: int, purpose: x509.ObjectIdentifier) -> x509.CertificateBuilder:
        if days < 1:
            raise SettingsError(f"a certificate holds for a day at least, not for {days}")
        not_after = min(_now() + timedelta(days=days), self._own.not_valid_after_utc)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(key, _named(name), issuer=self._own.subject, not_after=not_after)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(authority, critical=False)
        )

    def _record(self, user: str, certificate: x509.Certificate) -> None:
        times = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        with self._locked():
            self._write_records([*self.issued(), IssuedRecord(user, certificate.serial_number, *times)])

    def _write_records(self, records: Sequence[IssuedRecord]) -> None:
        text = json.dumps([each.document() for each in records], indent=2) + "\n"
        write_private(self._folder / ISSUED_FILE, text.encode())
        revoked = self._revoked(records)
        write_public(self._folder / CRL_FILE, revoked)
        self.revocations.mkdir(exist_ok=True)
        write_public(self.revocations / f"{_hash_of(self._own.subject)}.r0", revoked)

    def _revoked(self, records: Sequence[IssuedRecord]) -> bytes:
        """The list of revoked certificates, PEM. It holds as long as the authority: a broker refuses everybody by an old one."""
        now = _now()
        number = x509.CRLNumber(int(now.timestamp() * 1000))
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder(self._own.subject, now - _BACKDATED, self._own.not_valid_after_utc)
            .add_extension(number, critical=False)
            .add_extension(authority, critical=False)
        )
        for each in records:
            if each.revoked is not None and each.not_after > now:
                entry = x509.RevokedCertificateBuilder(each.serial, each.revoked).build()
                builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Two commands at once would each write a list without the other's certificate."""
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def expiry_of(certificate_pem: bytes) -> datetime:
    """Until when a certificate holds (UTC)."""
    return _read(certificate_pem).not_valid_after_utc


def user_of(certificate_pem: bytes) -> str:
    """The login that a certificate opens: its common name; raises SettingsError where it has not one."""
    names = _read(certificate_pem).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise SettingsError(f"the certificate has {len(names)} common names; a login's has one")
    return str(names[0].value)


def hosts_of(certificate_pem: bytes) -> list[str]:
    """The host names and addresses that a broker's certificate holds for."""
    names = _read(certificate_pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = [str(each) for each in names.get_values_for_type(x509.IPAddress)]
    return names.get_values_for_type(x509.DNSName) + addresses


def write_issued(folder: Path, issued: Issued, authority: bytes) -> None:
    """Writes `certificate.pem`, `key.pem` (0600) and `ca.pem`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_private(folder / KEY_FILE, issued.key)
    write_public(folder / CERTIFICATE_FILE, issued.certificate)
    write_public(folder / CA_FILE, authority)


def _read(certificate_pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(certificate_pem)
    except ValueError as error:
        raise SettingsError("this is not a certificate in PEM") from error


def _builder(key: PublicKey, subject: x509.Name, *, issuer: x509.Name, not_after: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_now() - _BACKDATED)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _strong(key: object) -> PublicKey:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS:
        return key
    raise SettingsError(f"the request's key must be of the curve P-256 or P-384, or RSA of {_LEAST_RSA_BITS} bits at least")


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise SettingsError(f"{host!r} is no host name; one with other letters than ASCII is written as xn--...") from error


def _hash_of(name: x509.Name) -> str:
    """What OpenSSL and Erlang call the file of a name's list: SHA-1 over its attributes, in lower case, with single spaces."""
    (attribute,) = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    plain = b" ".join(str(attribute.value).encode().split()).lower().decode()
    encoded = _named(plain).public_bytes()
    header = 2 if encoded[1] < 128 else 2 + (encoded[1] & 127)  # DER: the attributes without the sequence around them
    return hashlib.sha1(encoded[header:], usedforsecurity=False).digest()[:4][::-1].hex()


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _record_from(document: dict[str, str | None]) -> IssuedRecord:
    revoked = document["revoked"]
    return IssuedRecord(
        str(document["user"]),
        int(str(document["serial"]), 16),
        datetime.fromisoformat(str(document["not_before"])),
        datetime.fromisoformat(str(document["not_after"])),
        None if revoked is None else datetime.fromisoformat(revoked),
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    none = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, none)


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
