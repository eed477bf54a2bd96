"""`fedqueue audit` tells which person ordered what in the web console."""

import json

import pytest
from typer.testing import CliRunner

from operator_console.cli import app
from operator_console.federation_folder import FederationFolder
from operator_console.web.trail import Trail
from shared.errors import StorageError

AGGREGATOR = {
    "timestamp": "2099-01-01T00:00:00Z",
    "event": "operation",
    "kind": "quarantine",
    "institution": "north",
    "applied": True,
}


@pytest.fixture
def folder(tmp_path):
    trail = Trail(FederationFolder(tmp_path).console / "audit.jsonl")
    trail.write("olga", "log in", "as operator", address="127.0.0.1")
    trail.write("north", "log in", "refused", address="10.0.0.1")
    trail.write("olga", "order quarantine north", "given")
    trail.write("olga", "order quarantine north", "applied at version 3")
    with trail.file.open("a") as file:
        file.write('nonsense\n[1]\n{"at": 3}\n{"at": "2026-11-21T18:00:00"\n')
    tmp_path.joinpath("logs").mkdir()
    tmp_path.joinpath("logs/aggregator.log").write_text(json.dumps(AGGREGATOR) + "\n")
    return tmp_path


def events(folder, *options):
    said = json.loads(CliRunner().invoke(app, ["audit", "--dir", str(folder), "--json", *options]).stdout)["events"]
    return [(each["source"], each["kind"], each["who"], each["proven"], each["tried"], each["got"]) for each in said]


def test_orders_stand_with_the_person_beside_what_the_aggregator_says(folder):
    assert events(folder) == [
        ("console", "refused", "north", False, "log in", "refused"),
        ("console", "order", "olga", True, "order quarantine north", "given"),
        ("console", "order", "olga", True, "order quarantine north", "applied at version 3"),
        ("aggregator", "order", "operator", True, "order quarantine north", "applied"),
    ]
    assert events(folder, "--connections")[0] == ("console", "connection", "olga", True, "log in", "as operator")


def test_a_user_of_the_console_with_the_name_of_an_institution_is_not_the_institution(folder):
    assert [each[:3] for each in events(folder, "--institution", "north")] == [
        ("console", "order", "olga"),
        ("console", "order", "olga"),
        ("aggregator", "order", "operator"),
    ]


def test_the_consoles_log_alone_is_enough_and_its_lines_are_plain_text(folder):
    folder.joinpath("logs/aggregator.log").unlink()
    Trail(folder / "console" / "audit.jsonl").write("olga", "order pause", "refused: \x1b[31m<b>red</b>\nforged")
    said = CliRunner().invoke(app, ["audit", "--dir", str(folder)]).stdout
    assert "olga  -  order pause -> refused: \N{REPLACEMENT CHARACTER}[31m<b>red</b>\N{REPLACEMENT CHARACTER}forged" in said
    assert f"4 events in {folder}/console/audit.jsonl (console)" in said


def test_the_newest_lines_come_first_and_a_long_log_is_read_from_its_end(folder):
    trail = Trail(folder / "console" / "audit.jsonl")
    with trail.file.open("a") as file:
        for number in range(3000):
            file.write(
                json.dumps({"at": "2026-11-21T18:00:00+00:00", "who": "x" * 60, "did": str(number), "got": "", "address": ""})
            )
            file.write("\n")
    assert [line["did"] for line in trail.newest(3)] == ["2999", "2998", "2997"]
    assert len(trail.newest(10_000)) < 2900
    assert Trail(folder / "nowhere").newest(3) == []


def test_a_line_that_cannot_be_written_is_an_error_that_says_where(tmp_path):
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"audit.jsonl cannot be written \(Is a directory\), so nothing was done"):
        Trail(tmp_path / "audit.jsonl").write("olga", "order pause", "given")
