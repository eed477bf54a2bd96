"""Two honest institutions and a hostile one: the model is, to the bit, that of the run without the hostile one.

The honest updates are recorded as they were sealed and signed, and sent again in the same order. Each is based on the model of
the version before, so that one other bit in any version would have all that follow refused. Over TLS, against a real broker.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import cycle, islice

import numpy as np
import pytest

from broker_config.topology import update_queue
from shared.broker import Message
from shared.messages import Entry
from tests.builders import a_statement, an_update, array, as_messages, name_of
from tests.guarding import Keyring
from tests.hostile import content_attempts, sender_attempts
from tests.hostile.attempt import Attempt
from tests.hostile.institution import HostileInstitution
from tests.hostile.world import HONEST, HOSTILE, World, under_attack
from tests.running import EXAMPLES
from tests.tls import TlsNode

pytestmark = pytest.mark.rabbitmq

Recorded = list[tuple[str, Message]]
UPDATES_EACH = 6

REFUSED: Sequence[Attempt] = (*sender_attempts.SIGNATURES, *sender_attempts.SEALS, *content_attempts.ENVELOPES)
"""All of these become dead letters."""
EVERYTHING: Sequence[Attempt] = (
    *REFUSED,
    *content_attempts.MEMBER[:3],
    *content_attempts.VALUES,
    *content_attempts.STATEMENTS[:6],
)
"""Those of the first three are updates as good as any; the others can be read, and use up numbers."""


@pytest.fixture
def keyring() -> Keyring:
    """The same keys in both runs: what was sealed for the aggregator of one can be read by that of the other."""
    return Keyring(sealed=True)


def without_it(keyring: Keyring) -> dict[str, Entry]:
    """The honest two."""
    return {pseudonym: entry for pseudonym, entry in keyring.table().items() if pseudonym != name_of(HOSTILE)}


def in_quarantine(keyring: Keyring) -> dict[str, Entry]:
    """All three; the operator has put the hostile one into quarantine before it sent anything."""
    table = keyring.table()
    return table | {name_of(HOSTILE): table[name_of(HOSTILE)].model_copy(update={"quarantined": True})}


def as_member(keyring: Keyring) -> dict[str, Entry]:
    """All three, with a share of the weight each."""
    return keyring.table()


def recorded(world: World) -> Recorded:
    """Each honest institution in turn trains on the newest model; its updates as they went over the wire."""
    sent: Recorded = []
    for number, name in enumerate(islice(cycle(HONEST), UPDATES_EACH * len(HONEST)), start=1):
        sequence = world.watch.entry(name).watermark + 1
        statement = a_statement(world.plan, 0.1 * sequence)
        update = an_update(name, sequence, base=world.watch.head, num_examples=EXAMPLES[name], privacy=statement)
        (message,) = as_messages(update, {"w": array(1 / number, -number / 3, 0.7)})
        sent.append((name, world.signed(name, message)))
        give(world, *sent[-1])
    return sent


def give(world: World, name: str, message: Message) -> None:
    """One recorded update, and its settlement."""
    before = len(world.watch.outcomes(name))
    with closing(world.server.connect(name)) as sender:
        sender.publish(update_queue(name), message)
    assert world.watch.until(lambda: len(world.watch.outcomes(name)) > before)
    assert world.watch.outcomes(name)[-1][1] == "aggregated"


def worst(world: World, attempts: Sequence[Attempt]) -> Iterator[str]:
    """What the hostile institution gets, attempt by attempt."""
    for attempt in attempts:
        with HostileInstitution(world, attempt.id) as hostile:
            yield attempt.how(hostile)


def models(world: World) -> list[str]:
    """The hash of every version's model, in their order."""
    return list({record.manifest.version: record.manifest.model.hash for record in world.watch.records}.values())


@pytest.mark.parametrize(
    ("reference", "attacked", "attempts"),
    [
        pytest.param(without_it, in_quarantine, EVERYTHING, id="in quarantine it may send anything"),
        pytest.param(as_member, as_member, REFUSED, id="as a member whatever is refused"),
    ],
)
def test_the_models_of_two_honest_institutions_are_the_same_bits_whatever_the_third_sends(
    tls_node: TlsNode,
    tmp_path_factory: pytest.TempPathFactory,
    keyring: Keyring,
    reference,
    attacked,
    attempts: Sequence[Attempt],
) -> None:
    with under_attack(tls_node, tmp_path_factory.mktemp("alone"), keyring=keyring, table=reference(keyring)) as alone:
        sealed = recorded(alone)
        expected, versions = alone.watch.model(), models(alone)
    with under_attack(tls_node, tmp_path_factory.mktemp("three"), keyring=keyring, table=attacked(keyring)) as three:
        got, size = [], -(-len(attempts) // len(sealed))
        for number, (name, message) in enumerate(sealed):
            got += worst(three, attempts[number * size : (number + 1) * size])
            give(three, name, message)
        made = three.watch.model()
        assert len(got) == len(attempts)
        assert not [answer for answer in got if answer.startswith("aggregated")]
        assert {outcome for _, outcome in three.watch.outcomes(HOSTILE)} <= {"rejected"}
        assert models(three) == versions
    assert len(versions) == len(sealed) + 1
    require_same_bits(made, expected)


def require_same_bits(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    """Not close: the same."""
    assert {name: array.tobytes() for name, array in one.items()} == {name: array.tobytes() for name, array in other.items()}
