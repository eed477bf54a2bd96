"""The checker finds every promise that is broken on purpose in a true run's records, and nothing in the true ones."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgpack
import numpy as np
import pytest

from broker_config.memory import MemoryRabbit
from broker_config.topology import DEAD_LETTERS, LINEAGE, MODEL, STATE, journal_queue, topology
from campaigns.checker import Verdict, check
from campaigns.evidence import Evidence, Outage, Row, ledger, stream, waiting
from campaigns.wire import Stored, read_body, sha256, whole_contents
from tests.builders import NAMES, a_plan, an_operation, name_of, small_limits
from tests.conftest import LIMITS
from tests.running import Leader, Watch, Worker, begin, give_order

PLAN = a_plan({"server_momentum": 0.5}, broadcast="bfloat16", limits=small_limits(chunk_bytes=2048))
MODEL_0 = {"w": np.linspace(-1, 1, 700, dtype=np.float32)}
PLAYERS = ("bank-a", "bank-b")
IDLE_SECONDS = 0.1


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Two institutions that work, and a third that is never started."""
    folder = tmp_path_factory.mktemp("run")
    server = MemoryRabbit(topology(NAMES, replace(LIMITS, journal_stream_bytes=64 << 20)))
    begin(server, PLAN, NAMES, model=MODEL_0)
    watch = Watch(server.connect("operator"))
    with ExitStack() as stack:
        stack.enter_context(Leader(server, folder / "aggregator"))
        workers = [stack.enter_context(Worker(server, name, folder)) for name in PLAYERS]
        assert watch.until(lambda: all(len(watch.outcomes(name)) >= 4 for name in PLAYERS))
        give_order(server, an_operation("stop"))
        for worker in workers:
            worker.thread.join(20)
            assert worker.failure is None
    return Evidence(
        pseudonyms={name: name_of(name) for name in NAMES},
        lineage=read(server, LINEAGE),
        models=read(server, MODEL),
        states=read(server, STATE),
        journals={name: read(server, journal_queue(name)) for name in PLAYERS},
        dead_letters=waiting(lambda: server.connect("operator"), DEAD_LETTERS, idle_seconds=IDLE_SECONDS),
        ledgers={name: ledger(folder / name / "ledger.sqlite") for name in PLAYERS},
        never_started=["bank-c"],
    )


def read(server: MemoryRabbit, name: str) -> list[Stored]:
    return list(stream(lambda: server.connect("operator"), name, idle_seconds=IDLE_SECONDS))


def lineage_with(truth: Evidence, change: Callable[[int, dict], None]) -> Evidence:
    """The lineage with manifests changed by `change(number, manifest)`, every one naming the changed one before it."""
    changed, previous, number = [], "", 0
    for message in truth.lineage:
        schema, kind, fields, tensors = msgpack.unpackb(message.body)
        if kind == "record":
            inner = msgpack.unpackb(fields["content"])
            inner[2]["previous"] = previous
            change(number, inner[2])
            fields["content"] = msgpack.packb(inner)
            previous, number = sha256(fields["content"]), number + 1
        changed.append(replace(message, body=msgpack.packb([schema, kind, fields, tensors])))
    return replace(truth, lineage=changed)


def ledgers_with(truth: Evidence, change: Callable[[str, dict], None], without: int | None = None) -> Evidence:
    """bank-a's ledger with rows changed by `change(state, fields)`, or one left out; still a chain."""
    rows, previous = [], ""
    for row in truth.ledgers["bank-a"]:
        if row.number != without:
            fields = row.fields
            change(row.state, fields)
            packed = msgpack.packb(fields)
            digest = sha256(msgpack.packb([row.number, row.state, row.at_seconds, packed, previous]))
            rows.append(Row(row.number, row.state, row.at_seconds, packed, previous, digest))
            previous = digest
    return replace(truth, ledgers={**truth.ledgers, "bank-a": rows})


def unchanged(*_arguments: object) -> None:
    return


def settling(truth: Evidence) -> list[int]:
    """The numbers of the manifests that settle something as aggregated."""
    manifests = [read_body(read_body(each.body).fields["content"]).fields for each in truth.lineage if each.kind == "manifest"]
    return [number for number, each in enumerate(manifests) if any(one["outcome"] == "aggregated" for one in each["settled"])]


