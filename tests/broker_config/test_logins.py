"""The file of logins."""

import stat

import pytest

from broker_config.logins import Logins, create, load, logins_from_environment, save
from broker_config.topology import Limits
from shared.errors import SettingsError


def some_logins() -> Logins:
    return create(node="127.0.0.1:5672", management="http://127.0.0.1:15672", admin_password="root-word")


def test_what_is_saved_is_loaded_and_only_its_owner_can_read_it(tmp_path):
    logins = some_logins().with_institutions(["bank-a"]).model_copy(update={"limits": Limits(update_bytes=7)})
    file = save(logins, tmp_path / "federation")
    assert load(tmp_path / "federation") == logins
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [each.name for each in file.parent.iterdir()] == ["broker.json"]


def test_every_login_has_a_password_of_its_own():
    logins = some_logins().with_institutions(["bank-a", "bank-b"])
    assert logins.users.keys() == {"admin", "aggregator", "operator", "viewer", "bank-a", "bank-b"}
    assert len(set(logins.users.values())) == 6
    assert min(len(word) for name, word in logins.users.items() if name != "admin") >= 32
    assert logins.institutions == ["bank-a", "bank-b"]


def test_adding_an_institution_keeps_the_passwords_of_the_others():
    before = some_logins().with_institutions(["bank-a"])
    after = before.with_institutions(["bank-a", "bank-b"])
    assert after.users["bank-a"] == before.users["bank-a"]
    assert after.without("bank-b") == before


def test_passwords_are_not_printed():
    logins = some_logins()
    assert "root-word" not in repr(logins)
    assert logins.users["operator"] not in repr(logins)


def test_a_login_that_is_not_there_is_named():
    with pytest.raises(SettingsError, match="bank-x"):
        some_logins().settings("bank-x")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SettingsError, match=r"broker\.json"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", '{"amqp": 1}', "[]"])
def test_a_file_that_holds_no_logins_is_refused(tmp_path, text):
    (tmp_path / "broker.json").write_text(text)
    with pytest.raises(SettingsError, match="not a file of logins"):
        load(tmp_path)


def test_an_existing_broker_comes_from_the_environment():
    environ = {"AMQP_URL": "amqp://root:p%40ss@broker:5673/shared", "MANAGEMENT_URL": "http://broker:15672/"}
    logins = logins_from_environment(environ)
    assert logins is not None
    assert (logins.amqp, logins.management, logins.vhost) == ("amqp://broker:5673/shared", "http://broker:15672", "shared")
    assert (logins.administrator, logins.users["root"]) == ("root", "p@ss")
    fresh = logins_from_environment(environ, vhost="fedqueue-1")
    assert fresh is not None
    assert fresh.amqp == "amqp://broker:5673/fedqueue-1"
    assert logins.institutions == []


def test_without_the_variables_there_is_no_existing_broker():
    assert logins_from_environment({"HOME": "/root"}) is None


@pytest.mark.parametrize(
    "environ",
    [
        {"AMQP_URL": "amqp://root:p@broker/"},
        {"MANAGEMENT_URL": "http://broker:15672"},
        {"AMQP_URL": "amqp://broker/", "MANAGEMENT_URL": "http://broker:15672"},
        {"AMQP_URL": "amqp://root:p@broker/", "MANAGEMENT_URL": "broker:15672"},
    ],
)
def test_half_an_existing_broker_is_a_wrong_setting(environ):
    with pytest.raises(SettingsError, match=r"AMQP_URL|MANAGEMENT_URL"):
        logins_from_environment(environ)
