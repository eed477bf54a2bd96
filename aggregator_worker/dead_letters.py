"""Dead letters: what cannot be used goes aside with its reason, and comes back by an operator's order."""

from pydantic import ValidationError

from aggregator_worker.intake import Upload
from aggregator_worker.operations import RefusedOperationError
from broker_config.topology import DEAD_LETTER_EXCHANGE, update_queue
from shared.broker import Broker, Delivery, Message
from shared.chunks import HEADERS, split
from shared.codec import Encoded
from shared.messages import Letter, Operation

NO_TAG = 0
"""Of a letter that was taken back: it is settled with the order that carried it."""
FAULT = "fault"
"""The header of a letter whose author is in doubt: it never comes back."""
_MAX_HEADER_CHARACTERS = 512


def put_aside(broker: Broker, delivery: Delivery, *, reason: str) -> None:
    """Copies a message to the dead letters."""
    broker.publish(DEAD_LETTER_EXCHANGE, _letter(delivery.message, delivery, reason))


def put_aside_whole(broker: Broker, upload: Upload, content: bytes | memoryview, *, chunk_bytes: int, reason: str) -> None:
    """Copies all chunks of an upload to the dead letters."""
    head, last = upload.head, upload.deliveries[-1]
    chunks = split(Encoded([content]), kind=head.kind, run_id=head.run, identity=head.id, chunk_bytes=chunk_bytes)
    broker.publish_all(DEAD_LETTER_EXCHANGE, (_letter(chunk, last, reason) for chunk in chunks))


def _letter(message: Message, source: Delivery, reason: str) -> Message:
    # the sender's own headers may fill a whole frame, and what is added would break the connection
    kept = {name: value for name, value in message.headers.items() if name in HEADERS}
    headers = {name: value for name, value in kept.items() if len(str(value)) <= _MAX_HEADER_CHARACTERS}
    headers |= {"refused": reason[:200], "author": source.user_id or "", "queue": source.queue}
    if source.fault is not None:
        headers[FAULT] = type(source.fault).__name__
    return Message(message.body, message.kind, message.message_id, headers)


def taken_back(order: Operation, delivery: Delivery) -> tuple[str, Delivery]:
    """The author, and the letter as if the author's queue had delivered it, as often as its order.

    Raises RefusedOperationError where the order is not made of a letter.
    """
    try:
        found = Letter.model_validate(order.arguments)
    except ValidationError as error:
        raise RefusedOperationError(f"the order does not hold a letter: {error.errors()[0]['type']}") from error
    if found.headers.get("author") != found.author:
        raise RefusedOperationError("the order names another author than the letter")
    if FAULT in found.headers:
        raise RefusedOperationError("it was not signed by its author, or could not be opened: the institution must send it again")
    headers = {name: value for name, value in found.headers.items() if name in HEADERS}
    message = Message(found.body, found.kind, found.message_id, headers)
    return found.author, Delivery(
        update_queue(found.author), NO_TAG, message, user_id=found.author, delivery_count=delivery.delivery_count
    )