def promises(verdict: Verdict) -> set[str]:
    return {finding.promise for finding in verdict.findings}


def test_a_true_run_is_found_to_be_one(truth):
    verdict = check(truth)
    assert verdict.in_words() == []
    assert verdict.figures["versions"] >= 4
    assert verdict.figures["versions replayed to the bit"] == verdict.figures["versions"]
    assert verdict.figures["updates sealed"] >= 8


def test_a_settlement_that_was_dropped_is_a_lost_update(truth):
    chosen = settling(truth)[2]

    def drop(number: int, manifest: dict) -> None:
        if number == chosen:
            manifest["settled"].pop()

    verdict = check(lineage_with(truth, drop))
    assert verdict.count("lost") == 1
    assert "gap" in promises(verdict)


def test_an_update_without_settlement_is_not_lost_where_it_is_a_dead_letter(truth):
    chosen, dropped = settling(truth)[2], []

    def drop(number: int, manifest: dict) -> None:
        if number == chosen:
            dropped.append(manifest["settled"].pop())

    changed = lineage_with(truth, drop)
    contents = [each for name in PLAYERS for each in whole_contents(truth.journals[name])]
    (identity,) = [identity for identity, digest, _ in contents if digest == dropped[0]["hash"]]
    letter = Stored("update", {"id": identity, "content": dropped[0]["hash"], "refused": "why"}, b"")
    assert check(replace(changed, dead_letters=[*truth.dead_letters, letter])).count("lost") == 0


def test_an_update_that_was_settled_as_lost_although_its_institution_has_it_is_lost(truth):
    def lose(number: int, manifest: dict) -> None:
        if number == settling(truth)[1]:
            manifest["settled"][0]["outcome"] = "lost"

    assert check(lineage_with(truth, lose)).count("lost") == 1


def test_an_update_that_was_settled_twice_is_doubled(truth):
    first, second, *_ = settling(truth)
    again: list[dict] = []

    def double(number: int, manifest: dict) -> None:
        if number == first:
            again.append(manifest["settled"][0])
        if number == second:
            manifest["settled"].append(again[0])

    verdict = check(lineage_with(truth, double))
    assert verdict.count("doubled") == 1
    assert verdict.count("replay") >= 1


def other_record(message: Stored, epoch_less: int = 0) -> Stored:
    """A record beside the given one: the same place in the chain, another content."""
    schema, kind, fields, tensors = msgpack.unpackb(message.body)
    inner = msgpack.unpackb(fields["content"])
    inner[2]["phase_reason"] = "another history"
    fields |= {"content": msgpack.packb(inner), "epoch": fields["epoch"] - epoch_less}
    return replace(message, body=msgpack.packb([schema, kind, fields, tensors]))


def test_two_contents_of_one_version_under_the_highest_epoch_are_a_fork(truth):
    *before, last = truth.lineage
    assert check(replace(truth, lineage=[*before, last, other_record(last)])).count("forked") == 1


def test_a_record_of_a_deposed_leader_is_no_fork(truth):
    *before, last = truth.lineage
    verdict = check(replace(truth, lineage=[*before, last, other_record(last, epoch_less=1)]))
    assert verdict.findings == []
    assert verdict.figures["records without effect"] == 1 + check(truth).figures["records without effect"]


def test_a_reader_that_trained_on_another_history_is_a_fork(truth):
    def other_base(state: str, fields: dict) -> None:
        if state == "RESERVED" and fields["base_version"] > 0:
            fields["base_hash"] = "f" * 64

    assert check(ledgers_with(truth, other_base)).count("forked") >= 1


def test_a_weight_that_differs_in_its_last_bit_is_found_by_replay(truth):
    def nudge(number: int, manifest: dict) -> None:
        if number == settling(truth)[0]:
            weight = np.float32(float.fromhex(manifest["settled"][0]["weight"]))
            manifest["settled"][0]["weight"] = float(np.nextafter(weight, np.float32(1))).hex()

    assert promises(check(lineage_with(truth, nudge))) == {"replay"}


