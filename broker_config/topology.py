"""What the broker of a federation holds: exchanges, queues, bindings and policies, as values.

A queue is entered only through the fanout exchange in front of it (`entrance`): a fanout ignores routing keys, CC and
BCC headers, and nobody may write to the default exchange.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from shared.broker import Message
from shared.errors import SettingsError

LEAD = "fl.lead"
LINEAGE = "fl.lineage"
MODEL = "fl.model"
STATE = "fl.state"
OPERATIONS = "fl.ops"
DEAD_LETTER_EXCHANGE = "fl.dlx"
DEAD_LETTERS = "fl.dlq"

# The one message of LEAD: whose delivery it is, leads.
TOKEN = Message(b"", kind="token", message_id="lead")

_UPDATES = "fl.upd."
_CONTROL = "fl.ctl."
_JOURNAL = "fl.jrn."
_INSTITUTION = re.compile(r"[A-Za-z0-9_-]{1,64}")
_OTHER_LOGINS = frozenset({"admin", "aggregator", "guest", "operator", "viewer"})

MIB = 1 << 20
# RabbitMQ 3.10 has no delivery limit by default and 4.x has 20; a crashing aggregator must not dead-letter good updates.
NEVER = 1_000_000_000

Argument = str | int | bool


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue or stream; `arguments` cannot be changed without deleting it."""

    name: str
    arguments: Mapping[str, Argument]

    @property
    def is_stream(self) -> bool:
        """Streams are read by offset, and keep what was read."""
        return self.arguments["x-queue-type"] == "stream"


@dataclass(frozen=True, slots=True)
class Exchange:
    """A durable fanout exchange."""

    name: str
    kind: str = "fanout"


@dataclass(frozen=True, slots=True)
class Binding:
    """What enters `exchange` goes to `queue`."""

    exchange: str
    queue: str


@dataclass(frozen=True, slots=True)
class Policy:
    """Limits that an operator may change on the running broker; one policy applies to a queue."""

    name: str
    pattern: str
    definition: Mapping[str, Argument]

    def applies_to(self, queue: str) -> bool:
        """Whether the pattern is found in the queue's name."""
        return re.search(self.pattern, queue) is not None


@dataclass(frozen=True, slots=True)
class Limits:
    """Room on the broker's disk, in bytes unless named otherwise; None means without limit."""

    update_bytes: int = 16 * MIB
    updates_per_institution: int = 3
    messages_per_institution: int = 1000
    model_stream_bytes: int = 1024 * MIB
    state_stream_bytes: int = 1024 * MIB
    segment_bytes: int = 64 * MIB
    dead_letter_bytes: int = 256 * MIB
    lineage_stream_bytes: int | None = None
    journal_stream_bytes: int | None = None
    hints_per_institution: int = 100

    @property
    def update_queue_bytes(self) -> int:
        """What one institution may have waiting."""
        return self.update_bytes * self.updates_per_institution


@dataclass(frozen=True, slots=True)
class Topology:
    """All objects of one federation's virtual host."""

    institutions: tuple[str, ...]
    limits: Limits
    exchanges: tuple[Exchange, ...] = field(repr=False)
    queues: tuple[Queue, ...] = field(repr=False)
    bindings: tuple[Binding, ...] = field(repr=False)
    policies: tuple[Policy, ...] = field(repr=False)


def checked_institution(institution: str) -> str:
    """The id itself, where it may be one; it becomes a user, a queue and a part of patterns."""
    if not _INSTITUTION.fullmatch(institution):
        raise SettingsError(f"{institution!r} cannot be an institution's id: 1 to 64 of the letters A-Z a-z 0-9 _ -")
    if institution in _OTHER_LOGINS:
        raise SettingsError(f"{institution!r} cannot be an institution's id: the broker has another login of that name")
    return institution


def update_queue(institution: str) -> str:
    """Updates of one institution: it writes, the leader reads."""
    return _UPDATES + institution


def control_queue(institution: str) -> str:
    """Hints to one institution."""
    return _CONTROL + institution


def journal_queue(institution: str) -> str:
    """The stream that keeps the bodies of one institution's updates, where journalling is on."""
    return _JOURNAL + institution


def institution_of(queue: str) -> str | None:
    """The institution whose update queue this is."""
    return queue.removeprefix(_UPDATES) if queue.startswith(_UPDATES) else None


def control_institution(queue: str) -> str | None:
    """The institution to which the hints of a queue go."""
    return queue.removeprefix(_CONTROL) if queue.startswith(_CONTROL) else None


