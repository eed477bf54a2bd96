"""`python -m benchmarks.bare_consumer FACTS`: pika as its own examples use it, which only receives and acknowledges.

It imports nothing of ours: broker_config makes pika read faster.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pika


def drain(connection: Any, queues: Sequence[str], *, messages: int, prefetch: int) -> tuple[float, int]:
    """Seconds from the first request for messages to the last acknowledgement, and the bytes of the bodies."""
    channel = connection.channel()
    channel.basic_qos(prefetch_count=prefetch)
    received = [0, 0]

    def take(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
        received[0] += 1
        received[1] += len(body)
        channel.basic_ack(method.delivery_tag)
        if received[0] == messages:
            channel.stop_consuming()

    began = time.perf_counter()
    for queue in queues:
        channel.basic_consume(queue, take)
    channel.start_consuming()
    return time.perf_counter() - began, received[1]


def main() -> None:
    """`python -m benchmarks.bare_consumer`."""
    facts = json.loads(Path(sys.argv[1]).read_text())
    credentials = pika.PlainCredentials(facts["user"], facts["password"])
    parameters = pika.ConnectionParameters(facts["host"], facts["port"], facts["vhost"], credentials)
    connection = pika.BlockingConnection(parameters)
    seconds, size = drain(connection, facts["queues"], messages=facts["messages"], prefetch=facts["prefetch"])
    Path(facts["result"]).write_text(json.dumps({"seconds": seconds, "bytes": size}))
    connection.close()


if __name__ == "__main__":
    main()
