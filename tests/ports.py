"""Ports of this computer for tests."""

import socket


def free_address() -> str:
    """Address and port on which nothing listens just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
