import os
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, SecretStr

from shared.errors import SettingsError
from shared.settings import WorkerSettings, load

PATH = Path("/etc/fedqueue/bank-a.toml")


class Broker(BaseModel):
    model_config = ConfigDict(extra="forbid")

    host: str
    port: int = 5671
    password_file: Path | None = None
    password: SecretStr = SecretStr("")


class Example(WorkerSettings):
    broker: Broker
    state_folder: Path
    rate: float = 0.5


GOOD = 'state_folder = "state"\n[broker]\nhost = "rabbit"\npassword_file = "secrets/pw"\n'


@pytest.fixture(autouse=True)
def clean_environment():
    before = dict(os.environ)
    for name in [each for each in os.environ if each.startswith("FEDQUEUE_")]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def test_paths_are_relative_to_the_settings_file():
    settings = load(Example, GOOD, path=PATH)
    assert settings.state_folder == Path("/etc/fedqueue/state")
    assert settings.broker.password_file == Path("/etc/fedqueue/secrets/pw")
    assert (settings.broker.host, settings.broker.port, settings.rate) == ("rabbit", 5671, 0.5)


def test_an_absolute_path_stays_as_it_is():
    assert load(Example, GOOD.replace('"state"', '"/var/lib/x"'), path=PATH).state_folder == Path("/var/lib/x")


def test_the_environment_wins_over_the_file():
    os.environ["FEDQUEUE_BROKER__PORT"] = "9999"
    os.environ["FEDQUEUE_RATE"] = "0.25"
    settings = load(Example, GOOD, path=PATH)
    assert (settings.broker.host, settings.broker.port, settings.rate) == ("rabbit", 9999, 0.25)


def test_the_environment_alone_is_enough():
    os.environ["FEDQUEUE_BROKER__HOST"] = "elsewhere"
    os.environ["FEDQUEUE_STATE_FOLDER"] = "/data"
    assert load(Example, "", path=PATH).broker.host == "elsewhere"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD + "prot = 1\n", "unknown key 'broker.prot'"),
        ("colour = 1\n" + GOOD, "unknown key 'colour'; remove it or correct its spelling"),
        (GOOD.replace('host = "rabbit"\n', ""), "'broker.host' is missing; add it, or set FEDQUEUE_BROKER__HOST"),
        ("rate = 'fast'\n" + GOOD, "key 'rate'"),
        ("rate = \n", "bank-a.toml: not TOML"),
    ],
)
def test_a_wrong_file_is_explained_in_a_sentence(text, says):
    with pytest.raises(SettingsError, match=says):
        load(Example, text, path=PATH)


def test_each_wrong_key_has_a_line_of_its_own():
    with pytest.raises(SettingsError) as caught:
        load(Example, "colour = 1\nrate = 'fast'\n", path=PATH)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith("/etc/fedqueue/bank-a.toml: ") for line in lines)


def test_a_wrong_value_is_not_repeated():
    with pytest.raises(SettingsError) as caught:
        load(Example, GOOD + "password = ['hunter2']\n", path=PATH)
    assert "broker.password" in str(caught.value)
    assert "hunter2" not in str(caught.value)
