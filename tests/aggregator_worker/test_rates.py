import pytest

from aggregator_worker.rates import Bucket, Rates, letters_bucket, updates_bucket, useless_bucket
from shared.plan import Limits

MIB = 2**20


def rates(**limits: int | None) -> Rates:
    return Rates(Limits(**{"useless_per_minute": None, "letters_per_day": None, **limits}))


def test_a_bucket_fills_up_to_its_capacity_and_no_further():
    bucket = Bucket(capacity=10, per_second=2, enough=5, level=4, since=100)
    assert bucket.fill(101) == 6
    assert bucket.fill(200) == 10


def test_what_is_spent_last_may_leave_a_debt_that_is_paid_by_waiting():
    bucket = Bucket(capacity=10, per_second=2, enough=5, level=1, since=0)
    bucket.spend(9, 0)
    assert bucket.fill(0) == -8
    assert bucket.fill(4) == 0


def test_an_institution_may_send_a_minutes_worth_of_useless_messages_at_once_and_then_waits_half_a_minute():
    tested = rates(useless_per_minute=60)
    for _ in range(59):
        tested.useless("bank-a", now=0)
    assert tested.overruns == {}
    tested.useless("bank-a", now=0)
    assert [(each.institution, each.limit) for each in tested.overruns.values()] == [("bank-a", "useless_per_minute")]
    assert not tested.has_recovered("bank-a", now=29.9)
    assert tested.overruns
    assert tested.has_recovered("bank-a", now=30.1)
    assert tested.overruns == {}


def test_one_useless_message_a_second_is_for_ever_within_sixty_a_minute():
    tested = rates(useless_per_minute=60)
    for second in range(1000):
        tested.useless("bank-a", now=second)
    assert tested.overruns == {}


def test_where_updates_are_small_a_useless_message_counts_once_for_each_4_kib():
    tested = rates(useless_per_minute=64, update_bytes=1024)
    tested.useless("bank-a", size=63 * 4096, now=0)
    assert tested.overruns == {}
    tested.useless("bank-a", size=1, now=0)
    assert list(tested.overruns) == ["bank-a"]


def test_one_message_that_is_far_larger_than_any_update_is_paid_for_by_a_long_wait():
    tested = rates(useless_per_minute=1000, update_bytes=MIB)
    tested.useless("bank-a", size=16 * MIB, now=0)  # 4096 times 4 KiB; 3096 are missing, and 500 must be there
    assert not tested.has_recovered("bank-a", now=215)
    assert tested.has_recovered("bank-a", now=216)


def test_an_upload_of_the_largest_update_that_is_given_up_counts_for_half_a_minute_at_most():
    tested = rates(useless_per_minute=1000, update_bytes=1000 * MIB)
    tested.useless("bank-a", size=1000 * MIB, now=0)
    assert tested.overruns == {}
    tested.useless("bank-a", size=1000 * MIB, now=0)
    assert list(tested.overruns) == ["bank-a"]


def test_many_small_messages_count_by_their_number():
    tested = rates(useless_per_minute=10)
    tested.useless("bank-a", messages=10, size=10, now=0)
    assert list(tested.overruns) == ["bank-a"]


def test_what_one_spends_is_not_taken_from_another():
    tested = rates(useless_per_minute=2, updates_per_hour=1, letters_per_day=1)
    for _ in range(9):
        tested.useless("bank-a", now=0)
        tested.update("bank-a", now=0)
        tested.may_be_put_aside("bank-a", size=1, now=0)
    tested.useless("bank-b", now=0)
    tested.update("bank-b", now=0)
    assert list(tested.overruns) == ["bank-a"]
    assert tested.may_be_put_aside("bank-b", size=1, now=0)


def test_sixty_updates_an_hour_are_eight_at_once_and_then_one_a_minute():
    tested = rates(updates_per_hour=60)
    for _ in range(7):
        tested.update("bank-a", now=0)
    assert tested.overruns == {}
    tested.update("bank-a", now=0)
    assert [each.limit for each in tested.overruns.values()] == ["updates_per_hour"]
    assert not tested.has_recovered("bank-a", now=59)
    assert tested.has_recovered("bank-a", now=61)
    tested.update("bank-a", now=61)
    assert tested.overruns == {}  # a little more than one had come back
    tested.update("bank-a", now=62)
    assert not tested.has_recovered("bank-a", now=120)


def test_a_higher_rate_of_updates_pauses_for_ten_seconds_so_that_it_does_not_stop_and_start_with_every_one():
    bucket = updates_bucket(36_000, 0)  # ten a second
    assert (bucket.capacity, bucket.per_second, bucket.enough) == (600, 10, 100)


def test_no_hour_has_more_updates_than_the_limit_and_what_may_come_at_once():
    bucket, taken = updates_bucket(120, 0), 0
    for second in range(3600):
        while bucket.fill(second) > 0:
            bucket.spend(1, second)
            taken += 1
    assert taken == pytest.approx(120 + 8, abs=1)


def test_a_limit_that_is_none_is_no_limit():
    tested = rates()
    for _ in range(100_000):
        tested.update("bank-a", now=0)
        tested.useless("bank-a", size=MIB, now=0)
    assert tested.overruns == {}
    assert tested.may_be_put_aside("bank-a", size=10**9, now=0)


def test_the_first_letters_of_a_day_are_kept_and_then_one_for_each_share_of_the_day():
    tested = rates(letters_per_day=24)
    assert [tested.may_be_put_aside("bank-a", size=100, now=0) for _ in range(25)] == [True] * 24 + [False]
    assert not tested.may_be_put_aside("bank-a", size=100, now=3599)
    assert tested.may_be_put_aside("bank-a", size=100, now=3601)
    assert not tested.may_be_put_aside("bank-a", size=100, now=3602)


def test_a_letter_counts_by_its_mebibytes_and_the_first_is_kept_however_large_it_is():
    tested = rates(letters_per_day=24)
    assert tested.may_be_put_aside("bank-a", size=48 * MIB, now=0)
    assert not tested.may_be_put_aside("bank-a", size=1, now=24 * 3600)
    assert tested.may_be_put_aside("bank-a", size=1, now=25 * 3600 + 1)


def test_letters_that_are_not_kept_stop_nobody():
    tested = rates(letters_per_day=1)
    for _ in range(100):
        tested.may_be_put_aside("bank-a", size=MIB, now=0)
    assert tested.overruns == {}


def test_the_shape_of_the_other_buckets():
    assert (useless_bucket(1000, 0).capacity, useless_bucket(1000, 0).enough) == (1000, 500)
    assert (letters_bucket(100, 0).capacity, letters_bucket(100, 0).enough) == (100, 1)
