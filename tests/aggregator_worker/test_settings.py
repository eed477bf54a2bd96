from pathlib import Path

import pytest

from aggregator_worker.settings import AggregatorSettings
from shared.errors import SettingsError
from shared.settings import load

TEXT = """
state_folder = "state"
run_secret_file = "run.secret"
members_file = "members.txt"

[broker]
url = "amqp://127.0.0.1/fl"
user = "aggregator"
password = "x"
"""


@pytest.fixture
def settings(tmp_path: Path) -> AggregatorSettings:
    (tmp_path / "state").mkdir()
    (tmp_path / "members.txt").write_text("bank-a\nbank-b\n")
    return load(AggregatorSettings, TEXT, path=tmp_path / "aggregator.toml")


def test_an_institution_admitted_while_it_runs_is_known_to_the_next_process(settings: AggregatorSettings, tmp_path: Path) -> None:
    settings.remember("bank-c")
    settings.remember("bank-c")
    settings.remember("bank-a")

    again = load(AggregatorSettings, TEXT, path=tmp_path / "aggregator.toml")
    assert again.members() == ["bank-a", "bank-b", "bank-c"]


def test_a_file_that_is_missing_empty_or_open_to_others_is_named(settings: AggregatorSettings, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"run\.secret: No such file"):
        settings.run_secret()
    (tmp_path / "run.secret").write_text("\n")
    with pytest.raises(SettingsError, match=r"chmod 600 .*run\.secret"):
        settings.run_secret()
    (tmp_path / "run.secret").chmod(0o600)
    with pytest.raises(SettingsError, match=r"run\.secret is empty"):
        settings.run_secret()
    (tmp_path / "members.txt").unlink()
    with pytest.raises(SettingsError, match=r"members\.txt: No such file"):
        settings.members()
