"""`python -m benchmarks.tls`: what TLS costs. Messages per second of one institution to its aggregator, with it and without."""

import statistics
import tempfile
import threading
import time
from contextlib import ExitStack, closing
from pathlib import Path

from broker_config.authority import Authority, write_issued
from broker_config.connection import connect
from broker_config.definitions import ADMIN, AGGREGATOR
from broker_config.logins import AUTHORITY_FOLDER, Logins, create
from broker_config.node import start_node
from broker_config.provision import provision
from broker_config.server_tls import LOOPBACK, ServerTls
from broker_config.topology import Limits, update_queue
from shared.broker import Message

INSTITUTION = "bank"
SIZES = {"small, 40 KB": (40_000, 1500), "large, 4 MiB": (4 << 20, 60)}
"""Bytes of a message, and how many are timed at once."""
TURNS = 7
_LIMITS = Limits(update_bytes=256 << 20, model_stream_bytes=64 << 20, state_stream_bytes=64 << 20, dead_letter_bytes=16 << 20)


def messages_per_second(logins: Logins, size: int, count: int) -> float:
    """From the first publish until the last message has been received and acknowledged."""
    queue, body = update_queue(INSTITUTION), bytes(size)
    with ExitStack() as stack:
        bank = stack.enter_context(closing(connect(logins.settings(INSTITUTION), name="benchmark/bank")))
        aggregator = stack.enter_context(closing(connect(logins.settings(AGGREGATOR), name="benchmark/aggregator")))
        aggregator.consume(queue, prefetch=64)
        updates = (Message(body, "update", str(number)) for number in range(count))
        publisher = threading.Thread(target=bank.publish_all, args=(queue, updates))
        began = time.perf_counter()
        publisher.start()
        for _ in range(count):
            delivery = aggregator.receive(60)
            if delivery is None:
                raise TimeoutError("nothing came for a minute")
            aggregator.ack(delivery)
        seconds = time.perf_counter() - began
        publisher.join()
    return count / seconds


def founded(stack: ExitStack, folder: Path, tls: ServerTls | None) -> Logins:
    """A private node with one institution."""
    cluster = start_node(folder / ("tls" if tls else "plain") / "broker", remove_with_parent=True, tls=tls)
    stack.callback(cluster.stop, remove=True)
    node = cluster.nodes[0]
    place = {"node": node.amqp, "management": node.management_url, "admin_password": node.admin_password}
    logins = create(**place, tls=tls is not None).model_copy(update={"folder": folder}).with_institutions([INSTITUTION])
    provision(logins, [INSTITUTION], _LIMITS, free_bytes=node.free_bytes)
    return logins


def main() -> None:
    """Prints one line for each size: medians over turns that alternate, and their ratio."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        authority = Authority.create(folder / AUTHORITY_FOLDER, name="benchmark")
        for user in (ADMIN, AGGREGATOR, INSTITUTION):
            write_issued(folder / "tls" / user, authority.issue(user), authority.certificate)
        server = ServerTls(authority.issue_server([LOOPBACK]), authority.certificate, authority.revocations)
        plain, secured = founded(stack, folder, None), founded(stack, folder, server)
        for name, (size, count) in SIZES.items():
            rates = [(messages_per_second(plain, size, count), messages_per_second(secured, size, count)) for _ in range(TURNS)]
            without, within = (statistics.median(each) for each in zip(*rates, strict=True))
            print(f"{name}: {without:.0f}/s without TLS, {within:.0f}/s with it, ratio {within / without:.2f}")


if __name__ == "__main__":
    main()
