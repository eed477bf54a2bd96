"""The soak's rules: what counts as flat, and what does not."""

import os

import pytest

from campaigns.samples import MIB, Reading, growth_bytes, not_flat, over_limit, read_process, stream_bytes

FLAT = [Reading(float(second), 100 * MIB, 20, 3) for second in range(100)]


def changed(**growth: float) -> list[Reading]:
    """Readings that grow by so much in each second."""
    return [
        Reading(
            reading.at_seconds,
            int(reading.resident_bytes + growth.get("resident_bytes", 0) * reading.at_seconds),
            int(reading.descriptors + growth.get("descriptors", 0) * reading.at_seconds),
            int(reading.threads + growth.get("threads", 0) * reading.at_seconds),
        )
        for reading in FLAT
    ]


def test_what_does_not_change_is_flat():
    assert list(not_flat("worker", FLAT)) == []


def test_memory_that_is_taken_in_the_first_half_and_kept_is_flat():
    warm = [Reading(each.at_seconds, 50 * MIB + int(min(each.at_seconds, 50)) * MIB, 20, 3) for each in FLAT]
    assert list(not_flat("worker", warm)) == []


def test_growth_is_that_of_the_second_half():
    assert growth_bytes(changed(resident_bytes=MIB)) == pytest.approx(49 * MIB)


@pytest.mark.parametrize(
    ("growth", "word"),
    [({"resident_bytes": MIB / 4}, "grew by 12.2 MiB"), ({"descriptors": 0.1}, "files open"), ({"threads": 0.05}, "threads")],
)
def test_what_grows_steadily_is_not_flat(growth, word):
    (trouble,) = not_flat("worker", changed(**growth))
    assert word in trouble


def test_a_small_process_may_grow_by_four_mebibytes():
    assert list(not_flat("worker", changed(resident_bytes=3.9 / 49 * MIB))) == []


def test_a_stream_may_hold_two_segments_above_its_limit_and_no_more():
    assert list(over_limit({"fl.model": 10 * MIB}, 8 * MIB, MIB)) == []
    (trouble,) = over_limit({"fl.model": 10 * MIB + 1}, 8 * MIB, MIB)
    assert trouble == "fl.model had 10.0 MiB on disk, its limit is 8 MiB"


def test_this_process_can_be_read():
    reading = read_process(os.getpid(), 1.5)
    assert reading.at_seconds == 1.5
    assert reading.resident_bytes > MIB
    assert reading.descriptors >= 3
    assert reading.threads >= 1


def test_streams_are_found_where_rabbitmq_puts_them(tmp_path):
    for name in ("fedqueue_fl_model_1700", "fedqueue_fl_jrn_bank_a_1701"):
        folder = tmp_path / "mnesia" / "n1@localhost" / "stream" / name
        folder.mkdir(parents=True)
        (folder / "00.segment").write_bytes(b"12345")
        (folder / "00.index").write_bytes(b"1")
    assert stream_bytes(tmp_path) == {"fl.model": 5, "fl.jrn.bank_a": 5}
