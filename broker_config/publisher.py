"""Publishing with confirms, several messages on their way at once."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import pika
from pika import exceptions, spec

from broker_config.link import Link
from broker_config.topology import entrance
from shared.broker import Message

WINDOW = 4
"""Messages that may be unconfirmed. A chunk has up to 8 MiB and stands in memory until it is written."""
CONFIRM_SECONDS = 20.0
"""A queue or stream that elects a leader confirms late; one that confirms nothing for so long has forgotten the message."""
_APPLICATION = "fedqueue"
_CONTENT_TYPE = "application/msgpack"
_PERSISTENT = 2


class Publisher:
    """One channel in confirm mode. `meanwhile` is called while it waits."""

    def __init__(self, link: Link, user: str, meanwhile: Callable[[], None]) -> None:
        self._link = link
        self._user = user
        self._meanwhile = meanwhile
        self._sent = 0
        self._unconfirmed: set[int] = set()
        self._refused = False
        self._returned = False
        self._channel = link.channel()
        self._channel.add_on_return_callback(self._on_return)
        selected: list[Any] = []
        self._channel.confirm_delivery(self._on_confirm, selected.append)
        link.until(lambda: selected, self._channel)

    @property
    def is_open(self) -> bool:
        """Whether it can be used; the broker closes the channel of a publish that it does not allow."""
        return bool(self._channel.is_open)

    def publish(self, exchange: str, messages: Iterable[Message]) -> None:
        """Returns once each is confirmed. Raises pika's NackError or UnroutableError for any, or what closed the channel."""
        self._refused = self._returned = False
        name, last = entrance(exchange), None
        for message in messages:
            if last is not None:
                self._send(name, last)
            last = message
            self._wait(WINDOW - 1)
            if self._refused or self._returned:
                break
        self._wait(0)
        # By itself: what a reader of a stream finds at "last" are all messages that the broker wrote together.
        if last is not None and not (self._refused or self._returned):
            self._send(name, last)
            self._wait(0)
        if self._returned:
            raise exceptions.UnroutableError([])
        if self._refused:
            raise exceptions.NackError([])

    def _send(self, exchange: str, message: Message) -> None:
        properties = pika.BasicProperties(
            content_type=_CONTENT_TYPE,
            headers=dict(message.headers),
            delivery_mode=_PERSISTENT,
            message_id=message.message_id,
            timestamp=int(time.time()),
            type=message.kind,
            user_id=self._user,
            app_id=_APPLICATION,
        )
        self._channel.basic_publish(exchange, "", message.body, properties, mandatory=True)
        self._sent += 1
        self._unconfirmed.add(self._sent)

    def _wait(self, at_most: int) -> None:
        silent_since, left = time.monotonic(), self._left()
        while len(self._unconfirmed) > at_most:
            self._link.turn_on(self._channel)
            self._meanwhile()
            if self._link.blocked or self._left() != left:
                silent_since, left = time.monotonic(), self._left()
            elif time.monotonic() - silent_since > CONFIRM_SECONDS:
                raise exceptions.AMQPConnectionError(f"nothing was confirmed for {CONFIRM_SECONDS:g} seconds")

    def _left(self) -> tuple[int, int]:
        return len(self._unconfirmed), self._link.unsent_bytes

    def _on_return(self, *_returned: Any) -> None:
        self._returned = True

    def _on_confirm(self, frame: Any) -> None:
        method = frame.method
        self._refused = self._refused or isinstance(method, spec.Basic.Nack)
        if method.multiple:
            self._unconfirmed = {number for number in self._unconfirmed if number > method.delivery_tag}
        else:
            self._unconfirmed.discard(method.delivery_tag)
