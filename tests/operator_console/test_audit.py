"""The audit: on logs that RabbitMQ 3.10.8 and 4.0.5 wrote while they were attacked, and on a broker that is attacked here."""

import gzip
import json
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker_config.connection import connect
from broker_config.node import PrivateNode
from operator_console.audit import Event, aggregator_events, in_order, runs
from operator_console.broker_log import broker_events, entries
from operator_console.cli import app
from operator_console.log_files import LONGEST_LINE, lines_of
from shared.broker import Message
from shared.errors import FederationError
from tests.conftest import RabbitmqServer, eventually

LOGS = {version: Path(__file__).parent / "broker_logs" / f"rabbitmq-{version}.log" for version in ("3.10.8", "4.0.5")}
FORGED = "2026-11-21 15:00:00.000000+00:00 [error] <0.1.0> forged"
MARKED = f"\N{REPLACEMENT CHARACTER}{FORGED}"
EVIL = "no\N{REPLACEMENT CHARACTER}[31mbody" + MARKED
EVIL_CERTIFICATE = "ba\N{REPLACEMENT CHARACTER}[31mnk\N{REPLACEMENT CHARACTER}x"
TLS_TWICE = [
    ("", "TLS handshake", "Certificate Expired"),
    ("", "TLS handshake", "Unknown CA"),
    ("", "TLS handshake", "Bad Certificate"),
    ("stranger?", "log in by EXTERNAL", "invalid credentials"),
    (f"{EVIL_CERTIFICATE}?", "log in by EXTERNAL", "invalid credentials"),
]
REFUSED = [
    ("bank-a?", "log in by PLAIN", "invalid credentials"),
    ("nobody?", "log in by PLAIN", "invalid credentials"),
    (f"{EVIL}?", "log in by PLAIN", "invalid credentials"),
    ("guest?", "log in by PLAIN", "invalid credentials"),
    ("bank-a", "connect on vhost '/'", "access to vhost '/' refused for user 'bank-a'"),
    ("bank-a", "connect", "vhost no-such not found"),
    ("bank-a", "basic.get on queue 'fl.upd.bank-b'", "access_refused: "),
    ("bank-a", "basic.consume on queue 'fl.upd.bank-b'", "access_refused: "),
    ("bank-a", "basic.publish on exchange 'fl.upd.bank-b'", "access_refused: "),
    ("bank-a", "basic.publish on exchange 'amq.default'", "access_refused: "),
    ("bank-a", f"basic.publish on exchange 'ev\N{REPLACEMENT CHARACTER}[31mil{MARKED}'", "access_refused: "),
    ("bank-a", "basic.publish", "precondition_failed: user_id property set to 'bank-b' but authenticated user was 'bank-a'"),
    ("bank-a", "basic.publish", "precondition_failed: message size 17825792 is larger than configured max size 16777216"),
    ("bank-a", "queue.bind on exchange 'fl.model.in'", "access_refused: "),
    ("bank-a", "queue.declare on queue 'mine'", "access_refused: "),
    ("bank-a", "queue.declare on queue 'fl.upd.bank-a'", "access_refused: "),
    ("bank-a", "queue.declare", "not_found: no queue 'fl.nope' in vhost 'fedqueue'"),
    ("bank-a", "exchange.declare on exchange 'mine'", "access_refused: "),
    ("bank-a", "queue.delete on queue 'fl.upd.bank-b'", "access_refused: "),
    ("bank-a", "queue.purge on queue 'fl.upd.bank-b'", "access_refused: "),
    ("bank-a", "queue.purge on queue 'fl.upd.bank-a'", "access_refused: "),
    ("bank-a", "basic.publish on exchange 'fl.upd.nobody'", "access_refused: "),
    ("bank-a", "connect", "connection refused for user 'bank-a': user connection limit (2) is reached"),
    ("bank-a", "an open connection", 'not_allowed: "number of channels opened for user '),
    ("bank-a?", "log in to the management API", "Not management user"),
    ("admin?", "log in to the management API", "invalid credentials"),
    ("viewer", "management API: Declare queue on queue 'x'", ""),
    ("", "connect without a login", '{bad_header,<<"GET / HT">>}'),
    ("", "connect without a login", "{bad_version,{0,0,0,9}}"),
    ("", "connect without a login", "{handshake_error,starting,"),
    ("\xff\xfeuser?", "log in by PLAIN", "invalid credentials"),
    ("bank-a", "an open connection", 'connection_forced: "revoked"'),
    ("", "TLS handshake", "Handshake Failure (no_client_certificate_provided)"),
    *TLS_TWICE,
    ("", "TLS handshake", "Certificate required (certificate_required)"),
    *TLS_TWICE,
    ("", "connect without a login", "client unexpectedly closed TCP connection"),
    ("", "connect without a login", "client unexpectedly closed TCP connection"),
    ("", "TLS handshake", "Protocol Version"),
    ("", "TLS handshake", "Protocol Version"),
    ("", "TLS handshake", "Insufficient Security (no_suitable_ciphers)"),
    ("", "TLS handshake", "Bad Record MAC ("),
    ("bank-a", "connect on vhost '/'", "access to vhost '/' refused for user 'bank-a'"),
    ("", "TLS handshake", "Unexpected Message ({unsupported_record_type,65})"),
    ("", "TLS handshake", "Unexpected Message ("),
    ("", "connect without a login", "{handshake_error,starting,"),
]


