import pytest

from client_worker.ledger_rows import Sealed
from client_worker.standing import SameModelPause, require_own, require_same_history
from shared.errors import CheckpointError
from shared.messages import Entry


def entry(watermark: int, last_hash: str = "") -> Entry:
    return Entry(incarnation=1, watermark=watermark, last_hash=last_hash)


def kept(*sequences: int) -> dict[int, Sealed]:
    """An outbox in which the hash of update 7 is 64 sevens, and so on."""
    return {sequence: Sealed(sequence, str(sequence % 10) * 64, 100) for sequence in sequences}


OUTBOX = kept(*range(4, 13))


@pytest.mark.parametrize(
    ("watermark", "last_hash"),
    [
        pytest.param(12, "2" * 64, id="equal"),
        pytest.param(12, "", id="equal, and settled as lost"),
        pytest.param(9, "9" * 64, id="three are to be sent again"),
        pytest.param(4, "4" * 64, id="all but the oldest kept"),
        pytest.param(3, "3" * 64, id="all that is kept"),
    ],
)
def test_what_the_outbox_covers_is_the_same_history(watermark, last_hash):
    require_same_history(entry(watermark, last_hash), 12, OUTBOX)


@pytest.mark.parametrize(
    ("watermark", "last_hash", "reason"),
    [
        pytest.param(13, "3" * 64, "restored backup", id="behind"),
        pytest.param(12, "a" * 64, "disagrees", id="another hash at the head"),
        pytest.param(9, "a" * 64, "disagrees", id="another hash below the head"),
        pytest.param(2, "2" * 64, "update 3 is no longer kept here", id="further ahead than is kept"),
    ],
)
def test_behind_too_far_ahead_or_of_another_hash_it_is_another_history(watermark, last_hash, reason):
    with pytest.raises(CheckpointError, match=reason):
        require_same_history(entry(watermark, last_hash), 12, OUTBOX)


def test_a_new_institution_has_the_same_history_as_its_new_entry():
    require_same_history(entry(0), 0, {})


def test_what_others_settled_under_our_name_is_noticed():
    require_own(entry(12, "2" * 64), 12, OUTBOX)
    require_own(entry(12, ""), 12, OUTBOX)
    with pytest.raises(CheckpointError, match="the service runs twice"):
        require_own(entry(12, "a" * 64), 12, OUTBOX)
    with pytest.raises(CheckpointError, match="the service runs twice"):
        require_own(entry(13, "3" * 64), 12, OUTBOX)


def test_training_on_a_model_that_did_not_change_waits_longer_each_time():
    now = 0.0
    pause = SameModelPause(lambda: now)
    assert pause.holds("a") is False
    for seconds in (2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        pause.begun("a")
        now += seconds - 0.25
        assert pause.holds("a") is True
        assert pause.holds("b") is False
        now += 0.25
        assert pause.holds("a") is False
    pause.begun("b")
    now += 2.0
    assert pause.holds("b") is False
