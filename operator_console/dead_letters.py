"""The dead letters as an operator handles them: by headers and lengths, never by what a payload decodes to.

Everything in a letter was written by strangers, but for its `user_id`, which the broker validated.
"""

import hashlib
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from pydantic import ValidationError

from broker_config.definitions import AGGREGATOR
from broker_config.topology import DEAD_LETTERS, institution_of
from shared import messages
from shared.broker import Broker, Delivery, Header
from shared.errors import FederationError
from shared.messages import Operation

MOST_LETTERS = 50_000
"""AMQP counts unacknowledged deliveries in 16 bits."""
SHOWN_BYTES = 64
_HANDLE_DIGITS = 12


class NoSuchLetterError(FederationError):
    """Give an id that `fedqueue dead-letters list` shows."""


class UnusableLetterError(FederationError):
    """Discard it: nothing can ever be made of this letter."""


class IncompleteUploadError(FederationError):
    """Ask the institution to send it again: some of its chunks are not among the dead letters."""


@dataclass(frozen=True, slots=True, eq=False)
class Letter:
    """One dead letter. `delivery` has no body unless it was asked for; `begin` is that body's first bytes."""

    delivery: Delivery
    size: int
    begin: bytes
    fingerprint: str

    @property
    def headers(self) -> Mapping[str, Header]:
        """As they came; hostile."""
        return self.delivery.message.headers

    @property
    def author(self) -> str:
        """The login that the broker validated; empty where there was none. Only an aggregator's word on it is taken."""
        copied = self.delivery.user_id == AGGREGATOR
        return str(self.headers.get("author", "")) if copied else self.delivery.user_id or ""

    @property
    def institution(self) -> str:
        """The author, or else, with a question mark, the owner of the queue that it lay in."""
        queue = str(self.headers.get("x-first-death-queue", ""))
        return self.author or f"{institution_of(queue) or ''}?"

    @property
    def reason(self) -> str:
        """Why it is here, as the aggregator says or else the broker."""
        refused = self.headers.get("refused") if self.delivery.user_id == AGGREGATOR else None
        return str(refused or self.headers.get("x-first-death-reason", "unknown"))

    @property
    def place(self) -> tuple[int, int]:
        """Index of this chunk, and how many there are; (0, 1) for what is no chunk."""
        chunk, chunks = self.headers.get("chunk"), self.headers.get("chunks")
        return (chunk, chunks) if isinstance(chunk, int) and isinstance(chunks, int) and 0 <= chunk < chunks else (0, 1)

    @property
    def handle(self) -> str:
        """The same for all chunks of one upload; a message of one piece has its own."""
        whole = tuple(str(self.headers.get(name, "")) for name in ("run", "id", "content", "size"))
        of = (self.author, self.delivery.message.kind, *whole) if self.place[1] > 1 else self.fingerprint
        return hashlib.sha256(repr(of).encode()).hexdigest()[:_HANDLE_DIGITS]


@dataclass(frozen=True, slots=True, eq=False)
class DeadUpload:
    """The letters that belong together, first chunk first; a repeated chunk is there as often as it came."""

    handle: str
    letters: Sequence[Letter]

    @property
    def first(self) -> Letter:
        """Whose headers speak for all."""
        return self.letters[0]

    @property
    def size(self) -> int:
        """Bytes of the bodies that are here."""
        return sum(letter.size for letter in self.letters)

    @property
    def chunks(self) -> tuple[int, int]:
        """How many chunks are here, and how many there are."""
        return len({letter.place[0] for letter in self.letters}), self.first.place[1]

    def each_chunk(self) -> list[Letter]:
        """One letter for each chunk, in order. Raises IncompleteUploadError."""
        one_each = {letter.place[0]: letter for letter in reversed(self.letters)}
        here, all_of_them = self.chunks
        if here < all_of_them:
            raise IncompleteUploadError(
                f"only {here} of its {all_of_them} chunks are among the dead letters, so that it cannot be put together again: "
                "the institution must send it once more, and this rest can be discarded"
            )
        return [one_each[index] for index in sorted(one_each)]


