"""The objects of a federation, and who may do what with them."""

import pytest

from broker_config.definitions import definitions, password_hash, permissions, users
from broker_config.topology import (
    DEAD_LETTERS,
    LEAD,
    LINEAGE,
    MODEL,
    STATE,
    Limits,
    checked_institution,
    control_queue,
    entrance,
    journal_queue,
    topology,
    update_queue,
)
from shared.errors import SettingsError


def queues(*institutions, **limits):
    return {queue.name: queue for queue in topology(institutions, Limits(**limits)).queues}


def definition(name, **limits):
    (found,) = [policy.definition for policy in topology(["x"], Limits(**limits)).policies if policy.applies_to(name)]
    return found


def test_every_queue_has_one_fanout_exchange_in_front_of_it():
    objects = topology(["bank-a", "bank-b"])
    kinds = {exchange.name: exchange.kind for exchange in objects.exchanges}
    assert set(kinds.values()) == {"fanout"}
    assert {binding.queue for binding in objects.bindings} == {queue.name for queue in objects.queues}
    assert len(objects.bindings) == len(objects.queues) == 10
    assert all(binding.exchange in kinds for binding in objects.bindings)


def test_only_update_queues_share_the_name_of_their_exchange():
    assert entrance("fl.upd.bank-a") == "fl.upd.bank-a"
    assert entrance(MODEL) == "fl.model.in"
    assert entrance(control_queue("bank-a")) == "fl.ctl.bank-a.in"
    assert entrance(DEAD_LETTERS) == "fl.dlx"


def test_no_institution_can_bind_what_it_reads_to_what_it_writes():
    objects = topology(["a", "b"])
    names = {each.name for each in (*objects.exchanges, *objects.queues)}
    exchanges = {each.name for each in objects.exchanges}
    for right in permissions(objects.institutions):
        if right.user in objects.institutions:
            assert {name for name in names if right.may_write(name)} == {update_queue(right.user)}
            assert not [name for name in exchanges if right.may_read(name)]


def test_an_institution_reads_the_lineage_the_model_and_its_own_hints_only():
    names = set(queues("a", "b"))
    (right,) = [right for right in permissions(["a", "b"]) if right.user == "a"]
    assert {name for name in names if right.may_read(name)} == {LINEAGE, MODEL, "fl.ctl.a"}
    assert right.configure == "^$"


def test_an_id_that_is_the_beginning_of_another_gives_no_right_to_it():
    (right,) = [right for right in permissions(["bank", "bank-2"]) if right.user == "bank"]
    assert not right.may_write("fl.upd.bank-2")
    assert not right.may_read("fl.ctl.bank-2")


def test_the_aggregator_reads_all_updates_and_writes_none():
    (right,) = [right for right in permissions(["a", "b_2"]) if right.user == "aggregator"]
    names = set(queues("a", "b_2"))
    assert {name for name in names if right.may_read(name)} == names - {DEAD_LETTERS, "fl.ctl.a", "fl.ctl.b_2"}
    assert not right.may_write("fl.upd.a")
    assert not right.may_write("fl.lead.in")
    assert right.may_write("fl.ctl.b_2.in")


@pytest.mark.parametrize("institution", ["", "a.b", "a b", "ä", "a/b", "x" * 65, "a\n", "aggregator", "operator", "admin"])
def test_what_cannot_be_a_user_and_a_part_of_a_pattern_is_no_institution(institution):
    with pytest.raises(SettingsError, match="cannot be an institution's id"):
        checked_institution(institution)


def test_an_id_of_64_characters_is_fine():
    assert checked_institution("Bank_1-" + "x" * 57) == "Bank_1-" + "x" * 57


def test_the_update_queue_holds_three_updates_and_then_refuses():
    limits = definition("fl.upd.x", update_bytes=1000)
    assert limits["max-length-bytes"] == 3000
    assert limits["overflow"] == "reject-publish"
    assert (limits["dead-letter-exchange"], limits["dead-letter-strategy"]) == ("fl.dlx", "at-least-once")


def test_the_dead_letters_never_refuse():
    assert definition(DEAD_LETTERS)["overflow"] == "drop-head"


@pytest.mark.parametrize("name", [LEAD, "fl.ops", DEAD_LETTERS, "fl.upd.x", "fl.ctl.x"])
def test_no_quorum_queue_has_a_delivery_limit_that_could_be_reached(name):
    assert definition(name)["delivery-limit"] >= 1_000_000


def test_the_lineage_is_kept_whole_and_the_blobs_are_not():
    assert "max-length-bytes" not in definition(LINEAGE)
    assert definition(MODEL, model_stream_bytes=7)["max-length-bytes"] == 7
    assert definition(STATE, state_stream_bytes=9)["max-length-bytes"] == 9
    assert definition(LINEAGE, lineage_stream_bytes=5)["max-length-bytes"] == 5


def test_a_journal_is_a_second_reader_of_the_update_exchange_and_off_by_default():
    assert journal_queue("x") not in queues("x")
    objects = topology(["x"], Limits(journal_stream_bytes=4096))
    assert ("fl.upd.x", journal_queue("x")) in [(binding.exchange, binding.queue) for binding in objects.bindings]
    assert definition(journal_queue("x"), journal_stream_bytes=4096)["max-length-bytes"] == 4096


def test_the_leaders_queue_has_a_single_active_consumer():
    assert queues("x")[LEAD].arguments["x-single-active-consumer"] is True


def test_a_password_hash_is_the_one_of_rabbitmqs_documentation():
    # rabbitmq.com/docs/passwords: salt 908DC60A, password test12
    assert password_hash("test12", bytes.fromhex("908DC60A")) == "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR"


def test_every_login_is_limited_and_only_watchers_have_tags():
    known = {user.name: user for user in users(["a"])}
    assert known["a"].tags == known["aggregator"].tags == ()
    assert known["viewer"].tags == known["operator"].tags == ("monitoring",)
    assert (known["a"].max_connections, known["a"].max_channels) == (8, 32)


def test_the_exported_definitions_name_everything_once():
    document = definitions(topology(["a"]), "fl", {"a": "hash", "aggregator": "hash"})
    assert [user["name"] for user in document["users"]] == ["aggregator", "a"]
    assert [right["user"] for right in document["permissions"]] == ["aggregator", "a"]
    assert {"fl.upd.a", "fl.model.in"} < {exchange["name"] for exchange in document["exchanges"]}
    assert {each["vhost"] for kind in ("queues", "bindings", "policies", "exchanges") for each in document[kind]} == {"fl"}


def test_the_operator_reads_what_a_replay_and_the_dead_letters_need_and_no_updates_on_their_way():
    (right,) = [right for right in permissions(["a"]) if right.user == "operator"]
    names = {queue.name for queue in topology(["a"], Limits(journal_stream_bytes=1)).queues}
    assert {name for name in names if right.may_read(name)} == {LINEAGE, MODEL, STATE, DEAD_LETTERS, "fl.jrn.a"}
    assert right.may_write("fl.ops.in")
    assert not right.may_write("fl.upd.a")


def test_no_institution_reads_a_journal_not_even_its_own():
    (right,) = [right for right in permissions(["a"]) if right.user == "a"]
    assert not right.may_read(journal_queue("a"))
