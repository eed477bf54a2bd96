"""One AMQP connection, driven by hand: pika's loop turns only while somebody waits, and reads only then.

pika's BlockingConnection makes the connection. From then on its asynchronous core is used directly: several publishes may be
on their way, an acknowledgement reads nothing, and deliveries stay in the broker until they are asked for.
"""

import fcntl
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pika
import structlog
from pika import exceptions
from pika.adapters.utils.io_services_utils import _AsyncTransportBase

from broker_config.header_tables import tolerate_hostile_tables
from broker_config.pika_errors import FOREIGN, PIKA

_FAREWELL_SECONDS = 5.0
_TICK_SECONDS = 1.0
# A Basic.Ack of one tag (AMQP 0-9-1): frame type, channel, size, class 60 and method 80, tag, bits, end of frame.
_ACK = struct.Struct(">BHIIQBB")
_JOINED_FRAMES = 3  # method, header and a body of one frame

# pika reads 4 KiB at a time and copies what it has of a frame each time; a frame has up to 128 KiB.
_AsyncTransportBase._MAX_RECV_BYTES = 1 << 17
_AsyncTransportBase._MAX_CONSUME_BYTES = 1 << 17

tolerate_hostile_tables()

log = structlog.get_logger()


class Link:
    """A connection to the first node that answers. What pika raises comes out of its methods as it is."""

    def __init__(self, nodes: list[pika.ConnectionParameters]) -> None:
        self._connection = pika.BlockingConnection(nodes)
        self._impl: Any = self._connection._impl
        self._loop = self._impl.ioloop
        self._readiness = self._loop._poller._poll
        self._lost: BaseException | None = None
        self.blocked = False
        """Whether the broker takes no messages for lack of memory or disk."""
        self._impl._output_marshaled_frames = self._write
        self._impl.add_on_close_callback(self._on_close)
        self._impl.add_on_connection_blocked_callback(self._on_blocked)
        self._impl.add_on_connection_unblocked_callback(self._on_unblocked)

    def fileno(self) -> int:
        """Readable when a turn has something to do."""
        return int(self._readiness.fileno())

    @property
    def heartbeat_seconds(self) -> float:
        """What was agreed with the broker; it gives up on a connection after two without a sign of life."""
        return float(self._impl.params.heartbeat or 60)

    @property
    def unsent_bytes(self) -> int:
        """What waits here, or in the kernel, to be taken by the other side: on a slow link megabytes."""
        in_kernel = struct.unpack("i", fcntl.ioctl(self._impl._transport._sock, termios.TIOCOUTQ, bytes(4)))[0]
        return int(self._impl._get_write_buffer_size() + in_kernel)

    def turn(self, timeout_seconds: float = 0.0) -> None:
        """Reads a few frames, writes what waits, keeps heartbeats; waits at most a tick. Raises once the connection is lost."""
        if self._readiness.poll(min(timeout_seconds, _TICK_SECONDS)):
            self._loop.poll()
        self._loop.process_timeouts()
        if self._lost is not None:
            raise self._lost

    def acknowledge(self, deliveries: list[tuple[Any, int]], *, and_earlier: bool = False) -> None:
        """Settles deliveries, each a channel and its tag, in one write; `and_earlier`, all that came before them too."""
        for channel, _ in deliveries:
            if not channel.is_open:
                raise channel._closing_reason
        self._write(
            [
                b"".join(
                    _ACK.pack(1, channel.channel_number, 13, 0x003C0050, tag, and_earlier, 0xCE) for channel, tag in deliveries
                )
            ]
        )

    def _write(self, frames: list[bytes]) -> None:
        # Straight to the socket where it takes it. pika would go through its loop, which also reads, with a send for each frame.
        transport = self._impl._transport
        pieces = frames if len(frames) > _JOINED_FRAMES else [b"".join(frames)]
        for piece in pieces:
            self._impl.bytes_sent += len(piece)
            sent = 0 if transport.get_write_buffer_size() else _sent(transport._sock, piece)
            if sent < len(piece):
                transport.write(piece[sent:])

    def interrupt(self) -> None:
        """Ends a turn that waits; may be called from any thread."""
        self._loop.add_callback_threadsafe(_nothing)

    def channel(self) -> Any:
        """A new open channel of pika's asynchronous kind."""
        opened: list[Any] = []
        channel = self._impl.channel(on_open_callback=opened.append)
        self.until(lambda: opened, channel)
        return channel

    def until(self, done: Callable[[], object], channel: Any) -> None:
        """Turns until `done`. Raises the reason where the broker closes the channel or the connection first."""
        while not done():
            self.turn_on(channel)

    def turn_on(self, channel: Any) -> None:
        """Waits a tick for something to happen. Raises the reason once the channel or the connection is closed."""
        if channel.is_closed:
            raise channel._closing_reason
        self.turn(_TICK_SECONDS)

    def close(self) -> None:
        """Says goodbye to the broker, or hangs up where it does not answer. Never raises."""
        with suppress(*PIKA, *FOREIGN):
            if self._lost is None and self._impl.is_open:
                self._say_goodbye()
                deadline = time.monotonic() + _FAREWELL_SECONDS
                while time.monotonic() < deadline:
                    self.turn(_TICK_SECONDS)
                self._impl._terminate_stream(exceptions.ConnectionClosedByClient(200, "the broker did not answer"))
                self.turn(_TICK_SECONDS)
        self._connection._cleanup()

    def _say_goodbye(self) -> None:
        # Closing the channels first, as pika does, would have every delivery that is under way sent here before.
        self._impl._on_channel_cleanup = lambda _channel: None
        self._impl._error = exceptions.ConnectionClosedByClient(200, "Normal shutdown")
        self._impl._set_connection_state(self._impl.CONNECTION_CLOSING)
        self._impl._on_close_ready()

    def _on_close(self, _connection: Any, reason: BaseException) -> None:
        self._lost = reason

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self.blocked = True
        log.warning("the broker takes no messages: make room there, then this goes on by itself", reason=frame.method.reason)

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self.blocked = False
        log.info("the broker takes messages again")


def _sent(sock: socket.socket, piece: bytes) -> int:
    """How much of a piece a socket took. TLS takes 16 KiB at a time, and what it could not send must come next."""
    sent, rest = 0, memoryview(piece)
    with suppress(OSError):  # full, or lost: the loop finds out which
        while sent < len(piece):
            sent += sock.send(rest[sent:])
    return sent


def _nothing() -> None:
    return