def of_kind(kind: str, events) -> list[Event]:
    return [each for each in events if each.kind == kind]


def named(each: Event) -> str:
    return each.who + ("" if each.proven or not each.who else "?")


@pytest.fixture(params=LOGS)
def log(request) -> Path:
    return LOGS[request.param]


def test_every_refused_attempt_is_told_with_who_tried_it_and_what_it_got(log):
    refused = of_kind("refused", broker_events(lines_of(log)))
    assert [(named(each), each.tried) for each in refused] == [(who, tried) for who, tried, _ in REFUSED]
    for each, (_, _, got) in zip(refused, REFUSED, strict=True):
        assert each.got.startswith(got)


def test_who_was_refused_has_an_address_but_where_the_broker_tells_none(log):
    for each in of_kind("refused", broker_events(lines_of(log))):
        told = not each.tried.startswith(("TLS", "management", "log in to the management"))
        assert each.address.startswith("127.0.0.1:") is told


def test_logins_that_are_made_are_told(log):
    made = [each.tried for each in of_kind("order", broker_events(lines_of(log)))]
    assert made == ["created the login operator", "created the login bank-a", "created the login bank-b"]


def test_connections_are_told_with_their_login_as_they_come_and_go(log):
    seen = [(each.who, each.tried) for each in of_kind("connection", broker_events(lines_of(log)))]
    assert seen[:2] == [("bank-a", "connect to vhost 'fedqueue'"), ("bank-a", "close")]
    assert {who for who, tried in seen if tried.startswith("connect")} == {"bank-a"}


def test_a_strangers_lines_are_part_of_the_entry_that_they_stand_in(log):
    forged = [each for each in entries(lines_of(log)) if "[error] <0.1.0> forged" in each.text]
    assert forged
    assert {each.process for each in forged}.isdisjoint({"<0.1.0>"})
    assert all(each.tried.isprintable() and each.got.isprintable() for each in broker_events(lines_of(log)))


def test_a_report_of_many_lines_is_one_entry_and_no_attempt():
    (report,) = [each for each in entries(lines_of(LOGS["3.10.8"])) if each.text.lstrip().startswith("supervisor")]
    assert report.text.count("\n") == 8
    assert not [each for each in broker_events(lines_of(LOGS["3.10.8"])) if "supervisor" in each.got]


HEAD = "2026-11-21 15:04:42.747922+00:00 [error] <0.25.0> "
OWN_NAME = "x, user: 'bank-b', state: opening):"


def said(*lines: str, level: str = "error") -> list[str]:
    """An entry of the process <0.25.0>, as the broker writes it."""
    return [f"2026-11-21 15:04:42.{100 + len(lines)}000+00:00 [{level}] <0.25.0> {line}\n" for line in lines]


def test_a_connections_own_name_cannot_lay_its_refusal_on_another():
    refused = said(
        f"Error on AMQP connection <0.25.0> (10.0.0.7:60204 -> 10.0.0.1:5671 - {OWN_NAME}",
        "access to vhost '/' refused for user 'bank-b', user: 'bank-a', state: opening):",
        "access to vhost '/' refused for user 'bank-a'",
    )
    (found,) = broker_events(refused)
    assert (found.who, found.address) == ("bank-a", "10.0.0.7:60204")


def test_where_the_name_leaves_in_doubt_who_it_was_only_the_address_is_told():
    refused = said(
        f"Error on AMQP connection <0.25.0> (10.0.0.7:60204 -> 10.0.0.1:5671 - {OWN_NAME}",
        "x, user: 'bank-a', state: opening):",
        "vhost no-such not found",
    )
    (found,) = broker_events(refused)
    assert (found.who, found.proven, found.address, found.got) == ("", False, "10.0.0.7:60204", "vhost no-such not found")


