"""Whose signature each queue demands, and who can read what is sealed there."""

from dataclasses import replace

import pytest

from broker_config.topology import (
    DEAD_LETTERS,
    LINEAGE,
    MODEL,
    OPERATIONS,
    STATE,
    control_queue,
    journal_queue,
    update_queue,
)
from shared.broker import Delivery, Message
from shared.chunks import PLAIN
from shared.errors import ForgedMessageError, RejectedMessageError, SealedForOthersError, UnknownInstitutionError
from shared.keys import Identity
from tests.guarding import PARTIES, Keyring

LEADERS = {"operator", "aggregator"}
AUTHORS = {
    LINEAGE: LEADERS,
    MODEL: LEADERS,
    STATE: LEADERS,
    DEAD_LETTERS: {"aggregator"},
    OPERATIONS: {"operator"},
    update_queue("bank-a"): {"bank-a"},
    control_queue("bank-a"): {"aggregator"},
}
READERS = {
    MODEL: set(PARTIES),
    STATE: LEADERS,
    DEAD_LETTERS: LEADERS,
    OPERATIONS: LEADERS,
    update_queue("bank-a"): LEADERS,
}


def delivered(keyring: Keyring, queue: str, author: str, body: bytes = b"numbers") -> Delivery:
    message = keyring.guard(author).protected(queue, Message(body, "kind", "name", {"id": "x", "envelope": PLAIN}))
    return Delivery(queue, 1, message, user_id="aggregator" if queue == DEAD_LETTERS else author)


def believes(keyring: Keyring, queue: str, author: str, reader: str = "aggregator") -> bool:
    try:
        keyring.guard(reader).opened(delivered(keyring, queue, author))
    except ForgedMessageError:
        return False
    return True


@pytest.mark.parametrize("queue", AUTHORS)
def test_a_queue_is_believed_for_the_signatures_of_its_authors_and_no_others(queue):
    believed = {party for party in PARTIES if believes(Keyring(), queue, party)}
    assert believed == AUTHORS[queue]


@pytest.mark.parametrize("queue", READERS)
def test_what_is_sealed_is_opened_by_its_readers_and_no_others(queue):
    keyring = Keyring(sealed=True)
    author = min(AUTHORS[queue])
    delivery = delivered(keyring, queue, author)
    assert b"numbers" not in delivery.message.body
    for party in PARTIES:
        guard = keyring.guard("aggregator")
        guard.identity = keyring.identities[party]
        if party in READERS[queue]:
            opened = guard.opened(delivery)
            assert (opened.body, opened.headers["envelope"]) == (b"numbers", PLAIN)
        else:
            with pytest.raises(SealedForOthersError):
                guard.opened(delivery)


@pytest.mark.parametrize("queue", [LINEAGE, control_queue("bank-a")])
def test_lineage_and_hints_are_signed_and_readable(queue):
    keyring = Keyring(sealed=True)
    assert delivered(keyring, queue, "aggregator").message.body == b"numbers"


@pytest.mark.parametrize("queue", READERS)
def test_nobody_can_have_a_federation_that_seals_read_what_is_not(queue):
    sealing, author = Keyring(sealed=True), min(AUTHORS[queue])
    open_guard = replace(sealing.guard(author), trust=sealing.trust.model_copy(update={"sealed": False}))
    message = open_guard.protected(queue, Message(b"numbers", "kind", "name"))
    with pytest.raises(ForgedMessageError, match="it is not sealed"):
        sealing.guard("aggregator").opened(Delivery(queue, 1, message, user_id=author))


def test_an_institution_whose_key_is_not_known_is_a_stranger():
    keyring = Keyring()
    guard = keyring.guard("aggregator")
    guard.follow({}, ())
    with pytest.raises(UnknownInstitutionError, match="bank-a"):
        guard.opened(delivered(keyring, update_queue("bank-a"), "bank-a"))


def test_a_letter_that_the_broker_put_aside_is_its_authors():
    keyring = Keyring()
    message = delivered(keyring, update_queue("bank-a"), "bank-a").message
    guard = keyring.guard("operator")
    assert guard.opened(Delivery(DEAD_LETTERS, 1, message, user_id="bank-a")) is message
    for claimed in ("bank-b", "aggregator", None):
        with pytest.raises(RejectedMessageError):
            guard.opened(Delivery(DEAD_LETTERS, 1, message, user_id=claimed))


def test_a_journal_is_believed_for_a_former_key_and_an_update_queue_is_not():
    keyring, former = Keyring(), Identity.create()
    sender = replace(keyring.guard("bank-a"), identity=former)
    message = sender.protected(update_queue("bank-a"), Message(b"numbers", "update", "bank-a/1/1#0"))
    guard = keyring.guard("operator")
    with pytest.raises(ForgedMessageError):
        guard.opened(Delivery(journal_queue("bank-a"), 1, message, user_id="bank-a"))
    guard.trust = guard.trust.model_copy(update={"former": {"bank-a": (former.public.signing,)}})
    assert guard.opened(Delivery(journal_queue("bank-a"), 1, message, user_id="bank-a")).body == b"numbers"
    with pytest.raises(ForgedMessageError):
        guard.opened(Delivery(update_queue("bank-a"), 1, message, user_id="bank-a"))


def test_all_chunks_of_a_model_have_one_content_key_and_the_next_model_has_another():
    keyring = Keyring(sealed=True)
    guard = keyring.guard("aggregator")

    def wraps(identity: str) -> bytes:
        return guard.protected(MODEL, Message(b"numbers", "model", f"{identity}#0", {"id": identity})).body[:100]

    first = wraps("v1")
    assert wraps("v1") == first
    assert wraps("v2") != first
    assert wraps("v1") != first


def test_each_of_two_aggregator_hosts_has_keys_of_its_own():
    keyring, second = Keyring(sealed=True), Identity.create()
    both = {**keyring.trust.aggregators, "second": second.public}
    keyring.trust = keyring.trust.model_copy(update={"aggregators": both})
    hosts = [keyring.guard("aggregator"), replace(keyring.guard("aggregator"), identity=second)]
    for queue in (update_queue("bank-a"), STATE):
        author = keyring.guard("bank-a") if queue != STATE else hosts[0]
        message = author.protected(queue, Message(b"numbers", "kind", "name"))
        assert [host.opened(Delivery(queue, 1, message, user_id=None)).body for host in hosts] == [b"numbers", b"numbers"]
    manifest = hosts[1].protected(LINEAGE, Message(b"chain", "manifest", "name"))
    assert keyring.guard("bank-a").opened(Delivery(LINEAGE, 1, manifest, user_id="aggregator")).body == b"chain"
