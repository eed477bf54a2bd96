"""What a browser is told of a running federation, and the orders that it gives, on a real RabbitMQ."""

import json
import secrets
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from broker_config.connection import connect, waiting_messages
from broker_config.logins import load, save
from broker_config.node import PrivateNode
from broker_config.provision import administration
from broker_config.streams import fetch_model, newest
from broker_config.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTERS, update_queue
from campaigns.tcp_proxy import TcpProxy
from operator_console.federation_folder import FederationFolder
from operator_console.init_command import init
from operator_console.web.feed import Feed
from operator_console.web.letters import Letters
from operator_console.web.server import Console, ServerOptions
from operator_console.web.versions import version_of
from shared.broker import Message
from tests.builders import an_update
from tests.leading import give, leading, make_three_versions
from tests.operator_console.web.conftest import Browser, add_users, browser_of, wait_for
from tests.tls import TlsNode

pytestmark = pytest.mark.rabbitmq


def head(folder):
    with closing(connect(load(folder).settings("operator"), name="test")) as broker:
        return newest(broker)[0]


def bury(folder, *letters: Message) -> None:
    """As an aggregator does with what it cannot use."""
    with closing(connect(load(folder).settings("aggregator"), name="test")) as broker:
        for letter in letters:
            broker.publish(DEAD_LETTER_EXCHANGE, letter)


def waiting(folder) -> int:
    return waiting_messages(load(folder).settings("operator"), DEAD_LETTERS)


def refuse_an_update_of_north(folder, sequence: int) -> None:
    """North sends its next update, and the broker puts it with the dead letters."""
    record = head(folder)
    logins = load(folder)
    with closing(connect(logins.settings("operator"), name="test")) as broker:
        delta = {name: np.full_like(values, 0.125) for name, values in fetch_model(broker, record).items()}
    give(folder, an_update("north", sequence, base=record, run_id=record.manifest.run_id), delta)
    with closing(connect(logins.settings("aggregator"), name="test")) as broker:
        broker.consume(update_queue("north"), prefetch=1)
        broker.reject(broker.receive(10))


