"""Where the broker is and who we are there."""

import warnings

import pytest
from pydantic import ValidationError

from broker_config.connection import ConnectionSettings, address, connect
from shared.errors import BrokerUnavailableError, SettingsError

OPEN_TO_ALL = {"everybody_on_the_network_may_read_and_change_what_i_send": True}
CERTIFICATE = {"password": None, "ca_file": "ca.pem", "certificate_file": "certificate.pem", "key_file": "key.pem"}


def settings(**changes):
    return ConnectionSettings.model_validate({"url": "amqp://127.0.0.1:1/fl", "user": "bank-a", "password": "secret"} | changes)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://broker.example:5671/fl", ("broker.example", 5671, "fl")),
        ("amqp://broker", ("broker", 5672, "/")),
        ("amqp://broker/%2Ffl", ("broker", 5672, "/fl")),
        ("amqp://[::1]:5673/", ("::1", 5673, "/")),
        ("amqps://broker.example/fl", ("broker.example", 5671, "fl")),
    ],
)
def test_a_url_names_host_port_and_virtual_host(url, expected):
    assert address(url) == expected


@pytest.mark.parametrize(
    "url", ["", "broker:5672", "http://broker/fl", "amqp:///fl", "amqp://broker:x/fl", "amqp://broker:99999/"]
)
def test_what_is_not_an_amqp_url_is_a_wrong_setting(url):
    with pytest.raises(SettingsError, match="amqp://host:port/vhost"):
        address(url)


def test_a_url_with_a_password_is_refused_without_repeating_it():
    with pytest.raises(SettingsError) as caught:
        address("amqp://bank-a:hunter2@broker/fl")
    assert "hunter2" not in str(caught.value)


def test_settings_do_not_print_the_password():
    assert "secret" not in repr(settings())


@pytest.mark.parametrize("changes", [{"password": None}, {"password_file": "x"}, {"pasword": "x"}, {"heartbeat_seconds": 0}])
def test_settings_need_one_password_and_know_their_names(changes):
    with pytest.raises(ValidationError):
        settings(**changes)


def test_a_password_file_is_read_without_its_last_newline(tmp_path):
    file = tmp_path / "password"
    file.touch(mode=0o600)
    file.write_text(" a b \n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert settings(password=None, password_file=file).secret() == " a b "


def test_a_password_file_that_others_can_read_is_used_with_a_warning(tmp_path):
    file = tmp_path / "password"
    file.write_text("open")
    file.chmod(0o644)
    with pytest.warns(UserWarning, match="chmod 600"):
        assert settings(password=None, password_file=file).secret() == "open"


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_missing_or_unusable_password_file_is_named(tmp_path, content):
    file = tmp_path / "password"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=str(file)):
        settings(password=None, password_file=file).secret()


def test_no_broker_is_said_with_its_address():
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1"):
        connect(settings(), name="test")


def test_every_node_of_a_list_is_tried_and_named():
    with pytest.raises(BrokerUnavailableError, match=r"127\.0\.0\.1:1") as caught:
        connect(settings(url="amqp://127.0.0.1:1/fl, amqp://127.0.0.1:2/fl"), name="test")
    assert "127.0.0.1:2" in str(caught.value)


def test_an_unknown_host_is_a_broker_that_is_not_there():
    with pytest.raises(BrokerUnavailableError, match=r"no-such-host\.invalid:5672"):
        connect(settings(url="amqp://no-such-host.invalid/fl", **OPEN_TO_ALL), name="test")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"url": "amqps://broker/fl"}, "needs certificate_file, key_file and ca_file"),
        ({"url": "amqp://127.0.0.1/fl"} | CERTIFICATE, "write amqps://"),
        ({"url": "amqps://a/fl, amqp://127.0.0.1/fl"} | CERTIFICATE, "write amqps://"),
        ({"url": "amqps://broker/fl"} | CERTIFICATE | {"password": "secret"}, "exactly one of password"),
        ({"url": "amqps://broker/fl"} | CERTIFICATE | {"key_file": None}, "needs ca_file and key_file"),
        ({"url": "amqps://broker/fl"} | CERTIFICATE | {"ca_file": None}, "needs ca_file and key_file"),
        ({"ca_file": "ca.pem"}, "go with certificate_file"),
        ({"url": "http://broker/fl"}, "amqps://host:port/vhost"),
    ],
)
def test_a_login_goes_with_its_transport(changes, said):
    with pytest.raises(ValidationError, match=said):
        settings(**changes)


def test_a_certificate_is_a_login_of_its_own():
    tls = settings(url="amqps://broker/fl", **CERTIFICATE).tls
    assert tls is not None
    assert [file.name for file in (tls.authority, tls.certificate, tls.key)] == ["ca.pem", "certificate.pem", "key.pem"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "localhost", "[::1]"])
def test_what_stays_on_this_computer_needs_no_encryption(host):
    assert settings(url=f"amqp://{host}/fl").url == f"amqp://{host}/fl"


@pytest.mark.parametrize("host", ["broker.example.org", "10.0.0.7", "localhost.example.org", "[2001:db8::1]", "0.0.0.0"])
def test_a_connection_that_others_could_read_is_refused_unless_somebody_said_so_at_length(host):
    with pytest.raises(ValidationError, match="leaves this computer unencrypted"):
        settings(url=f"amqp://{host}/fl")
    assert settings(url=f"amqp://{host}/fl", **OPEN_TO_ALL).url == f"amqp://{host}/fl"


def test_one_remote_node_among_local_ones_is_enough_to_be_refused():
    with pytest.raises(ValidationError, match="leaves this computer unencrypted"):
        settings(url="amqp://127.0.0.1/fl,amqp://10.0.0.7/fl")


def test_a_url_that_was_changed_later_is_looked_at_again():
    with pytest.raises(SettingsError, match="leaves this computer unencrypted"):
        connect(settings().model_copy(update={"url": "amqp://10.0.0.7/fl"}), name="test")


def test_settings_that_are_refused_do_not_print_the_password():
    with pytest.raises(ValidationError) as caught:
        settings(password="hunter2", url="amqp://10.0.0.7/fl")
    assert "hunter2" not in str(caught.value)
