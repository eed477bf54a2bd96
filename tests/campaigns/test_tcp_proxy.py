"""The proxy's faults, as a plain client of an echo server sees them."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from campaigns.tcp_proxy import TcpProxy

PATIENCE_SECONDS = 20
SHORT_SECONDS = 0.2


@pytest.fixture
def echo_port() -> Iterator[int]:
    """A server that sends back what it gets, on threads that end with their connections."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=_echo, args=(client,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(PATIENCE_SECONDS)


def _echo(client: socket.socket) -> None:
    with client:
        try:
            while piece := client.recv(65_536):
                client.sendall(piece)
        except ConnectionError:
            return


@pytest.fixture
def link(echo_port: int) -> Iterator[TcpProxy]:
    with TcpProxy(echo_port) as proxy:
        yield proxy


def connected(link: TcpProxy) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", link.port), timeout=PATIENCE_SECONDS)
    client.sendall(b"hello")
    assert received(client, 5) == b"hello"
    return client


def received(client: socket.socket, count: int) -> bytes:
    """So many bytes, or what came before the end of the connection."""
    parts = bytearray()
    while len(parts) < count:
        try:
            piece = client.recv(count - len(parts))
        except ConnectionResetError:
            break
        if not piece:
            break
        parts += piece
    return bytes(parts)


def is_silent(client: socket.socket) -> bool:
    client.settimeout(SHORT_SECONDS)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(PATIENCE_SECONDS)
    return False


def test_what_goes_in_comes_out_on_each_connection(link: TcpProxy) -> None:
    content = bytes(range(256)) * 4096
    with connected(link) as first, connected(link) as second:
        sender = threading.Thread(target=first.sendall, args=(content,))
        sender.start()
        assert received(first, len(content)) == content
        sender.join()
        second.sendall(b"also here")
        assert received(second, 9) == b"also here"
        assert link.connections == 2
        assert link.passed_bytes("up") == len(content) + 2 * len(b"hello") + len(b"also here")


def test_the_end_of_one_side_reaches_the_other(link: TcpProxy) -> None:
    with connected(link) as client:
        client.sendall(b"last words")
        client.shutdown(socket.SHUT_WR)
        assert received(client, 100) == b"last words"


def test_a_cut_resets_every_connection_and_takes_new_ones(link: TcpProxy) -> None:
    with connected(link) as first, connected(link) as second:
        link.cut()
        for client in (first, second):
            with pytest.raises(ConnectionResetError):
                client.recv(1)
    connected(link).close()


def test_a_refused_connection_is_refused_at_once_and_present_ones_go_on(link: TcpProxy) -> None:
    with connected(link) as present:
        link.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", link.port))
        present.sendall(b"still here")
        assert received(present, 10) == b"still here"
        link.accept()
        connected(link).close()


def test_a_stalled_link_keeps_sockets_open_and_passes_nothing_until_it_goes_on(link: TcpProxy) -> None:
    with connected(link) as client:
        link.stall()
        client.sendall(b"into the dark")
        assert is_silent(client)
        link.resume()
        assert received(client, 13) == b"into the dark"


def test_a_stalled_link_can_be_cut(link: TcpProxy) -> None:
    with connected(link) as client:
        link.stall()
        client.sendall(b"into the dark")
        link.cut()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_cut_in_mid_message_lets_exactly_so_many_bytes_pass(link: TcpProxy, direction: str) -> None:
    with connected(link) as client:
        while (before := link.passed_bytes(direction)) < len(b"hello"):  # it counts after it has passed them on
            time.sleep(0.001)
        link.cut_after(100_001, direction)
        sender = threading.Thread(target=_send_until_reset, args=(client, bytes(1_000_000)))
        sender.start()
        assert len(received(client, 1_000_000)) <= 100_001
        sender.join()
        assert link.passed_bytes(direction) - before == 100_001
    with connected(link) as again:
        again.sendall(bytes(200_000))
        assert len(received(again, 200_000)) == 200_000


def _send_until_reset(client: socket.socket, content: bytes) -> None:
    try:
        client.sendall(content)
    except ConnectionError:
        return


def test_a_slow_link_paces_its_direction_alone(link: TcpProxy) -> None:
    with connected(link) as client:
        link.slow(2000, "down")
        client.sendall(bytes(60_000))
        assert len(received(client, 200)) == 200
        # At this rate 60,000 bytes take half a minute: most of them are not through yet, however slow this machine is.
        assert link.passed_bytes("down") < 60_000
        link.slow(None, "down")
        assert len(received(client, 59_800)) == 59_800
