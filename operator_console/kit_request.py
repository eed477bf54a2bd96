"""What an institution sends its operator to be admitted without a private key ever leaving it: public keys, and proof of each.

It holds a certificate request (PKCS#10), whose signature proves the TLS key, and a signature with the message key over all of it.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.x509.oid import NameOID
from pydantic import Field, ValidationError

from shared.errors import SettingsError
from shared.keys import Identity, PublicKeys, fingerprint
from shared.messages import InstitutionId
from shared.plan import Frozen

LARGEST_BYTES = 16 * 1024
_PURPOSE = "fedqueue 1 kit request"


class KitRequest(Frozen):
    """One institution's request. `certificate_request` is PEM, `signature` base64 of Ed25519 over everything else."""

    form: Literal[1] = 1
    institution: InstitutionId
    certificate_request: Annotated[str, Field(max_length=LARGEST_BYTES)]
    keys: PublicKeys
    signature: str

    @classmethod
    def make(cls, institution: str, key: ec.EllipticCurvePrivateKey, identity: Identity) -> "KitRequest":
        """For a TLS key and an identity that stay where they are."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, institution)])
        asked = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
        pem = asked.public_bytes(serialization.Encoding.PEM).decode()
        signed = identity.signing.sign(_statement(institution, pem, identity.public))
        signature = base64.b64encode(signed).decode()
        return cls(institution=institution, certificate_request=pem, keys=identity.public, signature=signature)

    @classmethod
    def load(cls, file: Path) -> "KitRequest":
        """A request whose signatures hold. Raises SettingsError."""
        try:
            with file.open("rb") as opened:
                text = opened.read(LARGEST_BYTES)
        except OSError as error:
            raise SettingsError(f"{file}: {error.strerror}") from error
        try:
            request = cls.model_validate_json(text)
        except ValidationError:
            raise SettingsError(f"{file} is not a request that `fedqueue kit request` wrote; ask for the file again") from None
        if not (request._signed_by_its_message_key() and request._signed_by_its_tls_key() and request._can_be_sealed_for()):
            raise SettingsError(f"{file} was altered, or was made without its private keys; ask for the file again")
        return request

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2) + "\n"

    @property
    def fingerprint(self) -> str:
        """What two people compare by telephone, of all that it asks for."""
        return fingerprint(_statement(self.institution, self.certificate_request, self.keys))

    def demand(self, institution: str) -> None:
        """Raises SettingsError where it was made for somebody else, by its own name or by that in its certificate request."""
        names = {self.institution, *_common_names(self.certificate_request)}
        if names != {institution}:
            others = ", ".join(sorted(names - {institution})) or "nobody"
            raise SettingsError(f"the request was made for {others}, not for {institution}: `fedqueue kit request {institution}`")

    def _signed_by_its_message_key(self) -> bool:
        stated = _statement(self.institution, self.certificate_request, self.keys)
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.keys.signing))
            key.verify(base64.b64decode(self.signature, validate=True), stated)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True

    def _signed_by_its_tls_key(self) -> bool:
        try:
            return x509.load_pem_x509_csr(self.certificate_request.encode()).is_signature_valid
        except (ValueError, UnsupportedAlgorithm, InvalidSignature):
            return False

    def _can_be_sealed_for(self) -> bool:
        """A point of small order would fail whoever seals for everybody."""
        try:
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(self.keys.sealing)))
        except ValueError:
            return False
        return True


def _statement(institution: str, certificate_request: str, keys: PublicKeys) -> bytes:
    return json.dumps([_PURPOSE, institution, certificate_request, keys.signing, keys.sealing]).encode()


def _common_names(certificate_request: str) -> set[str]:
    subject = x509.load_pem_x509_csr(certificate_request.encode()).subject
    return {str(each.value) for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)} or {""}
