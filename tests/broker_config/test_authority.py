"""The federation's certificate authority."""

import ipaddress
import stat
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from broker_config.authority import Authority, Issued, expiry_of, user_of, write_issued
from shared.errors import SettingsError


@pytest.fixture
def authority(tmp_path):
    return Authority.create(tmp_path / "ca", name="late payment")


def read(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


def extension(certificate: x509.Certificate, kind):
    return certificate.extensions.get_extension_for_class(kind)


def request(key, *names: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    asked = x509.CertificateSigningRequestBuilder().subject_name(subject)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return asked.sign(key, digest).public_bytes(serialization.Encoding.PEM)


def test_an_authority_may_sign_members_and_no_further_authorities(authority):
    own = read(authority.certificate)
    assert extension(own, x509.BasicConstraints).value == x509.BasicConstraints(ca=True, path_length=0)
    assert extension(own, x509.BasicConstraints).critical
    usage = extension(own, x509.KeyUsage)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (
        True,
        True,
        True,
        False,
    )


def test_a_user_s_certificate_names_its_login_and_opens_connections_only(authority):
    issued = authority.issue("bank-a")
    certificate = read(issued.certificate)
    certificate.verify_directly_issued_by(read(authority.certificate))
    assert user_of(issued.certificate) == "bank-a"
    assert extension(certificate, x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extension(certificate, x509.KeyUsage).value.digital_signature
    assert not extension(certificate, x509.KeyUsage).value.key_cert_sign
    key = serialization.load_pem_private_key(issued.key, password=None)
    assert key.public_key() == certificate.public_key()


def test_a_broker_s_certificate_holds_for_its_names_and_addresses(authority):
    certificate = read(authority.issue_server(["broker.example.org", "192.0.2.7", "::1"]).certificate)
    names = extension(certificate, x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.example.org"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("::1")]
    assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]


@pytest.mark.parametrize("hosts", [[], ["bänk.example"]])
def test_a_broker_s_certificate_needs_names_that_a_certificate_can_hold(authority, hosts):
    with pytest.raises(SettingsError, match="host"):
        authority.issue_server(hosts)


def test_serials_are_random_and_none_is_given_twice(authority):
    serials = [read(authority.issue("bank-a").certificate).serial_number for _ in range(5)]
    assert len(set(serials)) == 5
    assert min(serial.bit_length() for serial in serials) > 64


def test_no_certificate_outlives_its_authority(authority):
    issued = authority.issue("bank-a", days=100_000)
    assert expiry_of(issued.certificate) == expiry_of(authority.certificate)


def test_a_certificate_holds_for_the_days_that_were_asked_for(authority):
    left = expiry_of(authority.issue("bank-a", days=30).certificate) - datetime.now(UTC)
    assert timedelta(days=29, hours=23) < left <= timedelta(days=30)


@pytest.mark.parametrize("user", ["", "a:b", "x" * 65])
def test_a_name_that_no_login_has_gets_no_certificate(authority, user):
    with pytest.raises(SettingsError, match="name of a login"):
        authority.issue(user)


def test_a_certificate_for_less_than_a_day_is_refused(authority):
    with pytest.raises(SettingsError, match="a day at least"):
        authority.issue("bank-a", days=0)


def test_secrets_are_for_their_owner_and_certificates_for_all(authority, tmp_path):
    write_issued(tmp_path / "tls", authority.issue("bank-a"), authority.certificate)
    files = [file for file in sorted(tmp_path.rglob("*")) if file.is_file() and file.suffix != ".r0"]
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in files}
    public, private = 0o644, 0o600
    assert modes == {
        "ca.key": private,
        "ca.pem": public,
        "crl.pem": public,
        "issued.json": private,
        "certificate.pem": public,
        "key.pem": private,
    }


def test_a_second_authority_in_the_same_folder_is_refused(authority, tmp_path):
    with pytest.raises(SettingsError, match="holds an authority already"):
        Authority.create(tmp_path / "ca", name="another")


def test_an_authority_is_opened_again_with_what_it_issued(authority, tmp_path):
    authority.issue_server(["localhost"])
    issued = authority.issue("bank-a")
    again = Authority.open(tmp_path / "ca")
    assert again.certificate == authority.certificate
    assert [each.user for each in again.issued()] == ["server:localhost", "bank-a"]
    last, certificate = again.issued()[-1], read(issued.certificate)
    assert (last.serial, last.not_after, last.revoked) == (certificate.serial_number, certificate.not_valid_after_utc, None)


def test_a_missing_authority_is_named_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(SettingsError, match="fedqueue ca create"):
        Authority.open(tmp_path)


def test_a_key_of_another_authority_is_refused(authority, tmp_path):
    Authority.create(tmp_path / "other", name="other")
    (tmp_path / "ca" / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(SettingsError, match="is not the key of"):
        Authority.open(tmp_path / "ca")


def test_an_authority_whose_key_others_can_read_is_refused(authority, tmp_path):
    (tmp_path / "ca" / "ca.key").chmod(0o640)
    with pytest.raises(SettingsError, match="can be read by other users: chmod 600"):
        Authority.open(tmp_path / "ca")


def test_an_authority_that_was_cut_off_while_it_was_made_is_made_again(authority, tmp_path):
    (tmp_path / "ca" / "ca.key").unlink()
    assert Authority.create(tmp_path / "ca", name="again").issued() == []


@pytest.mark.parametrize("text", [b"", b'{"a": 1}', b'[{"user": "a"}]', b"[1]"])
def test_a_list_of_certificates_that_is_none_is_named(authority, tmp_path, text):
    (tmp_path / "ca" / "issued.json").write_bytes(text)
    with pytest.raises(SettingsError, match=r"issued\.json"):
        authority.issued()


def test_a_request_made_elsewhere_gets_a_certificate_for_its_own_key(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = read(authority.sign_request(request(key, "bank-a"), user="bank-a"))
    assert certificate.public_key() == key.public_key()
    assert list(extension(certificate, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_a_request_cannot_ask_for_more_than_its_name(authority):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "aggregator"), x509.NameAttribute(NameOID.COMMON_NAME, "bank-a")]
    )
    asked = x509.CertificateSigningRequestBuilder().subject_name(subject)
    asked = asked.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    asked = asked.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem = asked.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    certificate = read(authority.sign_request(pem, user="bank-a"))
    assert certificate.subject.rfc4514_string() == "CN=bank-a"
    assert not extension(certificate, x509.BasicConstraints).value.ca
    with pytest.raises(x509.ExtensionNotFound):
        extension(certificate, x509.SubjectAlternativeName)


@pytest.mark.parametrize(("names", "said"), [(["bank-b"], "bank-b"), ([], "nobody"), (["bank-a", "aggregator"], "aggregator")])
def test_a_request_for_another_name_is_refused(authority, names, said):
    key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(SettingsError, match=f"names .*{said}.*, not bank-a"):
        authority.sign_request(request(key, *names), user="bank-a")


def test_a_request_for_somebody_else_s_key_is_refused(authority):
    mine, foreign = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    honest = x509.load_pem_x509_csr(request(mine, "bank-a"))
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = honest.public_bytes(serialization.Encoding.DER)
    forged = der.replace(mine.public_key().public_bytes(*spki), foreign.public_key().public_bytes(*spki))
    pem = x509.load_der_x509_csr(forged).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(SettingsError, match="not signed with its own key"):
        authority.sign_request(pem, user="bank-a")


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 1024), ec.generate_private_key(ec.SECP192R1()), ed25519.Ed25519PrivateKey.generate()],
    ids=["rsa-1024", "p-192", "ed25519"],
)
def test_a_request_with_a_weak_or_unusual_key_is_refused(authority, key):
    with pytest.raises(SettingsError, match="P-256"):
        authority.sign_request(request(key, "bank-a"), user="bank-a")


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"])
def test_what_is_no_request_is_refused(authority, pem):
    with pytest.raises(SettingsError, match="not a certificate request"):
        authority.sign_request(pem, user="bank-a")


