import pytest

from benchmarks.simulator_scale import measured_apart

STATED_BYTES_PER_INSTITUTION = 40_000
STATED_BYTES_IN_ANY_CASE = 120_000_000


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_grows_linearly_with_institutions_and_by_no_more_than_is_stated() -> None:
    few, some, many = (measured_apart(institutions, 3 * institutions) for institutions in (500, 1500, 4500))

    # three times as many institutions each time: the second step is three times the first, or less where something is bounded
    assert many.peak_bytes - some.peak_bytes < 1.3 * 3 * (some.peak_bytes - few.peak_bytes)
    for each in (few, some, many):
        assert each.peak_bytes < STATED_BYTES_IN_ANY_CASE + STATED_BYTES_PER_INSTITUTION * each.institutions
