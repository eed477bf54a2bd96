import sys
from dataclasses import replace

import pytest

from aggregator_worker.intake import TRIAL_SECONDS, Intake
from broker_config.connection import ConnectionSettings
from shared.broker import Delivery, Message
from shared.chunks import split
from shared.errors import MalformedMessageError, StorageError
from tests.builders import RUN
from tests.disks import fill, small_disk

CONTENT = bytes(range(250)) * 4


def tags(settled: list[Delivery]) -> list[int]:
    return [delivery.tag for delivery in settled]


def deliveries(content=CONTENT, *, identity="bank-a/1/1", chunk_bytes=300, kind="update", start=1) -> list[Delivery]:
    chunks = split(content, kind=kind, run_id=RUN, identity=identity, chunk_bytes=chunk_bytes)
    return [Delivery("fl.upd.bank-a", tag, chunk, "bank-a") for tag, chunk in enumerate(chunks, start)]


def corrupted(delivery: Delivery) -> Delivery:
    return replace(delivery, message=replace(delivery.message, body=bytes(len(delivery.message.body))))


@pytest.fixture
def intake(tmp_path):
    intake = Intake(tmp_path, max_bytes=2000)
    yield intake
    intake.close()


def content(intake: Intake, upload) -> bytes:
    """An upload's bytes; it is of no more use then."""
    loaded = bytes(intake.load(upload))
    upload.close()
    return loaded


def taken(intake: Intake, *parts: Delivery, institution="bank-a", now=0.0):
    return [intake.take(institution, part, now=now) for part in parts]


def test_a_single_message_is_whole_at_once(intake, tmp_path):
    (only,) = deliveries(b"small")
    (upload,) = taken(intake, only)
    assert (upload.head.kind, content(intake, upload), tags(upload.deliveries)) == ("update", b"small", tags([only]))
    assert list(tmp_path.iterdir()) == []


def test_chunks_make_an_upload_that_knows_its_deliveries(intake, tmp_path):
    parts = deliveries()
    *none_yet, upload = taken(intake, *parts)
    assert none_yet == [None, None, None]
    assert (content(intake, upload), tags(upload.deliveries)) == (CONTENT, tags(parts))
    assert list(tmp_path.iterdir()) == []


def test_chunks_of_two_institutions_do_not_mix(intake):
    ours, theirs = deliveries(), deliveries(CONTENT[::-1], identity="bank-b/1/1", start=50)
    contents = []
    for our, their in zip(ours, theirs, strict=True):
        contents += taken(intake, our) + taken(intake, their, institution="bank-b")
    assert [content(intake, upload) for upload in contents if upload] == [CONTENT, CONTENT[::-1]]


def test_a_resend_from_the_first_chunk_on_adds_nothing_twice(intake):
    first, again = deliveries(), deliveries(start=50)
    upload = taken(intake, *first[:2], *again)[-1]
    assert content(intake, upload) == CONTENT
    assert tags(upload.deliveries) == tags(first[:2] + again[2:])
    assert tags(intake.surplus) == tags(again[:2])


def test_another_id_gives_up_on_the_former_upload(intake):
    former, new = deliveries(), deliveries(identity="bank-a/1/2", start=50)
    upload = taken(intake, *former[:3], *new)[-1]
    assert tags(upload.deliveries) == tags(new)
    upload.close()
    assert tags(intake.surplus) == tags(former[:3])


def test_the_last_chunk_of_bytes_with_another_hash_is_refused_and_the_others_are_let_go(intake, tmp_path):
    parts = deliveries()
    taken(intake, corrupted(parts[0]), *parts[1:3])
    with pytest.raises(MalformedMessageError, match="SHA-256"):
        taken(intake, parts[3])
    assert tags(intake.surplus) == [1, 2, 3]
    assert list(tmp_path.iterdir()) == []
    assert content(intake, taken(intake, *deliveries(start=60))[-1]) == CONTENT


def test_an_upload_that_nobody_continues_is_given_up(intake):
    parts = deliveries()
    taken(intake, *parts[:2], now=100.0)
    assert intake.expire(now=159.0, idle_seconds=60.0) == []
    taken(intake, parts[2], now=159.0)
    assert intake.expire(now=200.0, idle_seconds=60.0) == []
    assert intake.expire(now=220.0, idle_seconds=60.0) == ["bank-a"]
    assert tags(intake.surplus) == tags(parts[:3])


def test_an_announced_size_over_the_limit_is_refused_before_anything_is_kept(intake, tmp_path):
    with pytest.raises(MalformedMessageError, match="2001 bytes are announced, 2000 are allowed"):
        taken(intake, deliveries(bytes(2001))[0])
    assert list(tmp_path.iterdir()) == []