def test_a_delta_that_differs_in_its_last_bit_is_found_by_replay_and_by_its_ledger(truth):
    changed = {name: list(forged(truth.journals[name], 1)) for name in PLAYERS}
    assert {"replay", "privacy"} <= promises(check(replace(truth, journals=changed)))


def forged(journal: Iterable[Stored], sequence: int) -> Iterable[Stored]:
    """The journal with one update's bytes changed, and its hashes too."""
    for identity, _, content in whole_contents(journal):
        schema, kind, fields, tensors = msgpack.unpackb(content)
        if kind == "update" and fields["sequence"] == sequence:
            data = bytearray(tensors[0][5])
            data[0] ^= 1
            tensors[0][5] = bytes(data)
        yield one_chunk(identity, msgpack.packb([schema, kind, fields, tensors]))


def one_chunk(identity: str, content: bytes) -> Stored:
    headers = {"id": identity, "chunk": 0, "chunks": 1, "sha256": sha256(content), "content": sha256(content)}
    return Stored("update", headers, content)


def test_other_bytes_under_an_id_that_was_sent_before_are_found(truth):
    (other,) = [each for each in forged(truth.journals["bank-a"], 2) if each.headers["id"] == "bank-a/1/2"]
    verdict = check(replace(truth, journals={**truth.journals, "bank-a": [*truth.journals["bank-a"], other]}))
    assert promises(verdict) == {"privacy"}


def test_a_training_that_was_not_charged_is_found(truth):
    first = next(row.number for row in truth.ledgers["bank-a"] if row.state == "RESERVED")
    assert promises(check(ledgers_with(truth, unchanged, without=first))) == {"privacy"}


def test_a_ledger_whose_row_was_changed_afterwards_is_found(truth):
    rows = list(truth.ledgers["bank-a"])
    rows[3] = replace(rows[3], packed=msgpack.packb({**rows[3].fields, "note": "altered"}))
    assert "ledger" in promises(check(replace(truth, ledgers={**truth.ledgers, "bank-a": rows})))


def test_a_settlement_of_an_update_that_nobody_sealed_is_found(truth):
    last = max(row.number for row in truth.ledgers["bank-a"] if row.state == "SEALED")
    rows = [row for row in truth.ledgers["bank-a"] if row.number < last]
    assert "ledger" in promises(check(replace(truth, ledgers={**truth.ledgers, "bank-a": rows})))


def test_counters_that_do_not_add_up_are_found(truth):
    def miscount(_number: int, manifest: dict) -> None:
        for entry in manifest["table"].values():
            entry["counters"]["stale"] += 1

    assert promises(check(lineage_with(truth, miscount))) == {"gap"}


def test_a_version_whose_model_is_not_in_its_stream_is_found(truth):
    assert promises(check(replace(truth, models=truth.models[:-1]))) == {"replay"}


def test_a_journal_that_lacks_most_bodies_proves_nothing_and_says_so(truth):
    verdict = check(replace(truth, journals={name: [] for name in PLAYERS}))
    assert "replay" in promises(verdict)
    assert verdict.figures["versions replayed to the bit"] == 0


def test_an_outage_during_which_nobody_else_was_settled_is_found(truth):
    outage = Outage("bank-a", 10.0, 14.0)
    others, own = name_of("bank-b"), name_of("bank-a")
    assert check(replace(truth, outages=[outage], progress=[(12.0, others)])).findings == []
    for progress in ([], [(12.0, own)], [(9.0, others), (15.0, others)]):
        assert promises(check(replace(truth, outages=[outage], progress=progress))) == {"waiting"}


def test_an_institution_that_was_never_settled_is_found_unless_it_was_never_started(truth):
    assert promises(check(replace(truth, never_started=[]))) == {"waiting"}


def test_the_checker_shares_no_code_with_what_it_checks():
    program = (
        "import sys, campaigns.checker; "
        "print([name for name in sys.modules if name.startswith(('aggregator_worker', 'client_worker', 'pika')) "
        "or name in ('shared.lineage', 'shared.messages', 'shared.codec', 'shared.chunks')])"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
