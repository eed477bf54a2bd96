"""One institution floods; a real leader lets it fill its own queue, and the others lose nothing."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from benchmarks.flooder import FLOODS
from broker_config.connection import address
from broker_config.topology import DEAD_LETTERS, update_queue
from shared.broker import Message
from shared.errors import PublishRefusedError
from shared.plan import Defence
from tests.builders import RUN, a_plan, small_limits
from tests.running import Hand, Leader, Watch, begin, deltas_of, require_each_once, require_replay

HONEST = ("bank-b", "bank-c")
UPDATES = 10
PLAN = a_plan(limits=small_limits(useless_per_minute=60, letters_per_day=7), defence=Defence(strikes=3))


@contextmanager
def flooding(server, attack: str, folder: Path) -> Iterator[None]:
    """While inside, bank-a's own program does its worst, with bank-a's own login."""
    login, facts = server.logins.settings("bank-a"), folder / "flooder.json"
    host, port, vhost = address(login.url)
    told = {"host": host, "port": port, "vhost": vhost, "user": login.user, "password": login.secret(), "institution": "bank-a"}
    facts.write_text(json.dumps({**told, "run_id": RUN, "attack": attack, "result": str(folder / "sent.json")}))
    with subprocess.Popen([sys.executable, "-m", "benchmarks.flooder", str(facts)]) as process:
        yield
        assert process.poll() is None, "it floods to the end"
        process.terminate()


def everybody_else_is_folded(server, watch: Watch, hands: dict[str, Hand]) -> None:
    for sequence in range(1, UPDATES + 1):
        for hand in hands.values():
            hand.send(watch.head, sequence, sequence, 1, 2)
        assert watch.until(lambda number=sequence: all(watch.entry(name).watermark == number for name in hands))
    for name in hands:
        assert watch.outcomes(name) == [(number, "aggregated") for number in range(1, UPDATES + 1)]


@pytest.mark.rabbitmq
@pytest.mark.parametrize("attack", [attack for attack in FLOODS if attack != "updates"])
def test_the_others_lose_nothing_by_a_flood_and_its_letters_stay_few(rabbitmq_server, tmp_path, attack):
    server = rabbitmq_server
    begin(server, PLAN)
    watch, hands = Watch(server.connect("operator")), {name: Hand(server, name) for name in HONEST}
    with capture_logs() as logs, Leader(server, tmp_path / "aggregator"), flooding(server, attack, tmp_path):
        assert watch.until(lambda: [log for log in logs if log["event"] == "not listened to"])
        everybody_else_is_folded(server, watch, hands)
    assert server.depth(DEAD_LETTERS) <= 7 * 4  # an upload of 64 KiB is four chunks
    assert server.depth(update_queue("bank-b")) == server.depth(update_queue("bank-c")) == 0
    # a minute's worth at once, half of it once or twice more while this test goes on
    assert len([log for log in logs if log.get("institution") == "bank-a"]) < 200
    require_each_once(watch)
    require_replay(watch, deltas_of(hands))


def test_an_institution_that_sends_more_updates_than_it_may_is_slowed_down_and_loses_none(broker_server, tmp_path):
    begin(broker_server, a_plan(limits=small_limits(updates_per_hour=1800)))
    watch, hand = Watch(broker_server.connect("operator")), Hand(broker_server, "bank-a")
    with capture_logs() as logs, Leader(broker_server, tmp_path, clock=lambda: 5 * time.monotonic()):
        for sequence in range(1, 37):  # a minute's worth is 30
            hand.send(watch.head, sequence, 1, 2, 3)
        assert watch.until(lambda: watch.entry("bank-a").watermark == 36)
    assert watch.outcomes("bank-a") == [(number, "aggregated") for number in range(1, 37)]
    assert [log["event"] for log in logs if "listened to" in log["event"]][:2] == ["not listened to", "listened to again"]
    require_replay(watch, deltas_of({"bank-a": hand}))


def test_the_queue_of_one_that_is_not_listened_to_takes_no_more_than_its_limit(broker_server, tmp_path):
    begin(broker_server, a_plan(limits=small_limits(useless_per_minute=1)))
    watch, hostile, honest = (
        Watch(broker_server.connect("operator")),
        Hand(broker_server, "bank-a"),
        Hand(broker_server, "bank-b"),
    )

    def flood() -> None:
        for _ in range(20_000):
            hostile.publish(Message(b"", "update", "x"))

    with Leader(broker_server, tmp_path):
        with pytest.raises(PublishRefusedError, match=r"bank-a"):
            flood()
        honest.send(watch.head, 1, 1, 2, 3)
        assert watch.until(lambda: watch.entry("bank-b").counters.aggregated == 1)
