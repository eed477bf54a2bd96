"""Where the broker is and who we are there."""

import warnings

import pytest
from pydantic import ValidationError

from broker_config.connection import ConnectionSettings, address, connect
from shared.errors import BrokerUnavailableError, SettingsError


def settings(**changes):
    return ConnectionSettings.model_validate({"url": "amqp://127.0.0.1:1/fl", "user": "bank-a", "password": "secret"} | changes)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://broker.example:5671/fl", ("broker.example", 5671, "fl")),
        ("amqp://broker", ("broker", 5672, "/")),
        ("amqp://broker/%2Ffl", ("broker", 5672, "/fl")),
        ("amqp://[::1]:5673/", ("::1", 5673, "/")),
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
        connect(settings(url="amqp://no-such-host.invalid/fl"), name="test")
