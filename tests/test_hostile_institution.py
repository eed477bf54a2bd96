"""A hostile institution with a certificate of its own tries everything, and gets nowhere: tests/hostile/attempts.py is the table.

The page docs/security.md shows that table; FEDQUEUE_WRITE_DOCS=1 writes it anew.
"""

import os
from collections.abc import Iterator

import pytest

from operator_console.audit import aggregator_events
from operator_console.broker_log import broker_events
from tests.hostile import attempts, page
from tests.hostile.attempt import Attempt, on
from tests.hostile.institution import HostileInstitution
from tests.hostile.world import HONEST, LIMITED, World, under_attack
from tests.running import deltas_of, require_each_once, require_replay
from tests.tls import TlsNode

LEAST_ATTEMPTS = 60
LAWFUL = ("aggregated", "allowed", "kept", "reaches its own queue")


pytestmark = [pytest.mark.long, pytest.mark.both]


@pytest.fixture(scope="module")
def world(tls_node: TlsNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One that listens to everybody for as long as they like."""
    with under_attack(tls_node, tmp_path_factory.mktemp("hostile")) as founded:
        founded.warm_up()
        yield founded


@pytest.fixture
def limited(tls_node: TlsNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One with the limits of a usual plan, and nothing spent of them."""
    with under_attack(tls_node, tmp_path_factory.mktemp("flooded"), LIMITED) as founded:
        founded.warm_up()
        yield founded


def require_in_audit(attempt: Attempt, got: str, text: str) -> None:
    """`fedqueue audit` reads an event out of the log, unless it is the aggregator's and tells of what every member may do."""
    events = broker_events(text.splitlines()) if attempt.log == "broker" else aggregator_events(text.splitlines())
    assert list(events) or (attempt.log == "aggregator" and got.startswith(LAWFUL)), text


def require_in_vain(world: World, attempt: Attempt) -> None:
    """It gets what the table says, a log holds it, and the model and the others' entries are what they were."""
    world.follow()
    before, mark = (world.model_hash(), world.entries(HONEST)), world.logs[attempt.log].mark()
    with HostileInstitution(world, attempt.id) as hostile:
        got = attempt.how(hostile)
    if got.startswith("dead letter") and world.used_up_a_number():
        world.barrier()
    assert attempt.is_answered_by(got, world.version), got
    log = world.logs[attempt.log]
    assert log.says(on(attempt.evidence, world.version), mark), log.since(mark)
    require_in_audit(attempt, got, log.since(mark))
    world.follow()
    assert attempt.moves_the_model or (world.model_hash(), world.entries(HONEST)) == before


@pytest.mark.rabbitmq
@pytest.mark.parametrize("attempt", attempts.JUDGED_SINGLY, ids=lambda attempt: attempt.id)
def test_an_attempt_gets_what_the_table_says_is_in_a_log_and_changes_nothing(world: World, attempt: Attempt) -> None:
    require_in_vain(world, attempt)


@pytest.mark.rabbitmq
@pytest.mark.parametrize("attempt", attempts.LIMITED, ids=lambda attempt: attempt.id)
def test_a_flood_is_not_listened_to_while_the_others_updates_count(limited: World, attempt: Attempt) -> None:
    require_in_vain(limited, attempt)
    limited.require_updates_to_count()


@pytest.mark.rabbitmq
def test_the_others_updates_go_on_to_count_and_the_models_are_made_of_what_was_aggregated_alone(world: World) -> None:
    world.require_updates_to_count()
    require_each_once(world.watch)
    require_replay(world.watch, deltas_of(world.hands))


def test_the_page_shows_the_table_of_at_least_sixty_attempts() -> None:
    written = page.table(attempts.ATTEMPTS)
    if os.environ.get("FEDQUEUE_WRITE_DOCS"):
        page.write(written)
    assert len({each.id for each in attempts.ATTEMPTS}) == len(attempts.ATTEMPTS) >= LEAST_ATTEMPTS
    assert page.shown() == written