def journal_institution(queue: str) -> str | None:
    """The institution whose updates a journal keeps."""
    return queue.removeprefix(_JOURNAL) if queue.startswith(_JOURNAL) else None


def entrance(queue: str) -> str:
    """The fanout exchange in front of a queue.

    An institution reads some queues. Read on an exchange and write on its own exchange would let it bind the two, and its
    full update queue would then refuse the aggregator's publishes. So only update queues share their exchange's name.
    """
    if queue == DEAD_LETTERS:
        return DEAD_LETTER_EXCHANGE
    return queue if queue.startswith(_UPDATES) or queue == DEAD_LETTER_EXCHANGE else f"{queue}.in"


def topology(institutions: Iterable[str], limits: Limits | None = None) -> Topology:
    """The objects of a federation with these institutions."""
    limits = limits or Limits()
    members = tuple(sorted({checked_institution(institution) for institution in institutions}))
    queues = _shared_queues() + tuple(queue for member in members for queue in _queues_of(member, limits))
    bindings = tuple(Binding(_exchange_before(queue.name), queue.name) for queue in queues)
    exchanges = tuple(Exchange(name) for name in sorted({binding.exchange for binding in bindings}))
    return Topology(members, limits, exchanges, queues, bindings, _policies(limits))


def _exchange_before(queue: str) -> str:
    return _UPDATES + queue.removeprefix(_JOURNAL) if queue.startswith(_JOURNAL) else entrance(queue)


def _quorum(name: str, **arguments: Argument) -> Queue:
    named = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
    return Queue(name, MappingProxyType({"x-queue-type": "quorum", **named}))


def _stream(name: str) -> Queue:
    return Queue(name, MappingProxyType({"x-queue-type": "stream"}))


def _shared_queues() -> tuple[Queue, ...]:
    return (
        _quorum(LEAD, single_active_consumer=True),
        _stream(LINEAGE),
        _stream(MODEL),
        _stream(STATE),
        _quorum(OPERATIONS),
        _quorum(DEAD_LETTERS),
    )


def _queues_of(institution: str, limits: Limits) -> tuple[Queue, ...]:
    own = (_quorum(update_queue(institution)), _quorum(control_queue(institution)))
    return own if limits.journal_stream_bytes is None else (*own, _stream(journal_queue(institution)))


def _policies(limits: Limits) -> tuple[Policy, ...]:
    policies = (
        Policy("fl-lead", r"^fl\.(lead|ops)$", {"delivery-limit": NEVER}),
        Policy("fl-lineage", r"^fl\.lineage$", _retention(limits.lineage_stream_bytes, limits.segment_bytes)),
        Policy("fl-model", r"^fl\.model$", _retention(limits.model_stream_bytes, limits.segment_bytes)),
        Policy("fl-state", r"^fl\.state$", _retention(limits.state_stream_bytes, limits.segment_bytes)),
        Policy("fl-upd", r"^fl\.upd\.", _update_limits(limits)),
        Policy("fl-ctl", r"^fl\.ctl\.", _newest(limits.hints_per_institution)),
        Policy("fl-dlq", r"^fl\.dlq$", _dead_letter_limits(limits)),
    )
    if limits.journal_stream_bytes is None:
        return policies
    return (*policies, Policy("fl-jrn", r"^fl\.jrn\.", _retention(limits.journal_stream_bytes, limits.segment_bytes)))


def _retention(kept_bytes: int | None, segment_bytes: int) -> Mapping[str, Argument]:
    segments: dict[str, Argument] = {"stream-max-segment-size-bytes": segment_bytes}
    return segments if kept_bytes is None else segments | {"max-length-bytes": kept_bytes}


def _update_limits(limits: Limits) -> Mapping[str, Argument]:
    return {
        "max-length-bytes": limits.update_queue_bytes,
        "max-length": limits.messages_per_institution,  # bytes are those of bodies: a flood of empty ones has none
        "overflow": "reject-publish",
        "dead-letter-exchange": DEAD_LETTER_EXCHANGE,
        "dead-letter-strategy": "at-least-once",
        "delivery-limit": NEVER,
    }


def _newest(messages: int) -> Mapping[str, Argument]:
    return {"max-length": messages, "overflow": "drop-head", "delivery-limit": NEVER}


def _dead_letter_limits(limits: Limits) -> Mapping[str, Argument]:
    # At-least-once dead-lettering waits for this queue's confirm, so it must never refuse.
    return {"max-length-bytes": limits.dead_letter_bytes, "overflow": "drop-head", "delivery-limit": NEVER}
