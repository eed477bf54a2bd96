"""What becomes of both workers when their broker restarts, or has no memory or disk left."""

import time

import pytest

from tests.bad_days.conftest import Linked, events, watching
from tests.builders import a_plan
from tests.running import Leader, Watch, Worker, begin, local_data, require_each_once, require_replay, trained

pytestmark = pytest.mark.rabbitmq

TAKES_NOTHING = "the broker takes no messages: make room there, then this goes on by itself"
PAUSE_SECONDS = 0.3
"""A command to the broker takes seconds. At full speed the toy training arrives meanwhile, and rests on an unchanged model."""
ALARMS = {
    "memory": (("set_vm_memory_high_watermark", "absolute", "1MB"), ("set_vm_memory_high_watermark", "0.4")),
    "disk": (("set_disk_free_limit", "1000000GB"), ("set_disk_free_limit", "50MB")),
}


def unhurried():
    return local_data("bank-a", at_least=lambda: time.sleep(PAUSE_SECONDS))


@pytest.mark.parametrize("alarm", ALARMS)
def test_an_alarm_of_the_broker_is_waited_for_and_the_log_says_what_to_do(own_server, own_node, tmp_path, stack, said, alarm):
    begin(own_server, a_plan())
    watch = Watch(own_server.connect("operator"))
    stack.enter_context(Leader(own_server, tmp_path / "aggregator"))
    stack.enter_context(Worker(own_server, "bank-a", tmp_path, data=unhurried()))
    assert watch.until(lambda: watch.outcomes("bank-a"))
    raised, lifted = ALARMS[alarm]
    try:
        own_node.control(*raised)
        assert watch.until(lambda: events(said, TAKES_NOTHING))
        assert events(said, TAKES_NOTHING)[0]["reason"] == f"low on {alarm}"
    finally:
        own_node.control(*lifted)
    before = watch.entry("bank-a").watermark
    assert watch.until(lambda: watch.entry("bank-a").watermark >= before + 3)
    assert not events(said, "connection lost")
    require_each_once(watch)
    require_replay(watch, trained)


def test_an_alarm_that_lasts_is_told_again_with_each_try_until_it_is_over(
    own_server, own_node, link_to_own, tmp_path, stack, said
):
    begin(own_server, a_plan())
    watch = Watch(own_server.connect("operator"))
    impatient = Linked(own_server, link_to_own, blocked_timeout_seconds=1)
    stack.enter_context(Leader(impatient, tmp_path / "aggregator"))
    stack.enter_context(Worker(impatient, "bank-a", tmp_path, data=unhurried()))
    assert watch.until(lambda: watch.outcomes("bank-a"))
    raised, lifted = ALARMS["memory"]
    try:
        own_node.control(*raised)
        assert watch.until(lambda: [line for line in said if "out of memory or disk: free some there" in str(line.get("reason"))])
    finally:
        own_node.control(*lifted)
    before = watch.entry("bank-a").watermark
    assert watch.until(lambda: watch.entry("bank-a").watermark >= before + 2)
    require_each_once(watch)
    require_replay(watch, trained)


@pytest.mark.long
def test_both_workers_outlive_a_restart_of_their_broker(own_server, own_node, tmp_path, stack):
    begin(own_server, a_plan())
    watch = Watch(own_server.connect("operator"))
    leader = stack.enter_context(Leader(own_server, tmp_path / "aggregator"))
    worker = stack.enter_context(Worker(own_server, "bank-a", tmp_path))
    assert watch.until(lambda: watch.entry("bank-a").watermark >= 2)
    before = watch.entry("bank-a").watermark
    own_node.restart()
    again = watching(own_server)
    assert again.until(lambda: again.entry("bank-a").watermark >= before + 3)
    assert (leader.failure, worker.failure) == (None, None)
