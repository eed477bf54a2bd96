import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from campaigns import fuzz_targets
from campaigns.fuzz import outcome
from campaigns.fuzz_targets import CONTENT, VALID, edited
from shared import codec, messages
from shared.errors import RejectedMessageError

edits = st.binary(max_size=200)
quickly = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    found = fuzz_targets.targets(tmp_path_factory.mktemp("spools"))
    yield found
    found["admission"].close()


@pytest.mark.parametrize("name", ["decoding", "reassembly", "admission"])
@quickly
@given(data=edits)
def test_edited_messages_raise_nothing_but_refusals(targets, name, data):
    targets[name](data)


@quickly
@given(which=st.integers(0, len(VALID) - 1), data=edits)
def test_what_decoding_takes_in_memory_is_bounded_by_the_size_of_the_message(which, data):
    body = edited(VALID[which], data)
    tracemalloc.start()
    try:
        with suppress(RejectedMessageError):
            messages.decode_record(body, max_bytes=fuzz_targets.MAX_BYTES)
        with suppress(RejectedMessageError):
            codec.decode(body, max_bytes=fuzz_targets.MAX_BYTES, max_fields_bytes=messages.SMALL_BYTES)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 70 times its packed bytes is what small objects take (shared.codec.MAX_FIELDS_BYTES); the rest is the decoders' own
    assert peak_bytes <= 70 * len(body) + 2**18


def test_without_edits_a_message_is_a_valid_one():
    update, delta = messages.decode_update(edited(CONTENT, b""), max_bytes=fuzz_targets.MAX_BYTES)
    assert (update.institution, sorted(delta)) == ("bank-a", ["bias", "weight"])


def test_an_edit_replaces_inserts_and_deletes():
    assert edited(b"abc", b"\x00\x00\x01X") == b"aXc"
    assert edited(b"abc", b"\x01\x00\x01X") == b"aXbc"
    assert edited(b"abc", b"\x02\x00\x01\x00") == b"ac"


def test_a_run_that_did_not_come_to_its_end_has_failed():
    told = "#2 INITED cov: 300\n#9 DONE cov: 512 ft: 1\nstat::number_of_executed_units: 9\nstat::peak_rss_mb: 80\n"
    whole = outcome("decoding", told, 0, 1.0)
    assert (whole.inputs, whole.coverage, whole.peak_mb, whole.failed) == (9, 512, 80, False)
    assert outcome("decoding", told, 77, 1.0).failed
    assert outcome("decoding", "killed", 0, 1.0).failed