def uploads(letters: Sequence[Letter]) -> list[DeadUpload]:
    """What belongs together, oldest first."""
    groups: dict[str, list[Letter]] = {}
    for letter in letters:
        groups.setdefault(letter.handle, []).append(letter)
    return [DeadUpload(handle, sorted(group, key=lambda each: each.place)) for handle, group in groups.items()]


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """The queue of dead letters, over an operator's connection. When no letter comes for `idle_seconds`, that was the last."""

    broker: Broker
    idle_seconds: float = 2.0

    def look(self, *, limit: int = MOST_LETTERS, whole: str = "") -> list[Letter]:
        """The oldest letters, which all stay where they are; only those with the handle `whole` keep their bodies."""
        with self._held(limit) as arriving:
            return [
                letter if letter.handle == whole else replace(letter, delivery=letter.delivery.receipt())
                for letter in map(_letter, arriving)
            ]

    def find(self, handle: str) -> DeadUpload:
        """The letters of one handle, with their bodies. Raises NoSuchLetterError."""
        found = [upload for upload in uploads(self.look(whole=handle)) if upload.handle == handle]
        if not found:
            raise NoSuchLetterError(f"no dead letter has the id {handle}; `fedqueue dead-letters list` shows what there is")
        return found[0]

    def discard(self, letters: Collection[Letter]) -> int:
        """Acknowledges exactly these letters, and nothing else; returns how many were still there."""
        left = [letter.fingerprint for letter in letters]
        with self._held(MOST_LETTERS) as arriving:
            for delivery in arriving:
                fingerprint = _letter(delivery).fingerprint
                if fingerprint in left:
                    self.broker.ack(delivery)
                    left.remove(fingerprint)
                if not left:
                    break
        return len(letters) - len(left)

    @contextmanager
    def _held(self, limit: int) -> Iterator[Iterator[Delivery]]:
        """At most so many letters, unacknowledged; what is not acknowledged inside goes back to its place."""
        self.broker.consume(DEAD_LETTERS, prefetch=limit)
        try:
            yield self._arriving(limit)
        finally:
            self.broker.cancel(DEAD_LETTERS)

    def _arriving(self, limit: int) -> Iterator[Delivery]:
        for _ in range(limit):
            delivery = self.broker.receive(self.idle_seconds)
            if delivery is None:
                return
            yield delivery


def requeue_order(letter: Letter, run_id: str) -> Operation:
    """The order to take one letter in again. That its update counts once is seen to by the aggregator.

    Raises UnusableLetterError where no order could be made of what its author or the message's name are.
    """
    message, fault = letter.delivery.message, letter.delivery.fault
    if fault is not None:
        raise UnusableLetterError(f"it cannot be taken in again: {fault}")
    try:
        original = messages.Letter(
            author=letter.author,
            kind=message.kind,
            message_id=message.message_id,
            headers={**letter.headers, "author": letter.author},
            body=message.body,
        )
    except ValidationError as error:
        place = error.errors(include_input=False, include_url=False)[0]["loc"][0]
        raise UnusableLetterError(f"it cannot be taken in again: its {place} is not one that a message of ours has") from None
    return Operation(run_id=run_id, operation_id=secrets.token_hex(16), kind="requeue", arguments=original.model_dump())


def _letter(delivery: Delivery) -> Letter:
    message, body = delivery.message, delivery.message.body
    # brokers add headers of their own to a message that is delivered again
    written = sorted((name, value) for name, value in message.headers.items() if not name.startswith("x-"))
    digest = hashlib.sha256(body)
    digest.update(repr((delivery.user_id, message.kind, message.message_id, written)).encode())
    return Letter(delivery, len(body), bytes(body[:SHOWN_BYTES]), digest.hexdigest())
