"""Training windows by hand: weekdays, nights, and the two nights of 2027 on which Vienna changes its clocks."""

from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePath
from zoneinfo import ZoneInfo

import pytest
from structlog.testing import capture_logs

from client_worker.schedule import Schedule
from client_worker.settings import ClientSettings
from client_worker.windows import ALWAYS, Windows, parse_window
from shared.errors import SettingsError
from shared.settings import load
from tests.client_worker.test_cli import SETTINGS
from tests.client_worker.test_session import Scene, turned
from tests.running import member

VIENNA = ZoneInfo("Europe/Vienna")


def windows(*texts: str) -> Windows:
    return Windows(tuple(map(parse_window, texts)), VIENNA)


def local(text: str) -> datetime:
    """A moment on Vienna's clock. 23 November 2026 is a Monday."""
    return datetime.fromisoformat(text).replace(tzinfo=VIENNA)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("at", "is_open"),
    [
        ("2026-11-23 19:59:59", False),
        ("2026-11-23 20:00", True),
        ("2026-11-24 05:59:59", True),
        ("2026-11-24 06:00", False),
        ("2026-11-27 23:00", True),
        ("2026-11-28 05:00", True),  # Friday's window, on Saturday morning
        ("2026-11-28 20:00", False),
        ("2026-11-23 03:00", False),  # Sunday has no window that would reach into Monday
    ],
)
def test_a_window_over_midnight_belongs_to_the_day_on_which_it_opens(at, is_open):
    assert windows("Mon-Fri 20:00-06:00").is_open(local(at)) is is_open


@pytest.mark.parametrize(
    ("text", "days"),
    [
        ("Sat,Sun", {5, 6}),
        ("Mon-Fri", {0, 1, 2, 3, 4}),
        ("Fri-Mon", {4, 5, 6, 0}),
        ("Mon,Wed-Thu 08:00-09:30", {0, 2, 3}),
    ],
)
def test_days_are_lists_and_ranges_that_may_go_around_the_week(text, days):
    assert parse_window(text).days == days


def test_a_day_without_times_is_whole():
    weekend = windows("Sat,Sun")
    moments = ("2026-11-27 23:59", "2026-11-28 00:00", "2026-11-29 23:59", "2026-11-30 00:00")
    assert [weekend.is_open(local(at)) for at in moments] == [False, True, True, False]
    assert windows("Sun 12:00-24:00").closes(local("2026-11-29 13:00")) == local("2026-11-30 00:00")


def test_the_next_opening_is_the_soonest_of_all_windows():
    both = windows("Mon-Fri 20:00-06:00", "Sun")
    assert both.next_opening(local("2026-11-28 12:00")) == local("2026-11-29 00:00")
    assert both.next_opening(local("2026-11-30 12:00")) == local("2026-11-30 20:00")
    assert both.next_opening(local("2026-11-30 21:00")) is None
    assert windows("Mon 08:00-09:00").next_opening(local("2026-11-23 09:00")) == local("2026-11-30 08:00")


def test_windows_that_touch_close_together():
    both = windows("Fri 20:00-24:00", "Sat,Sun")
    assert both.closes(local("2026-11-27 21:00")) == local("2026-11-30 00:00")
    assert both.closes(local("2026-11-26 21:00")) is None
    assert windows("Mon-Sun").closes(local("2026-11-26 21:00")) is None, "it never closes"


def test_without_windows_it_is_always_open():
    assert (ALWAYS.is_open(local("2026-11-23 12:00")), ALWAYS.next_opening(local("2026-11-23 12:00"))) == (True, None)