def test_a_kind_that_institutions_do_not_send_is_refused(intake):
    with pytest.raises(MalformedMessageError, match="'manifest' on an update queue"):
        taken(intake, *deliveries(b"x", kind="manifest"))


def test_a_message_without_our_headers_is_refused(intake):
    with pytest.raises(Exception, match="schema header"):
        taken(intake, Delivery("fl.upd.bank-a", 1, Message(bytes(2**20), "update", "x"), "bank-a"))


def test_nothing_is_left_on_disk_of_an_upload_under_way(intake, tmp_path):
    taken(intake, *deliveries()[:2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [100, 100_000])
def test_an_upload_that_has_to_wait_is_kept_as_it_came(tmp_path, size):
    intake = Intake(tmp_path, max_bytes=2 * size)
    early = bytes(range(100)) * (size // 100)
    (upload,) = taken(intake, *deliveries(early, chunk_bytes=2 * size))
    intake.park(upload)
    assert (upload.body is None) == (size > 2**16)
    assert content(intake, upload) == early


def test_without_room_on_disk_an_upload_stays_in_its_queue_and_a_person_is_told(tmp_path):
    intake = Intake(tmp_path / "gone", max_bytes=200_000)
    (early,) = taken(intake, *deliveries(bytes(100_000), chunk_bytes=200_000))
    with pytest.raises(StorageError, match="free space, the upload is kept in its queue"):
        intake.park(early)
    assert early.body == bytes(100_000)
    with pytest.raises(StorageError, match="free space, the upload is kept in its queue"):
        taken(intake, *deliveries())


def test_a_disk_that_is_full_shows_while_the_chunk_is_not_taken_yet_and_nothing_keeps_the_intake_from_closing(tmp_path):
    with small_disk(tmp_path / "disk", 1) as disk:
        intake = Intake(disk, max_bytes=200_000)
        chunks = deliveries(bytes(10_000))
        fill(disk / "filler")
        with pytest.raises(StorageError, match="free space, the upload is kept in its queue"):
            taken(intake, chunks[0])
        intake.close()


@pytest.mark.parametrize(
    ("counts", "suspect"), [((0, 0), False), ((4, 4), False), ((0, 5), True), ((5, 0), True), ((9, 9), True)]
)
def test_an_upload_is_suspect_once_any_part_of_it_was_delivered_five_times(intake, counts, suspect):
    parts = [replace(part, delivery_count=count) for part, count in zip(deliveries(chunk_bytes=500), counts, strict=True)]
    upload = taken(intake, *parts)[-1]
    assert upload.suspect == suspect
    upload.close()


def test_uploads_are_loaded_one_after_the_other_into_the_same_memory(intake):
    ours = taken(intake, *deliveries())[-1]
    theirs = taken(intake, *deliveries(CONTENT[::-1], identity="bank-b/1/1"), institution="bank-b")[-1]
    first = intake.load(ours)
    assert first == CONTENT
    assert intake.load(theirs) == CONTENT[::-1]
    assert first == CONTENT[::-1]
    ours.close()
    theirs.close()


@pytest.mark.parametrize(
    ("program", "survives"),
    [
        pytest.param("import sys; sys.stdin.buffer.read()", True, id="one that reads it"),
        pytest.param("import os; os.kill(os.getpid(), 9)", False, id="one that dies of it"),
        pytest.param("import sys; sys.exit(sys.stdin.buffer.read()[3] == 3)", False, id="one that is given its bytes"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [300, 2000], ids=["spooled", "in memory"])
def test_a_trial_is_passed_by_living(intake, program, survives, chunk_bytes):
    upload = taken(intake, *deliveries(chunk_bytes=chunk_bytes))[-1]
    assert upload.survives_trial([sys.executable, "-c", program]) == survives
    assert content(intake, upload) == CONTENT


def test_a_trial_that_does_not_end_is_not_passed(intake, monkeypatch):
    monkeypatch.setattr("aggregator_worker.intake.TRIAL_SECONDS", 0.2)
    upload = taken(intake, *deliveries())[-1]
    assert not upload.survives_trial([sys.executable, "-c", "import time; time.sleep(60)"])
    upload.close()


def test_a_trial_ends_before_the_broker_takes_the_leader_for_dead():
    assert ConnectionSettings.model_fields["heartbeat_seconds"].default > TRIAL_SECONDS


def test_a_content_that_is_refused_in_the_ordinary_way_passes_its_trial(intake):
    upload = taken(intake, *deliveries())[-1]
    assert upload.survives_trial()
    upload.close()


def test_what_waits_to_be_acknowledged_keeps_no_body(intake):
    upload = taken(intake, *deliveries())[-1]
    assert [delivery.message.body for delivery in upload.deliveries] == [b""] * len(upload.deliveries)
    assert content(intake, upload) == CONTENT
