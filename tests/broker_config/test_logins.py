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
    assert load(tmp_path / "federation") == logins.model_copy(update={"folder": tmp_path / "federation"})
    assert "folder" not in file.read_text()
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


def over_tls(folder) -> Logins:
    bare = create(node="broker:5671", management="http://127.0.0.1:15672", admin_password="root-word", tls=True)
    save(bare.with_institutions(["bank-a"]), folder)
    return load(folder)


@pytest.mark.parametrize(
    ("user", "place"),
    [("operator", "tls/operator"), ("admin", "tls/admin"), ("aggregator", "aggregator"), ("bank-a", "institutions/bank-a")],
)
def test_over_tls_a_login_is_the_certificate_in_its_folder(tmp_path, user, place):
    (tmp_path / place).mkdir(parents=True)
    (tmp_path / place / "key.pem").touch()
    settings = over_tls(tmp_path).settings(user)
    assert (settings.url, settings.password) == ("amqps://broker:5671/fedqueue", None)
    assert settings.tls is not None
    assert settings.tls.certificate == tmp_path / place / "certificate.pem"
    assert settings.tls.authority == tmp_path / place / "ca.pem"


def test_over_tls_a_missing_certificate_is_named(tmp_path):
    with pytest.raises(SettingsError, match="no certificate and key of operator"):
        over_tls(tmp_path).settings("operator")


def test_over_tls_only_those_who_look_at_the_management_api_have_passwords(tmp_path):
    users = over_tls(tmp_path).users
    assert {name for name, word in users.items() if word} == {"admin", "operator", "viewer"}


def test_the_operator_signs_with_the_keys_of_the_federation_where_there_are_some(tmp_path):
    save(some_logins().with_institutions(["bank-a"]), tmp_path)
    assert load(tmp_path).settings("operator").keys_folder is None
    (tmp_path / "keys" / "operator").mkdir(parents=True)
    keys = {user: load(tmp_path).settings(user).keys_folder for user in ("operator", "admin", "aggregator", "bank-a")}
    own = tmp_path / "keys" / "operator"
    assert keys == {"operator": own, "admin": own, "aggregator": None, "bank-a": None}


def test_a_remote_broker_without_tls_is_refused_until_the_environment_says_that_everybody_may_read():
    environ = {"AMQP_URL": "amqp://root:p@broker.example/fl", "MANAGEMENT_URL": "http://broker.example:15672"}
    logins = logins_from_environment(environ)
    assert logins is not None
    with pytest.raises(SettingsError, match="leaves this computer unencrypted"):
        logins.settings("operator")
    allowed = logins_from_environment(
        environ | {"FEDQUEUE_BROKER__EVERYBODY_ON_THE_NETWORK_MAY_READ_AND_CHANGE_WHAT_I_SEND": "true"}
    )
    assert allowed is not None
    assert allowed.settings("operator").url == "amqp://broker.example/fl"


def test_an_existing_broker_with_tls_comes_from_the_environment(tmp_path):
    environ = {"AMQP_URL": "amqps://root:p@broker:5671/fl", "MANAGEMENT_URL": "https://broker:15671"}
    logins = logins_from_environment(environ, folder=tmp_path)
    assert logins is not None
    assert (logins.amqp, logins.users["root"], logins.users["aggregator"]) == ("amqps://broker:5671/fl", "p", "")
    (tmp_path / "tls" / "root").mkdir(parents=True)
    (tmp_path / "tls" / "root" / "key.pem").touch()
    tls = logins.settings("root").tls
    assert tls is not None
    assert tls.key == tmp_path / "tls" / "root" / "key.pem"