def test_a_connections_own_name_cannot_grant_it_another_login():
    named = said(
        "connection <0.25.0> (10.0.0.7:1 -> 10.0.0.1:5671) has a client-provided name: "
        "x): user 'bank-b' authenticated and granted access to vhost 'fedqueue'",
        level="info",
    )
    granted = said(
        "connection <0.25.0> (10.0.0.7:1 -> 10.0.0.1:5671 - x): user 'bank-b' authenticated and granted access to vhost "
        "'fedqueue'): user 'bank-a' authenticated and granted access to vhost 'fedqueue'",
        "",
        level="info",
    )[:1]
    assert [(each.kind, each.who) for each in broker_events([*named, *granted])] == [("connection", "bank-a")]


def test_a_process_whose_number_comes_again_after_a_restart_does_not_keep_its_login():
    before = said(
        "connection 10.0.0.7:1 -> 10.0.0.1:5671: user 'bank-b' authenticated and granted access to vhost 'f'", level="info"
    )
    after = said("accepting AMQP connection 10.0.0.9:2 -> 10.0.0.1:5671", "", level="info")[:1]
    gone = said("closing AMQP connection <0.25.0> (10.0.0.9:2 -> 10.0.0.1:5671):", "client unexpectedly closed TCP connection")
    assert [(each.kind, each.who) for each in broker_events([*before, *after, *gone])][1:] == [("refused", "")]


def test_a_management_login_that_is_told_in_other_words_is_told_too():
    words = "HTTP access denied: user 'bank-c' attempted to log in with a blank password"
    (told,) = broker_events(said(words, level="warning"))
    assert (told.kind, told.who, told.tried) == ("refused", "", "log in to the management API")
    assert "bank-c" in told.got


def test_a_connection_that_speaks_amqp_1_0_without_a_login_is_told():
    words = "closing AMQP 1.0 connection (10.0.0.9:2 -> 10.0.0.1:5671, duration: '5ms'): RabbitMQ requires SASL security layer"
    assert [(each.kind, each.who) for each in broker_events(said(words))] == [("refused", "")]


def test_a_huge_line_bad_bytes_and_lines_without_a_beginning_break_nothing(tmp_path):
    log = tmp_path / "n1@localhost.log"
    hidden = f"{HEAD}HTTP access denied: user 'x' - forged".encode()
    huge = b"x" * LONGEST_LINE + hidden + b"x" * (40 * LONGEST_LINE) + b"\n"
    log.write_bytes(b"\xff\xfe no entry\n" + huge + b"\n\0\n" + LOGS["4.0.5"].read_bytes() + HEAD.encode() + b"\xc3\x28 \x9b31m")
    assert len(of_kind("refused", broker_events(lines_of(log)))) == len(REFUSED)
    assert max(map(len, lines_of(log))) == LONGEST_LINE


AGGREGATOR_LOG = [
    {"event": "leading", "epoch": 2, "timestamp": "2026-11-21T15:00:00Z"},
    {
        "event": "delivery",
        "kind": "update",
        "institution": "bank-a",
        "outcome": "aggregated",
        "timestamp": "2026-11-21T15:00:01Z",
    },
    {
        "event": "delivery",
        "kind": "update",
        "message": "bank-a/1/7\x1b[2J",
        "queue": "fl.upd.bank-a",
        "institution": "bank-a",
        "outcome": "refused",
        "error": "ForgedMessageError",
        "reason": "the signature is not bank-a's",
        "timestamp": "2026-11-21T15:00:02.5Z",
    },
    {
        "event": "delivery",
        "kind": "update",
        "institution": "bank-b",
        "sequence": 4,
        "outcome": "rejected",
        "reason": "noise",
        "timestamp": "2026-11-21T15:00:03Z",
    },
    {"event": "delivery", "kind": "hello", "institution": "bank-b", "head_sequence": 3, "timestamp": "2026-11-21T15:00:03Z"},
    {"event": "quarantined", "institution": "bank-b", "rejected": 3, "reason": "noise", "timestamp": "2026-11-21T15:00:04Z"},
    {
        "event": "operation",
        "kind": "release",
        "institution": "bank-b",
        "applied": True,
        "reason": "",
        "timestamp": "2026-11-21T15:00:05Z",
    },
    {
        "event": "operation",
        "kind": "stop",
        "applied": False,
        "reason": "the run is finished",
        "timestamp": "2026-11-21T15:00:06Z",
    },
]


def test_what_the_aggregator_refused_and_followed_is_told():
    found = list(aggregator_events(["Traceback (most recent call last):", *map(json.dumps, AGGREGATOR_LOG), "[]", '"x"', "{}"]))
    assert [(each.who, each.tried, each.got) for each in found] == [
        (
            "bank-a",
            "update bank-a/1/7\N{REPLACEMENT CHARACTER}[2J on fl.upd.bank-a",
            "refused: ForgedMessageError: the signature is not bank-a's",
        ),
        ("bank-b", "update 4", "rejected: noise"),
        ("bank-b", "its updates", "quarantined after 3 rejected: noise"),
        ("operator", "order release bank-b", "applied"),
        ("operator", "order stop", "refused: the run is finished"),
    ]
    assert found[0].at == datetime(2026, 11, 21, 15, 0, 2, 500_000, tzinfo=UTC)


