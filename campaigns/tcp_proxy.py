"""A TCP proxy in front of a broker's port, whose connections can be cut, stalled, slowed and refused.

    with TcpProxy(5672) as link:
        work(f"amqp://127.0.0.1:{link.port}/fl")
        link.cut()                                # every connection is reset now
        link.cut_after(1_000_000)                 # ... or once so much more has passed towards the broker: in mid-message
        link.stall(); link.resume()               # a black hole: sockets stay open, nothing passes
        link.slow(100_000, "down")                # bytes per second from the broker, shared by all connections
        link.refuse(); link.accept()              # new connections are refused

Every method may be called from any thread and has taken effect when it returns.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import Any, Literal

Direction = Literal["up", "down"]
"""Towards the broker, or from it."""

_LOOPBACK = "127.0.0.1"
_PIECE_BYTES = 65_536
_TICKS_PER_SECOND = 20  # a slow link passes a piece this often, so that its pace is even


class _Lane:
    """One direction of all connections: its pace, and the bytes it still passes before a cut."""

    def __init__(self) -> None:
        self.bytes_per_second: float | None = None
        self.bytes_until_cut: int | None = None
        self.passed_bytes = 0
        self._free_at = 0.0

    def room(self) -> int:
        """The largest piece that may be taken now."""
        pace = _PIECE_BYTES if self.bytes_per_second is None else max(1, int(self.bytes_per_second / _TICKS_PER_SECOND))
        return min(_PIECE_BYTES, pace, self.bytes_until_cut or _PIECE_BYTES)

    async def take_turn(self, piece_bytes: int) -> None:
        """Waits as long as so many bytes take on this link."""
        if self.bytes_per_second is None:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(now, self._free_at) + piece_bytes / self.bytes_per_second
        await asyncio.sleep(self._free_at - now)

    def count(self, piece_bytes: int) -> bool:
        """Enters what was passed, and says whether the cut is due."""
        self.passed_bytes += piece_bytes
        if self.bytes_until_cut is None:
            return False
        self.bytes_until_cut -= piece_bytes
        if self.bytes_until_cut > 0:
            return False
        self.bytes_until_cut = None
        return True


class TcpProxy(AbstractContextManager["TcpProxy"]):
    """Listens on a free loopback port, `port`, and passes on to `broker_port`; leaving the block ends it."""

    def __init__(self, broker_port: int, broker_host: str = _LOOPBACK) -> None:
        self._broker = (broker_host, broker_port)
        self._loop = asyncio.new_event_loop()
        self._lanes: dict[Direction, _Lane] = {"up": _Lane(), "down": _Lane()}
        self._connections: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._listening: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)
        self._thread.start()
        self.port = 0
        self.accept()

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def cut(self) -> None:
        """Resets every connection; new ones are taken."""
        self._run(self._cut())

    def cut_after(self, passed_bytes: int, direction: Direction = "up") -> None:
        """Passes so many more bytes in the direction, to the byte, and then cuts once."""
        self._do(lambda: setattr(self._lanes[direction], "bytes_until_cut", passed_bytes))

    def refuse(self) -> None:
        """Refuses new connections; the present ones go on."""
        self._run(self._stop_listening())

    def accept(self) -> None:
        """Takes new connections again."""
        self._run(self._start_listening())

    def stall(self) -> None:
        """Passes nothing any more, in either direction, and closes nothing."""
        self._do(self._passing.clear)

    def resume(self) -> None:
        """Passes again, beginning with what waited."""
        self._do(self._passing.set)

    def slow(self, bytes_per_second: float | None, direction: Direction) -> None:
        """Gives the link this rate in the direction, for all connections together; None takes the limit away."""
        self._do(lambda: setattr(self._lanes[direction], "bytes_per_second", bytes_per_second))

    def passed_bytes(self, direction: Direction) -> int:
        """What has passed in the direction since the start."""
        return self._lanes[direction].passed_bytes

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def close(self) -> None:
        """Refuses, cuts, and ends the thread."""
        self.refuse()
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _do(self, change: Callable[[], None]) -> None:
        async def work() -> None:
            change()

        self._run(work())

    async def _start_listening(self) -> None:
        if self._listening is not None:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((_LOOPBACK, self.port))
        listener.listen()
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._listening = self._loop.create_task(self._listen(listener))

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])
            self._listening = None

    async def _listen(self, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                connection = self._loop.create_task(self._connection(client))
                self._connections.add(connection)
                connection.add_done_callback(self._connections.discard)

    async def _cut(self) -> None:
        doomed = set(self._connections)
        for connection in doomed:
            connection.cancel()
        if doomed:
            await asyncio.wait(doomed)

    async def _connection(self, client: socket.socket) -> None:
        broker = socket.socket()
        with client, broker:
            for each in (client, broker):
                each.setblocking(False)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            ended = False
            try:
                await self._loop.sock_connect(broker, self._broker)
                async with asyncio.TaskGroup() as ways:
                    ways.create_task(self._pass(client, broker, self._lanes["up"]))
                    ways.create_task(self._pass(broker, client, self._lanes["down"]))
                ended = True
            except* OSError:
                await self._passing.wait()
            finally:
                if not ended:
                    _reset_on_close(client, broker)

    async def _pass(self, source: socket.socket, sink: socket.socket, lane: _Lane) -> None:
        while waiting := await self._loop.sock_recv(source, _PIECE_BYTES):
            while waiting:
                await self._passing.wait()
                piece = waiting[: lane.room()]
                await self._loop.sock_sendall(sink, piece)
                waiting = waiting[len(piece) :]
                if lane.count(len(piece)):
                    await self._cut()
                await lane.take_turn(len(piece))
        await self._passing.wait()
        sink.shutdown(socket.SHUT_WR)


def _reset_on_close(*sockets: socket.socket) -> None:
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