def revoked_serials(folder) -> set[int]:
    return {each.serial_number for each in x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())}


def test_revoking_a_user_lists_every_certificate_it_has_and_nobody_else_s(authority, tmp_path):
    own = {read(authority.issue("bank-a").certificate).serial_number for _ in range(2)}
    authority.issue("bank-b")
    assert revoked_serials(tmp_path / "ca") == set()
    assert {each.serial for each in authority.revoke("bank-a")} == own
    assert revoked_serials(tmp_path / "ca") == own
    crl = x509.load_pem_x509_crl((tmp_path / "ca" / "crl.pem").read_bytes())
    assert crl.is_signature_valid(read(authority.certificate).public_key())
    assert authority.revoke("bank-a") == []
    assert {each.user for each in authority.issued() if each.revoked is None} == {"bank-b"}


# Each from `openssl x509 -noout -hash` over a certificate with that common name.
HASHES = {"Late Payment Federation": "72c034df", "Zürcher  Überbank & Söhne ÄÖ": "8a94a5e4", "test": "756b76dc"}


@pytest.mark.parametrize(("name", "expected"), HASHES.items(), ids=["ascii", "umlauts", "short"])
def test_the_list_of_the_revoked_has_the_name_under_which_openssl_looks_for_it(tmp_path, name, expected):
    authority = Authority.create(tmp_path, name=name)
    assert [file.name for file in authority.revocations.iterdir()] == [f"{expected}.r0"]
    authority.issue("bank-a")
    authority.revoke("bank-a")
    (listed,) = authority.revocations.iterdir()
    assert listed.read_bytes() == (tmp_path / "crl.pem").read_bytes()
    assert len(x509.load_pem_x509_crl(listed.read_bytes())) == 1


def test_a_certificate_issued_after_a_revocation_holds(authority, tmp_path):
    authority.issue("bank-a")
    authority.revoke("bank-a")
    fresh = read(authority.issue("bank-a").certificate)
    assert fresh.serial_number not in revoked_serials(tmp_path / "ca")
    assert len(revoked_serials(tmp_path / "ca")) == 1


def test_a_private_key_is_not_printed(authority):
    issued = authority.issue("bank-a")
    assert b"PRIVATE" in issued.key
    assert "PRIVATE" not in repr(issued)
    assert "PRIVATE" not in str(Issued(b"certificate", issued.key))