@pytest.mark.parametrize(
    ("text", "opens", "closes"),
    [
        # 28 March 2027: 02:00 CET is 03:00 CEST, the night has nine hours
        ("Sat 20:00-06:00", "2027-03-27 19:00", "2027-03-28 04:00"),
        # 31 October 2027: 03:00 CEST is 02:00 CET, the night has eleven
        ("Sat 20:00-06:00", "2027-10-30 18:00", "2027-10-31 05:00"),
        # shown twice: opens and closes at the first showing
        ("Sun 02:30-05:00", "2027-10-31 00:30", "2027-10-31 04:00"),
        ("Sat 22:00-02:30", "2027-10-30 20:00", "2027-10-31 00:30"),
        # skipped: two and a half hours after midnight, when the clock shows 03:30
        ("Sun 02:30-05:00", "2027-03-28 01:30", "2027-03-28 03:00"),
    ],
)
def test_when_clocks_change_a_window_opens_once_and_closes_once(text, opens, closes):
    window, begin, end = windows(text), utc(opens), utc(closes)
    second = timedelta(seconds=1)
    assert [window.is_open(at) for at in (begin - second, begin, end - second, end, end + timedelta(hours=1))] == [
        False,
        True,
        True,
        False,
        False,
    ]
    # in UTC: a time that a clock shows twice is equal to nothing in another zone
    told = window.next_opening(begin - timedelta(minutes=5)), window.closes(begin)
    assert [each and each.astimezone(UTC) for each in told] == [begin, end]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Mon-Fri 8-17", 'write days and times as in "Mon-Fri 20:00-06:00"'),
        ("Monday", "is no window"),
        ("Mon 25:00-26:00", "a time that no day has"),
        ("Mon 08:61-09:00", "a time that no day has"),
        ("Mon 08:00-08:00", "for whole days leave the times out"),
    ],
)
def test_what_is_no_window_is_refused_with_the_form(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_window(text)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ('windows = ["Sat"]', "add time_zone"),
        ('windows = ["Sat"]\ntime_zone = "Europe/Wien"', "no time zone 'Europe/Wien'"),
        ('windows = ["Weekend"]\ntime_zone = "Europe/Vienna"', "is no window"),
    ],
)
def test_settings_that_name_no_moment_are_refused(lines, reason):
    with pytest.raises(SettingsError, match=reason):
        load(ClientSettings, f"{SETTINGS}\n[schedule]\n{lines}", path=PurePath("client.toml"))


def test_a_zone_is_known_where_the_system_knows_none(monkeypatch):
    monkeypatch.setattr("zoneinfo.TZPATH", ())
    ZoneInfo.clear_cache()
    assert Schedule(windows=("Sat",), time_zone="Europe/Vienna").as_windows().zone.key == "Europe/Vienna"


class Clock:
    def __init__(self, at: datetime) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at


def test_training_begins_in_a_window_only_and_the_log_says_when_the_next_opens(tmp_path):
    scene = Scene(tmp_path)
    scene.member = member("bank-a", windows=windows("Mon-Fri 20:00-06:00"))
    try:
        session = scene.welcomed()
        clock = session._permission._clock = Clock(local("2026-11-23 12:00"))
        with capture_logs() as said:
            turned(session, 10)
        assert scene.work.ledger.totals.reservations == 0
        (line,) = [each for each in said if each["event"] == "not training"]
        assert (line["state"], line["reason"]) == (
            "outside_window",
            "outside the training windows; training goes on from Mon 2026-11-23 20:00 CET",
        )
        clock.at = local("2026-11-23 20:00")
        assert scene.update(session)[0].sequence == 1
    finally:
        scene.close()


def test_a_training_that_has_begun_is_finished_and_sent_after_its_window_has_closed(tmp_path):
    scene = Scene(tmp_path)
    scene.member = member("bank-a", windows=windows("Mon 20:00-21:00"))
    try:
        session = scene.welcomed()
        clock = session._permission._clock = Clock(local("2026-11-23 20:59"))
        while scene.work.training is None and not scene.work.ledger.kept:
            session.step()
        clock.at = local("2026-11-23 21:00")
        first, digest = scene.update(session)
        assert first.sequence == 1
        scene.settle(first, digest, model=3.0)
        turned(session, 10)
        assert scene.work.ledger.totals.reservations == 1
    finally:
        scene.close()


def test_what_the_kits_settings_offer_can_be_taken_as_it_stands():
    template = Path(__file__).parents[2] / "operator_console" / "settings_templates" / "client.toml.j2"
    offered = [line.removeprefix("# ") for line in template.read_text().split("# [schedule]")[1].split("\n\n")[0].splitlines()]
    settings = load(ClientSettings, "\n".join([SETTINGS, "[schedule]", *offered]), path=PurePath("client.toml"))
    assert (len(settings.schedule.windows), settings.limits.nice) == (2, 10)
