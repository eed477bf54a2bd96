"""What systemd hears, on a real socket of its kind; systemd itself is not here."""

import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring.systemd import Supervision, supervised
from monitoring.vitals import Vitals
from tests.notified import NotifySocket


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@fedqueue-{uuid.uuid4().hex}"


@pytest.fixture
def hearing(address: str) -> Iterator[NotifySocket]:
    hearing = NotifySocket(address)
    yield hearing
    hearing.close()


def test_ready_is_told_once_and_a_status_whenever_it_changes(hearing: NotifySocket, address: str) -> None:
    vitals = Vitals()
    supervision = Supervision(address, None, vitals)
    told = []
    for say in (
        lambda: vitals.not_ready("waiting to be greeted"),
        lambda: vitals.ready("greeted"),
        lambda: vitals.beat(),
        lambda: vitals.not_ready("the broker\nis away"),
        lambda: vitals.ready("greeted"),
    ):
        say()
        supervision.tell()
        told.append(hearing.everything())

    assert told == [
        ["STATUS=not ready: waiting to be greeted", "EXTEND_TIMEOUT_USEC=60000000"],
        ["READY=1", "STATUS=greeted"],
        [],
        ["STATUS=not ready: the broker is away"],
        ["STATUS=greeted"],
    ]


def test_the_watchdog_is_fed_while_the_loop_turns_and_starves_when_it_does_not(hearing: NotifySocket, address: str) -> None:
    seconds = [0.0]
    vitals = Vitals(stalled_after_seconds=60, clock=lambda: seconds[0])
    vitals.ready("greeted")
    supervision = Supervision(address, 30.0, vitals)

    supervision.tell()
    assert hearing.everything() == ["READY=1", "STATUS=greeted", "WATCHDOG=1"]
    supervision.tell()
    assert hearing.everything() == ["WATCHDOG=1"]
    seconds[0] = 60.0
    supervision.tell()
    assert hearing.everything() == ["STATUS=not ready: its loop has not turned for 60 seconds; before that: greeted"]


def test_a_worker_that_hangs_at_its_start_asks_for_no_more_time(hearing: NotifySocket, address: str) -> None:
    seconds = [0.0]
    supervision = Supervision(address, None, Vitals(stalled_after_seconds=60, clock=lambda: seconds[0]))
    supervision.tell_alive()
    seconds[0] = 61.0
    supervision.tell_alive()

    assert hearing.everything() == ["EXTEND_TIMEOUT_USEC=60000000"]


def test_the_end_is_told_when_it_begins_and_the_watchdog_is_fed_until_it_is_there(
    hearing: NotifySocket, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    vitals, stopping = Vitals(), threading.Event()
    vitals.ready("greeted")
    with supervised(vitals, stopping):
        assert hearing.lines() == ["READY=1", "STATUS=greeted"]
        stopping.set()
        while (lines := hearing.lines()) == ["WATCHDOG=1"]:
            pass
        assert lines == ["STOPPING=1", "STATUS=ending"]
        assert hearing.lines() == ["WATCHDOG=1"]


def test_what_fails_without_having_been_asked_to_end_ends_all_the_same(
    hearing: NotifySocket, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with pytest.raises(ZeroDivisionError), supervised(Vitals(), threading.Event()):
        raise ZeroDivisionError

    assert "STOPPING=1" in hearing.everything()


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 60.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),  # meant for another process
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_period_is_that_of_this_process(environment: dict[str, str], seconds: float | None) -> None:
    supervision = Supervision.asked_for({"NOTIFY_SOCKET": "/run/notify", **environment}, Vitals())

    assert supervision is not None
    assert supervision.watchdog_seconds == seconds


def test_a_sign_of_life_comes_twice_within_what_is_waited_for() -> None:
    assert Supervision("/run/notify", 0.5, Vitals()).tick_seconds == 0.25
    assert Supervision("/run/notify", 60, Vitals()).tick_seconds == 1


def test_outside_of_a_service_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert Supervision.asked_for({}, Vitals()) is None
    before = threading.active_count()
    with supervised(Vitals(), threading.Event()):
        assert threading.active_count() == before


def test_what_was_not_heard_is_told_again(tmp_path: Path) -> None:
    vitals = Vitals()
    vitals.ready("greeted")
    supervision = Supervision(str(tmp_path / "notify"), None, vitals)
    supervision.tell()
    late = NotifySocket(str(tmp_path / "notify"))
    supervision.tell()
    heard = late.everything()
    late.close()

    assert heard == ["READY=1", "STATUS=greeted"]


def test_a_service_manager_that_is_gone_hurts_nobody(tmp_path: Path) -> None:
    supervision = Supervision(str(tmp_path / "nobody"), None, Vitals())

    supervision.tell()
    supervision.tell()