def states_of(browser: Browser) -> Iterator[dict]:
    with browser.client.stream("GET", "/api/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        for line in events.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_a_snapshot_has_exactly_the_keys_that_the_page_reads(olga):
    state = olga.state()
    assert state.keys() == {
        *("schema", "at_ms", "connected", "silent_seconds", "attention", "run", "metrics", "institutions", "staleness"),
        *("versions", "queues", "dead_letters", "aggregators", "events"),
    }
    assert state["run"].keys() == {
        *("id", "title", "task", "version", "epoch", "phase", "phase_reason", "elapsed_seconds", "updates", "target_updates"),
        *("epsilon_budget", "best", "attention", "warnings"),
    }
    assert state["institutions"][0].keys() == {
        *("id", "state", "updates", "refused", "last_staleness", "seconds_since_last", "weight_share", "data_share"),
        *("epsilon_spent", "standing", "strikes", "waiting_messages", "quarantined", "removed"),
    }
    assert state["versions"][0].keys() == {"version", "at_ms", "seconds", "epoch", "updates", "institutions", "roll_back"}
    assert (state["schema"], state["connected"], state["run"]["title"]) == (1, True, "Heart disease in four hospitals")
    assert [row["id"] for row in state["institutions"]] == ["north", "south"]


def test_a_version_is_told_with_its_updates_and_their_weights(victor):
    told = victor.client.get("/api/versions/2").json()
    (update,) = told["updates"]
    assert (told["version"], told["not_folded"], told["phase"]) == (2, [], "running")
    assert {name: update[name] for name in ("institution", "sequence", "incarnation", "base_version", "staleness", "scale")} == {
        "institution": "north",
        "sequence": 2,
        "incarnation": 1,
        "base_version": 1,
        "staleness": 0,
        "scale": 1.0,
    }
    assert 0 < update["weight"] <= 0.5
    missing = victor.client.get("/api/versions/99")
    assert (missing.status_code, missing.json()["reason"]) == (404, "There is no version 99 in the lineage.")


def test_a_version_that_left_memory_is_read_from_the_lineage_and_is_the_same(federation, olga):
    feed = Feed(FederationFolder(federation))
    feed.start()
    try:
        wait_for(lambda: feed.version() == 3)
        in_memory = version_of(feed, 2)
        _, course = feed.course()
        course.line = lambda _version: None
        assert version_of(feed, 2) == in_memory
        assert version_of(feed, 99) is None
        assert any(feed.state()[1] is feed.state()[1] for _ in range(3))  # made once for all who ask within a second
    finally:
        feed.stop()


def test_orders_are_followed_told_to_every_open_page_and_audited_with_who_gave_them(federation, led, olga, victor):
    states = states_of(victor)
    assert next(states)["run"]["phase"] == "running"
    paused = olga.post("/api/orders/pause")
    assert (paused.status_code, paused.json()) == (200, {"applied": True, "reason": "", "version": 3})
    assert next(state for state in states if state["run"]["phase"] == "paused")["run"]["version"] == 3
    assert olga.post("/api/orders/resume").json()["applied"]
    assert next(state for state in states if state["run"]["phase"] == "running")
    confined = olga.post("/api/orders/quarantine", {"confirm": True, "institution": "north", "reason": "<b>odd</b> updates"})
    assert confined.json()["applied"]
    assert next(state for state in states if state["institutions"][0]["quarantined"])["institutions"][0]["state"] == "quarantined"
    again = olga.post("/api/orders/quarantine", {"confirm": True, "institution": "north"})
    assert (again.status_code, again.json()["applied"]) == (200, False)
    assert olga.post("/api/orders/release", {"confirm": True, "institution": "north"}).json()["applied"]
    stranger = olga.post("/api/orders/release", {"confirm": True, "institution": "nobody"})
    assert stranger.status_code == 409
    assert stranger.json()["reason"].startswith("nobody is not a member")
    states.close()
    lines = [(line["who"], line["did"], line["got"]) for line in olga.client.get("/api/audit").json()["lines"][:12]][::-1]
    assert lines[:6] == [
        ("olga", "order pause", "given"),
        ("olga", "order pause", "applied at version 3"),
        ("olga", "order resume", "given"),
        ("olga", "order resume", "applied at version 3"),
        ("olga", "order quarantine north", "given"),
        ("olga", "order quarantine north", "applied at version 3"),
    ]
    assert lines[7][2] == f"refused: {again.json()['reason']}"
    assert lines[9:] == [
        ("olga", "order release north", "applied at version 3"),
        ("olga", "order release nobody", "given"),
        ("olga", "order release nobody", f"refused: {stranger.json()['reason']}"),
    ]


def test_an_order_that_nobody_answers_says_so_and_where_it_waits(federation):
    with Console(federation, ServerOptions(port=0, answer_seconds=0.3)) as console, browser_of(console.url) as browser:
        browser.log_in("olga")
        unanswered = browser.post("/api/orders/pause")
        assert unanswered.status_code == 504
        assert unanswered.json()["applied"] is False
        assert "no aggregator answered the order to pause within 0.3 s. It waits in fl.ops" in unanswered.json()["reason"]
        with leading(federation):  # which follows it now
            wait_for(lambda: browser.state()["run"] and browser.state()["run"]["phase"] == "paused")
            wait_for(lambda: browser.post("/api/orders/resume").json()["applied"])


def test_an_order_that_cannot_be_written_down_is_not_given(federation, led, tmp_path):
    trail = FederationFolder(federation).console / "audit.jsonl"
    with Console(federation, ServerOptions(port=0)) as console, browser_of(console.url) as browser:
        browser.log_in("olga")
        token = browser.me()
        kept = trail.rename(tmp_path / "audit.jsonl")
        trail.mkdir()
        try:
            assert browser.post("/api/orders/pause").status_code == 503
        finally:
            trail.rmdir()
            kept.rename(trail)
        assert token == browser.me()
    assert head(federation).manifest.phase == "running"


def test_dead_letters_are_shown_as_often_as_one_likes_and_one_is_taken_in_again(federation, olga, victor):
    evil = Message(b"x" * 50, "up<date>", "m#0", {"id": "m", "refused": "<script>alert(1)</script>\n", "author": "south"})
    refuse_an_update_of_north(federation, 4)
    wait_for(lambda: waiting(federation) == 1)
    bury(federation, evil)
    wait_for(lambda: waiting(federation) == 2)
    shown = victor.client.get("/api/dead-letters").json()
    assert shown["truncated"] is False
    first, second = shown["letters"]
    assert (first["institution"], first["kind"], first["chunks"], first["chunks_here"]) == ("north", "update", 1, 1)
    assert (first["reason"], second["bytes"]) == ("rejected", 50)
    assert second["reason"] == "<script>alert(1)</script>\N{REPLACEMENT CHARACTER}"
    assert abs(first["at_ms"] / 1000 - time.time()) < 120
    wait_for(lambda: waiting(federation) == 2)
    assert victor.post(f"/api/dead-letters/{first['handle']}/requeue").status_code == 403
    with leading(federation):
        requeued = olga.post(f"/api/dead-letters/{first['handle']}/requeue")
        assert (requeued.status_code, requeued.json()["applied"]) == (200, True)
    wait_for(lambda: head(federation).manifest.version == 4)
    wait_for(lambda: waiting(federation) == 1)
    assert [letter["handle"] for letter in victor.client.get("/api/dead-letters").json()["letters"]] == [second["handle"]]
    for handle, status, told in (
        (first["handle"], 404, "no dead letter has the id"),
        (second["handle"], 409, "it cannot be taken in again"),
        ("<b>", 404, "no dead letter has the id <b>"),
    ):
        refused = olga.post(f"/api/dead-letters/{handle}/requeue")
        assert (refused.status_code, refused.json()["applied"]) == (status, False)
        assert told in refused.json()["reason"]


def test_of_many_dead_letters_the_oldest_are_shown_and_all_stay(federation, olga):
    before = waiting(federation)
    bury(federation, *(Message(b"x", "update", f"n{number}#0", {"id": f"n{number}", "refused": "old"}) for number in range(210)))
    wait_for(lambda: waiting(federation) == before + 210)
    time.sleep(2.1)  # what was shown before is fresh for two seconds
    shown = olga.client.get("/api/dead-letters").json()
    assert (len(shown["letters"]), shown["truncated"]) == (200, True)
    wait_for(lambda: waiting(federation) == before + 210)


def test_requests_that_wait_for_the_broker_keep_no_page_waiting(console, victor, monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr(Letters, "told", lambda _: {"letters": [], "truncated": not answers.wait(30)})
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(victor.client.get, "/api/dead-letters") for _ in range(50)]
        for _ in range(5):
            assert victor.state()["connected"]
        assert not any(each.done() for each in asked)
        answers.set()
    assert {each.result().status_code for each in asked} == {200}


def test_a_lost_broker_is_told_within_seconds_and_found_again(federation, private_node: PrivateNode, tmp_path):
    copy = copied(federation, tmp_path / "federation")
    logins = load(copy)
    with TcpProxy(int(private_node.amqp.rpartition(":")[2])) as link:
        save(logins.model_copy(update={"amqp": f"amqp://127.0.0.1:{link.port}/{logins.vhost}"}), copy)
        with Console(copy, ServerOptions(port=0)) as console, browser_of(console.url) as browser:
            browser.log_in("victor")
            wait_for(lambda: browser.client.get("/healthz").status_code == 200)
            wait_for(lambda: browser.state()["run"])
            version = browser.state()["run"]["version"]
            link.refuse()
            link.cut()
            wait_for(lambda: browser.client.get("/healthz").status_code == 503)
            wait_for(lambda: not browser.state()["connected"])
            wait_for(lambda: "Connection refused" in browser.state()["attention"] or "connect to" in browser.state()["attention"])
            away = browser.state()
            assert away["attention"].startswith("This console has no connection to the broker")
            assert away["silent_seconds"] > 0
            assert away["run"]["version"] == version
            assert browser.client.get("/api/versions/1").status_code == 200
            assert browser.client.get("/api/dead-letters").status_code == 503
            link.accept()
            wait_for(lambda: browser.client.get("/healthz").status_code == 200)
            wait_for(lambda: browser.state()["connected"] and browser.state()["silent_seconds"] == 0)
            assert browser.state()["run"]["version"] == version


def test_a_console_starts_without_its_broker_and_says_what_it_waits_for(federation, tmp_path):
    copy = copied(federation, tmp_path / "federation")
    save(load(copy).model_copy(update={"amqp": "amqp://127.0.0.1:1/nobody", "management": "http://127.0.0.1:1"}), copy)
    with Console(copy, ServerOptions(port=0, answer_seconds=1)) as console, browser_of(console.url) as browser:
        browser.log_in("olga")
        wait_for(lambda: "127.0.0.1:1" in browser.state()["attention"])
        state = browser.state()
        assert (state["run"], state["connected"], state["queues"], state["versions"]) == (None, False, None, [])
        failed = browser.post("/api/orders/pause")
        assert (failed.status_code, failed.json()["applied"]) == (503, False)
        assert "connect to 127.0.0.1:1" in failed.json()["reason"]


@pytest.mark.long
def test_what_a_person_mends_meanwhile_needs_no_new_start(federation, tmp_path):
    copy = copied(federation, tmp_path / "federation")
    logins, facts = load(copy), copy.joinpath("federation.json").read_text()
    save(logins.model_copy(update={"users": {**logins.users, "operator": "wrong"}}), copy)
    copy.joinpath("federation.json").write_text(facts.replace('"id": "south"', '"id": "east"'))
    with Console(copy, ServerOptions(port=0)) as console, browser_of(console.url) as browser:
        browser.log_in("victor")
        wait_for(lambda: "as operator" in browser.state()["attention"])
        assert not browser.state()["connected"]
        save(logins, copy)
        wait_for(lambda: browser.state()["connected"] and browser.state()["run"])
        assert "south" not in {row["id"] for row in browser.state()["institutions"]}
        copy.joinpath("federation.json").write_text(facts)
        wait_for(lambda: "south" in {row["id"] for row in browser.state()["institutions"]})


@pytest.fixture
def tls_folder(tls_node: TlsNode, tmp_path: Path) -> Iterator[Path]:
    """What `fedqueue broker up --tls` leaves, for a virtual host of its own."""
    folder, logins = tmp_path / "federation", tls_node.logins(f"web-{secrets.token_hex(4)}")
    save(logins, folder)
    (folder / "ca").symlink_to(tls_node.folder / "ca")
    shutil.copytree(tls_node.folder / "tls" / "admin", folder / "tls" / "admin")
    yield folder
    with administration(logins) as management:
        management.delete_vhost()
        management.delete_user("north")


@pytest.mark.long
@pytest.mark.both
def test_it_works_over_tls_with_sealed_messages(tls_folder):
    init(task="heart-disease", institution=["north"], epsilon="none", buffer_size=1, sealed=True, folder=tls_folder)
    make_three_versions(tls_folder)
    add_users(tls_folder)
    with leading(tls_folder), Console(tls_folder, ServerOptions(port=0)) as console, browser_of(console.url) as browser:
        browser.log_in("olga")
        wait_for(lambda: (browser.state()["run"] or {}).get("version") == 3)
        assert browser.post("/api/orders/quarantine", {"confirm": True, "institution": "north"}).json()["applied"]
        wait_for(lambda: browser.state()["institutions"][0]["quarantined"])
        wait_for(lambda: browser.state()["queues"] is not None)
        assert browser.client.get("/api/versions/3").json()["updates"][0]["institution"] == "north"
        assert browser.client.get("/api/dead-letters").json() == {"letters": [], "truncated": False}


def copied(federation, target):
    """What the console reads of a federation's folder, with the keys of the operator."""
    for file in (*federation.glob("*.*"), *federation.glob("keys/**/*.*"), *federation.glob("console/users.json")):
        if file.is_file():
            place = target / file.relative_to(federation)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
            place.chmod(0o600)
    return target
