import threading

import pytest
from structlog.testing import capture_logs

from broker_config.reconnect import persist
from shared.errors import BrokerUnavailableError, PublishRefusedError, StorageError, TopologyError


def failing(*errors: Exception, stopping: threading.Event):
    """A session that raises each error in turn, then asks to stop; and the list of its calls."""
    left, calls = list(errors), []

    def session() -> None:
        calls.append(len(calls))
        if left:
            raise left.pop(0)
        stopping.set()

    return session, calls


@pytest.mark.parametrize("error", [BrokerUnavailableError("gone"), PublishRefusedError("full"), StorageError("disk")], ids=repr)
def test_a_session_is_tried_again_after_what_passes_by_itself(error):
    stopping = threading.Event()
    session, calls = failing(error, stopping=stopping)
    persist(session, stopping)
    assert calls == [0, 1]


def test_a_session_that_returns_is_followed_by_the_next():
    stopping, calls = threading.Event(), []

    def session() -> None:
        calls.append(1)
        if len(calls) == 3:
            stopping.set()

    persist(session, stopping)
    assert len(calls) == 3


def test_a_session_that_was_healthy_is_followed_by_the_next_without_a_pause():
    stopping = threading.Event()
    session, calls = failing(*[BrokerUnavailableError("gone")] * 40, stopping=stopping)
    with capture_logs() as lines:
        persist(session, stopping, healthy_seconds=0.0)
    assert len(calls) == 41
    assert [line["event"] for line in lines] == ["connection lost"] * 40


def test_what_a_person_must_look_at_is_not_tried_again():
    stopping = threading.Event()
    session, calls = failing(TopologyError("no queue"), stopping=stopping)
    with pytest.raises(TopologyError):
        persist(session, stopping)
    assert calls == [0]


def test_a_request_to_stop_ends_the_wait_between_two_tries():
    stopping, tried = threading.Event(), threading.Event()

    def session() -> None:
        tried.set()
        raise BrokerUnavailableError("never there")

    thread = threading.Thread(target=persist, args=(session, stopping))
    thread.start()
    assert tried.wait(10)
    stopping.set()
    thread.join(10)
    assert not thread.is_alive()


def test_nothing_is_tried_once_it_is_asked_to_stop():
    stopping = threading.Event()
    stopping.set()
    session, calls = failing(stopping=stopping)
    persist(session, stopping)
    assert calls == []
