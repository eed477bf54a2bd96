"""Who leads when several want to: one token, one claim of each epoch."""

import threading
from contextlib import closing
from types import SimpleNamespace

import pytest

from aggregator_worker.leadership import Leadership, LeadLostError
from broker_config.streams import publish_claim, publish_record
from broker_config.topology import LEAD, LINEAGE, update_queue
from shared.broker import Delivery, Message
from shared.messages import manifest_record
from tests.builders import a_claim, a_plan, a_record
from tests.running import Hand, begin


def leadership(broker, name="test", **changes) -> Leadership:
    return Leadership(broker, claimant=name, stopping=lambda: False, **changes)


def leading(server) -> Leadership:
    lead = leadership(server.connect("aggregator"))
    lead.take_token()
    lead.claim()
    return lead


def published(lead: Leadership, broker, epoch: int):
    """A manifest after the head, which settles nothing."""
    head = lead.reader.current()[0]
    manifest = head.manifest.model_copy(update={"previous": head.hash, "phase_reason": f"epoch {epoch}"})
    record = manifest_record(epoch, manifest, head.model_at)
    publish_record(broker, record)
    return record


def repeated(lead: Leadership, broker) -> None:
    head = lead.reader.current()[0]
    record = manifest_record(lead.epoch, head.manifest, head.model_at)
    publish_record(broker, record)
    lead.read_back(record)


def test_of_two_who_claim_one_epoch_the_second_gives_up(broker_server):
    begin(broker_server, a_plan())
    mine, rival = broker_server.connect("aggregator"), broker_server.connect("aggregator")
    lead = leadership(mine)
    lead.take_token()
    publish_claim(rival, a_claim(2, "rival", after=lead.reader.read_to))  # it had read as far as we have
    with pytest.raises(LeadLostError, match="claimed this epoch first"):
        lead.claim()
    assert lead.reader.lineage.epoch == 2


def test_a_claimant_who_came_first_and_died_is_passed_over_by_the_next_epoch(broker_server):
    begin(broker_server, a_plan())
    publish_claim(broker_server.connect("aggregator"), a_claim(2, "dead", after=1))
    lead = leading(broker_server)
    assert lead.epoch == 3
    repeated(lead, lead._broker)
    assert lead.reader.current()[0].epoch == 3


def test_what_the_deposed_leader_wrote_before_the_claim_is_the_head_that_is_taken_over(broker_server):
    begin(broker_server, a_plan())
    former = leading(broker_server)
    broker = broker_server.connect("aggregator")
    repeated(former, broker)
    successor = leadership(broker_server.connect("aggregator"))
    former._broker.close()
    successor.take_token()
    last = published(former, broker, 2)  # after the successor has read the lineage, before it claims
    successor.claim()
    assert successor.reader.current()[0].hash == last.hash
    late = published(successor, broker, 2)
    repeated(successor, successor._broker)
    assert successor.reader.current()[0].hash == last.hash != late.hash


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_claim_that_comes_late_disturbs_nobody(broker_server, epoch):
    begin(broker_server, a_plan())
    lead = leading(broker_server)
    publish_claim(broker_server.connect("aggregator"), a_claim(epoch, "late", after=0))
    lead.read_back(published(lead, lead._broker, 2))
    assert lead.receive(0.0) is None


def test_a_higher_claim_ends_the_lead(broker_server):
    begin(broker_server, a_plan())
    lead = leading(broker_server)
    publish_claim(broker_server.connect("aggregator"), a_claim(3, "rival", after=2))
    with pytest.raises(LeadLostError, match="higher epoch"):
        lead.receive(5.0)


def test_a_manifest_behind_a_higher_claim_is_not_taken_for_committed(broker_server):
    begin(broker_server, a_plan())
    lead, rival = leading(broker_server), broker_server.connect("aggregator")
    publish_claim(rival, a_claim(3, "rival", after=2))
    with pytest.raises(LeadLostError):
        lead.read_back(published(lead, rival, 2))


def test_updates_wait_in_their_queue_while_a_manifest_is_read_back(broker_server):
    begin(broker_server, a_plan())
    lead, hand = leading(broker_server), Hand(broker_server, "bank-a")
    lead._broker.consume(update_queue("bank-a"), prefetch=8)
    hand.send(lead.reader.current()[0], 1, 1, 1, 1)
    head = lead.reader.current()[0]
    record = manifest_record(2, head.manifest.model_copy(update={"previous": head.hash}), head.model_at)
    late = threading.Timer(0.3, publish_record, (broker_server.connect("aggregator"), record))
    late.start()
    lead.read_back(record)
    late.join()
    assert not lead._waiting
    delivery = lead.receive(5.0)
    assert delivery is not None
    assert delivery.queue == update_queue("bank-a")


@pytest.mark.parametrize("versions", [5, 70])
def test_the_last_records_of_the_chain_are_remembered_however_far_back_it_was_read(broker_server, versions):
    broker, record = broker_server.connect("aggregator"), a_record(0)
    publish_claim(broker, a_claim(1))
    chain = []
    for version in range(versions):
        chain.append(record)
        publish_record(broker, record)
        # without a whole table, a reader looks back twice as far, and is told of the last ones again
        record = a_record(version + 1, after=record, whole=False, plan=None, table={})
    lead = leading(broker_server)
    assert [each.hash for each in lead.recent] == [each.hash for each in chain[-16:]]


def test_records_that_a_reader_tells_again_are_remembered_once(broker_server):
    lead, chain = leadership(broker_server.connect("aggregator")), [a_record(7)]
    while len(chain) < 5:
        chain.append(a_record(7 + len(chain), after=chain[-1]))
    delivery = Delivery(LINEAGE, 1, Message(b"", "manifest", "", {"at_ms": 5}), None)
    for record in [*chain, *chain]:  # where retention has cut a lineage, looking further back gives the same
        lead.reader._on_record(record, delivery)
    assert list(lead.recent) == chain


def test_the_token_comes_back_to_its_holder_though_a_standby_waits_for_it(broker_server):
    begin(broker_server, a_plan())
    clock = SimpleNamespace(now=0.0)
    holder = leadership(broker_server.connect("aggregator"), clock=lambda: clock.now)
    holder.take_token()
    with closing(broker_server.connect("aggregator")) as standby:
        standby.consume(LEAD, prefetch=1)
        for _ in range(30):  # RabbitMQ 4 drops what was given back more than 20 times, where nothing else is said
            token = holder._token
            clock.now += 10.0
            holder.refresh_token(5.0)
            holder.refresh_token(5.0)  # not again while it is on its way
            while holder._token is token:
                assert holder.receive(0.1) is None
            assert standby.receive(0.0) is None
        holder.claim()
        holder._broker.close()
        token = standby.receive(20.0)
        assert token is not None
        assert token.queue == LEAD


def test_the_lineage_is_followed_while_the_token_is_away(broker_server):
    begin(broker_server, a_plan())
    lead, rival = leading(broker_server), broker_server.connect("aggregator")
    lead.refresh_token(-1.0)
    publish_claim(rival, a_claim(7, "rival", after=2))
    with pytest.raises(LeadLostError):
        lead.read_back(published(lead, rival, 2))
    assert lead.reader.lineage.epoch == 7