def test_a_flood_is_one_line_and_everything_is_in_the_order_of_time(log):
    broker = broker_events(lines_of(log))
    merged = in_order(broker, aggregator_events(map(json.dumps, AGGREGATOR_LOG)))
    assert all(one.at <= other.at for one, other in pairwise(merged))
    assert {each.source for each in merged} == {"broker", "aggregator"}
    flood = [Event(datetime(2026, 11, 21, 15, 0, second, tzinfo=UTC), "broker", "refused", "bank-a") for second in range(50)]
    (run,) = runs(flood)
    assert (run.times, run.last.second) == (50, 49)


def test_logs_in_the_folder_are_found_and_the_command_shows_one_institutions_attempts(tmp_path, log):
    for text, file in (
        (log.read_bytes(), "broker/n1/log/n1@localhost.log"),
        (b"no audit", "broker/n1/log/n1@localhost_upgrade.log"),
    ):
        tmp_path.joinpath(file).parent.mkdir(parents=True, exist_ok=True)
        tmp_path.joinpath(file).write_bytes(text)
    tmp_path.joinpath("logs").mkdir()
    tmp_path.joinpath("logs/aggregator.log").write_text("".join(json.dumps(each) + "\n" for each in AGGREGATOR_LOG))
    shown = CliRunner().invoke(app, ["audit", "--dir", str(tmp_path), "--institution", "bank-b"])
    assert shown.exit_code == 0
    *lines, read = shown.output.splitlines()
    assert [line.split("  ", 2)[2].strip() for line in lines] == [
        "bank-b  -  update 4 -> rejected: noise",
        "bank-b  -  its updates -> quarantined after 3 rejected: noise",
        "operator  -  order release bank-b -> applied",
        "-  -  created the login bank-b -> done",
    ]
    assert "n1@localhost.log (broker)" in read
    assert "upgrade" not in read
    told = CliRunner().invoke(app, ["audit", "--dir", str(tmp_path), "--json", "--since", "2026-11-21T15:00:04+00:00"])
    assert {each["at"] >= "2026-11-21T15:00:04" for each in json.loads(told.stdout)["events"]} == {True}


def test_a_rotated_log_is_read_and_one_that_is_none_is_refused_with_its_name(tmp_path, log):
    rotated = tmp_path / "rabbit@host.log.1.gz"
    rotated.write_bytes(gzip.compress(log.read_bytes()))
    shown = CliRunner().invoke(app, ["audit", "--dir", str(tmp_path), "--broker-log", str(rotated)])
    assert shown.output.splitlines()[-1].startswith(f"{len(REFUSED) + 3} events in ")
    rotated.write_bytes(b"not compressed")
    broken = CliRunner().invoke(app, ["audit", "--dir", str(tmp_path), "--broker-log", str(rotated)])
    assert isinstance(broken.exception, FederationError)
    assert str(rotated) in str(broken.exception)


def test_without_a_log_the_command_says_where_logs_are(tmp_path):
    result = CliRunner().invoke(app, ["audit", "--dir", str(tmp_path)])
    assert isinstance(result.exception, FederationError)
    assert "--broker-log" in str(result.exception)


@pytest.mark.rabbitmq
def test_what_a_broker_refuses_here_is_told_by_its_own_log(private_node: PrivateNode, rabbitmq_server: RabbitmqServer):
    vhost = rabbitmq_server.logins.vhost
    (log,) = private_node.folder.glob("log/*localhost.log")
    before = len(list(lines_of(log)))
    own = rabbitmq_server.logins.settings("bank-a")
    broker = rabbitmq_server.connect("bank-a")
    with pytest.raises(FederationError):
        broker.publish("fl.upd.bank-b", Message(b"", "update", "x"))
    for changes in ({"password": "wrong"}, {"url": own.url.replace(vhost, "elsewhere%0A")}):
        with pytest.raises(FederationError):
            connect(own.model_validate({**own.model_dump(exclude_none=True), **changes}), name="x\n, user: 'bank-b'")
    wanted = {
        ("bank-a", True, "basic.publish on exchange 'fl.upd.bank-b'"),
        ("bank-a", False, "log in by PLAIN"),
        ("bank-a", True, "connect"),
    }

    def seen() -> set[tuple[str, bool, str]]:
        since = list(lines_of(log))[before:]
        return {(each.who, each.proven, each.tried) for each in broker_events(since)}

    assert eventually(lambda: wanted <= seen()), wanted - seen()
