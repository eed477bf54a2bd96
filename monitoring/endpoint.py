"""A worker's small HTTP server on threads of its own: /metrics for Prometheus, /healthz and /readyz for who keeps it running."""

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from socketserver import TCPServer

from prometheus_client import CollectorRegistry, MetricsHandler

from monitoring.settings import split_address
from monitoring.vitals import Vitals
from shared.errors import SettingsError

SLOW_SECONDS = 10.0
"""Who has not sent a request or taken its answer by then is hung up on: no thread waits for it for ever."""


class _Server(ThreadingHTTPServer):
    vitals: Vitals
    daemon_threads = True

    def server_bind(self) -> None:
        """Without the question to the name service that an HTTPServer asks: in a network that leads nowhere it takes long."""
        TCPServer.server_bind(self)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Requests(MetricsHandler):
    server: _Server
    timeout = SLOW_SECONDS

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        with suppress(ConnectionError, TimeoutError):  # whoever asked does not want to know any more
            self._answer()

    def _answer(self) -> None:
        condition = self.server.vitals.now()
        match self.path.partition("?")[0]:
            case "/metrics":
                super().do_GET()
            case "/healthz":
                self._tell("alive", condition.alive, condition.reason)
            case "/readyz":
                self._tell("ready", condition.ready, condition.reason)
            case _:
                self.send_error(404, "there are /metrics, /healthz and /readyz")

    def _tell(self, name: str, yes: bool, reason: str) -> None:
        body = json.dumps({name: yes, "reason": reason}).encode()
        self.send_response(200 if yes else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def served(listen: str, vitals: Vitals, registry: CollectorRegistry) -> Iterator[None]:
    """While inside, an address answers for a worker. Raises SettingsError where nothing can listen there."""
    host, port = split_address(listen)
    kind = _Server6 if ":" in host else _Server
    try:
        server = kind((host, port), _Requests.factory(registry))
    except OSError as error:
        raise SettingsError(
            f"monitoring.listen: nothing can listen on {listen} ({os.strerror(error.errno or 0)}): is another worker or program "
            "there already? Name another port, or an address of this computer"
        ) from error
    server.vitals = vitals
    thread = threading.Thread(target=server.serve_forever, name="monitoring", kwargs={"poll_interval": 0.2})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
