"""The states that a session tells of itself, as its run goes on."""

import threading

import pytest

from tests.client_worker.test_session import Scene, stepped, turned
from tests.running import local_data


@pytest.fixture
def scene(tmp_path):
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def told(scene: Scene) -> tuple[str, bool]:
    """The state, and whether that is ready."""
    gauges = scene.work.gauges
    return gauges._state, gauges.vitals.now().ready


def words(scene: Scene) -> str:
    return scene.work.gauges.vitals.now().reason


def test_a_client_is_ready_once_it_is_greeted_and_says_what_it_is_at(scene: Scene) -> None:
    may_end = threading.Event()
    scene.data = local_data("bank-a", at_least=lambda: may_end.wait(10))
    session = scene.session()
    session.open()
    turned(session)
    assert told(scene) == ("greeting", False)

    scene.answer(scene.hello())
    stepped(session, lambda: told(scene) == ("training", True))
    may_end.set()
    first, digest = scene.update(session)
    turned(session)
    assert told(scene) == ("waiting", True)
    assert words(scene) == "waiting: until update 1 is settled"

    scene.entry = scene.entry.model_copy(update={"quarantined": True})
    scene.settle(first, digest, model=2.0)
    stepped(session, lambda: told(scene) == ("quarantined", True))
    assert "ask the operator" in words(scene)

    scene.entry = scene.entry.model_copy(update={"quarantined": False})
    scene.commit(3.0, phase="paused", phase_reason="by the operator")
    stepped(session, lambda: told(scene) == ("paused", True))
    assert words(scene) == "paused: by the operator"

    arrived, session._model = session._model, lambda wanted: None
    scene.commit(4.0)
    stepped(session, lambda: words(scene) == "waiting: for a model")
    session._model = arrived
    second, digest = scene.update(session)
    turned(session)
    assert told(scene) == ("waiting", True)
    scene.settle(second, digest, model=4.0, phase="finished", phase_reason="enough")
    stepped(session, lambda: told(scene) == ("finished", True))
