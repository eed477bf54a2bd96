"""Certificates that no authority of a federation would write."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Holder:
    """A name and its key; it can sign certificates, whether it may or not."""

    name: x509.Name
    key: ec.EllipticCurvePrivateKey
    chain: Sequence[bytes] = ()

    @classmethod
    def new(cls, name: str) -> "Holder":
        """With a key of its own."""
        return cls(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def of(cls, certificate: Path, key: Path) -> "Holder":
        """Whose certificate and key these are."""
        pem = certificate.read_bytes()
        private = serialization.load_pem_private_key(key.read_bytes(), password=None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        return cls(x509.load_pem_x509_certificate(pem).subject, private, [pem])


@dataclass(frozen=True, slots=True)
class Forgery:
    """What stands in a certificate; the days count from now."""

    name: str
    begins: int = -1
    ends: int = 30
    may_issue: bool = False
    purpose: x509.ObjectIdentifier = field(default=ExtendedKeyUsageOID.CLIENT_AUTH)

    def signed_by(self, issuer: Holder | None, folder: Path) -> Path:
        """Writes `certificate.pem`, with what leads to its issuer, and `key.pem`. Without an issuer it signs itself."""
        subject = Holder.new(self.name)
        issuer = issuer or subject
        today = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(subject.name if issuer is subject else issuer.name)
            .subject_name(subject.name)
            .public_key(subject.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(today + self.begins * DAY)
            .not_valid_after(today + self.ends * DAY)
            .add_extension(x509.BasicConstraints(ca=self.may_issue, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([self.purpose]), critical=False)
            .sign(issuer.key, hashes.SHA256())
        )
        folder.mkdir(parents=True)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        (folder / "certificate.pem").write_bytes(b"".join([pem, *issuer.chain]))
        private = subject.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (folder / "key.pem").write_bytes(private)
        return folder
