"""The side of systemd: a real datagram socket on which a service says what it is at."""

import socket
import threading


class NotifySocket:
    """`address` goes into NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(10)

    def lines(self) -> list[str]:
        """The next datagram's; raises TimeoutError where none comes."""
        return self._socket.recv(4096).decode().splitlines()

    def everything(self) -> list[str]:
        """All lines that have come so far."""
        self._socket.setblocking(False)
        heard: list[str] = []
        try:
            while True:
                heard += self.lines()
        except BlockingIOError:
            return heard
        finally:
            self._socket.settimeout(10)

    def close(self) -> None:
        self._socket.close()


class Manager:
    """A service manager: it takes everything at once, as its socket holds only a few datagrams."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[str] = []
        self._socket = NotifySocket(address)
        self._over = False
        self._thread = threading.Thread(target=self._hear)
        self._thread.start()

    def _hear(self) -> None:
        while not self._over:
            try:
                self.heard += self._socket.lines()
            except TimeoutError:
                continue

    def close(self) -> None:
        self._over = True
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
            own.sendto(b"over", self.address)
        self._thread.join()
        self._socket.close()
