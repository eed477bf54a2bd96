"""Admission, removal and return of an institution: broker, lineage and folder agree at every step."""

import tomllib

import pytest
from typer.testing import CliRunner

from broker_config.connection import connect
from broker_config.logins import load
from broker_config.provision import check
from broker_config.streams import records_of
from broker_config.topology import update_queue
from operator_console.federation_folder import FederationFolder, InstitutionFacts
from operator_console.init_command import init
from operator_console.institution_commands import (
    add,
    admit,
    institution_app,
    list_institutions,
    quarantine,
    release,
    remove,
    rows,
    state_of,
)
from operator_console.operation_commands import NoAnswerError, OrderRefusedError, order_desk
from shared.broker import Message
from shared.errors import FederationError, SettingsError
from shared.messages import Entry
from tests.leading import leading


@pytest.fixture
def folder(broker_folder):
    init(task="heart-disease", institution=["north", "south"], folder=broker_folder)
    return broker_folder


def listed(folder):
    federation = FederationFolder(folder)
    with order_desk(federation) as desk:
        return {row[0]: row[1:-1] for row in rows(federation, desk)}


def kit(folder, institution):
    return tomllib.loads((folder / "institutions" / institution / "client.toml").read_text())


def as_institution(folder, institution):
    settings = load(folder).settings(institution)
    return connect(settings, name=f"test/{institution}")


@pytest.mark.rabbitmq
def test_an_admitted_institution_has_everything_it_needs(folder, capsys):
    with leading(folder):
        add("east", title="The Eastern Clinic", folder=folder)
    assert "east is a member, incarnation 1" in capsys.readouterr().out
    assert listed(folder)["east"] == ("The Eastern Clinic", "never connected", "0", "-", "1", "0")
    assert (folder / "members.txt").read_text().split() == ["north", "south", "east"]
    settings = kit(folder, "east")
    assert settings["run_id"] == FederationFolder(folder).facts().run_id
    assert (settings["incarnation"], settings["state_folder"]) == (1, ".")
    assert (folder / "institutions/east/task.toml").read_text() == (folder / "task.toml").read_text()
    assert (folder / "institutions/east/password").read_text().strip() == load(folder).users["east"]
    assert check(load(folder), ["east", "north", "south"]) == []
    broker = as_institution(folder, "east")
    broker.publish(update_queue("east"), Message(b"anything", "update", "1"))
    broker.close()


@pytest.mark.rabbitmq
def test_a_removed_institution_is_locked_out_and_returns_as_the_next_incarnation(folder):
    south = as_institution(folder, "south")
    with leading(folder):
        remove("south", folder=folder)
        with pytest.raises(FederationError):
            south.publish(update_queue("south"), Message(b"too late", "update", "1"))
        south.close()
        assert listed(folder)["south"] == ("south", "removed", "0", "-", "1", "0")
        assert (folder / "members.txt").read_text().split() == ["north"]
        assert "south" not in load(folder).users
        assert check(load(folder), ["north"]) == []
        remove("south", folder=folder)

        add("south", folder=folder)
        assert listed(folder)["south"] == ("south", "never connected", "0", "-", "2", "0")
        settings = kit(folder, "south")
        assert (settings["incarnation"], settings["state_folder"]) == (2, "incarnation-2")
        as_institution(folder, "south").close()
        with pytest.raises(SettingsError, match="south is a member already"):
            add("south", folder=folder)


@pytest.mark.rabbitmq
def test_a_refused_admission_says_why_and_fails(folder, capsys):
    with leading(folder):
        before = listed(folder)
        for name, sentence in {"a b": "cannot be an institution's id", "operator": "another login of that name"}.items():
            with pytest.raises(SettingsError, match=sentence):
                add(name, folder=folder)
        with pytest.raises(SettingsError, match="west is not a member"):
            remove("west", folder=folder)
        assert listed(folder) == before
    capsys.readouterr()
    list_institutions(folder)
    shown = capsys.readouterr().out
    assert "north" in shown
    assert "never connected" in shown


@pytest.mark.rabbitmq
def test_an_institution_that_the_aggregator_refuses_gets_no_login(folder):
    federation = FederationFolder(folder)
    with order_desk(federation) as desk, order_desk(federation) as other:
        for kind in ("admit", "remove"):
            with pytest.raises(NoAnswerError):
                other.give(kind, timeout_seconds=0.1, institution="east", incarnation=5)
        with leading(folder), pytest.raises(OrderRefusedError, match="incarnation 1 is not above 5"):
            admit(federation, desk, InstitutionFacts(id="east", title="east"))
    assert "east" not in load(folder).users
    assert (folder / "members.txt").read_text().split() == ["north", "south"]
    assert check(load(folder), ["north", "south"]) == []


@pytest.mark.rabbitmq
def test_an_institution_goes_into_quarantine_and_comes_out_and_both_are_told(folder, capsys):
    with leading(folder):
        quarantine("south", reason="its updates grow", folder=folder)
        assert "south is in quarantine: nothing more of it is folded." in capsys.readouterr().out
        assert listed(folder)["south"] == ("south", "quarantined", "0", "-", "1", "0")
        quarantine("south", folder=folder)
        assert "south is in quarantine already" in capsys.readouterr().out
        release("south", folder=folder)
        assert "south is released: its updates are folded again" in capsys.readouterr().out
        assert listed(folder)["south"][1] == "never connected"
        release("south", folder=folder)
        assert capsys.readouterr().out == "south is not in quarantine\n"
        remove("south", folder=folder)
        for order in (quarantine, release):
            with pytest.raises(SettingsError, match="south was removed: nothing of it is folded"):
                order("south", folder=folder)
            with pytest.raises(SettingsError, match="west is not a member: there "):
                order("west", folder=folder)
    broker = connect(load(folder).settings("operator"), name="test/operator")
    told = [(each.kind, each.applied, each.reason) for record in records_of(broker) for each in record.manifest.operations]
    broker.close()
    assert told == [("quarantine", True, "its updates grow"), ("release", True, ""), ("remove", True, "")]


def test_a_reason_that_no_manifest_can_hold_is_refused_before_anything_is_ordered():
    refused = CliRunner().invoke(institution_app, ["quarantine", "south", "--reason", "x" * 201])
    assert refused.exit_code == 2
    assert "it has 201 characters, and a manifest holds 200" in " ".join(refused.output.split())


REFUSING = Entry(incarnation=1, nonce="12" * 8, standing="plan_refused", standing_limit="max_epsilon", standing_plan="d" * 64)


@pytest.mark.parametrize(
    ("entry", "state"),
    [
        (None, "not admitted yet"),
        (Entry(incarnation=1), "never connected"),
        (Entry(incarnation=1, nonce="12" * 8), "member"),
        (Entry(incarnation=1, nonce="12" * 8, standing="budget_spent", standing_plan="d" * 64), "budget spent"),
        (REFUSING, "refuses the plan: max_epsilon"),
        (REFUSING.model_copy(update={"standing_plan": "e" * 64}), "member"),
        (Entry(incarnation=1, nonce="12" * 8, quarantined=True), "quarantined"),
        (Entry(incarnation=1, nonce="12" * 8, quarantined=True, removed=True), "removed"),
    ],
)
def test_the_state_of_an_institution_is_told_in_words(entry, state):
    assert state_of(entry, "d" * 64) == state
