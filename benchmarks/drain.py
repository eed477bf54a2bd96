"""`python -m benchmarks.drain`: how fast the aggregator folds a full queue, beside a pika that only receives and acknowledges."""

import argparse
import json
import os
from dataclasses import dataclass
from typing import get_args

from aggregator_worker.listening import prefetch_for
from benchmarks.commits import commits
from benchmarks.federation import EXAMPLES, Federation, Protection, founded, plan_for, started, vector
from benchmarks.figures import tell
from benchmarks.institution import STEP
from broker_config.connection import address, connect
from broker_config.definitions import AGGREGATOR, OPERATOR
from broker_config.streams import newest
from broker_config.topology import update_queue
from shared import messages
from shared.broker import Broker
from shared.chunks import split
from shared.errors import FederationError
from shared.messages import ManifestRecord, PrivacyStatement, Update


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured; megabytes are those of the updates' float32 numbers."""

    parameters: int
    institutions: int
    updates: int
    buffer_size: int
    protection: str
    megabytes_per_second: float
    bare_pika_megabytes_per_second: float
    ratio_to_bare_pika: float
    broker: str
    cores: int


def measure(chosen: argparse.Namespace) -> Figures:
    """Fills the queues, lets the aggregator fold them, fills them with the same again for the bare consumer."""
    parameters, each = chosen.parameters, chosen.updates // chosen.institutions
    megabytes = 4 * parameters * each * chosen.institutions / 1e6
    plan = plan_for(parameters, chosen.buffer_size, broadcast="float32")
    with founded(plan, parameters, chosen.institutions, updates_waiting=each + 1, protection=chosen.protection) as federation:
        fill(federation, each)
        folding = megabytes / seconds_to_fold(federation, each)
        messages_waiting = fill(federation, each)
        bare = megabytes / seconds_to_receive(federation, messages_waiting)
    return Figures(
        parameters=parameters,
        institutions=chosen.institutions,
        updates=each * chosen.institutions,
        buffer_size=chosen.buffer_size,
        protection=chosen.protection,
        megabytes_per_second=round(folding, 1),
        bare_pika_megabytes_per_second=round(bare, 1),
        ratio_to_bare_pika=round(folding / bare, 3),
        broker=federation.broker_version,
        cores=os.cpu_count() or 1,
    )


def fill(federation: Federation, each: int) -> int:
    """Publishes updates 1, 2, ... of every institution as its worker would; returns how many messages they are."""
    sent = 0
    for institution in federation.institutions:
        broker = connect(federation.settings(institution), name="benchmark/fill")
        base, _ = newest(broker)
        sent += sum(_publish(broker, federation, base, sequence) for sequence in range(1, each + 1))
        broker.close()
    return sent


def _publish(broker: Broker, federation: Federation, base: ManifestRecord, sequence: int) -> int:
    institution = broker.user
    update = Update(
        run_id=federation.run_id,
        institution=institution,
        incarnation=1,
        sequence=sequence,
        base_version=base.manifest.version,
        base_hash=base.manifest.model.hash,
        plan_hash=base.manifest.plan_hash,
        num_examples=EXAMPLES,
        privacy=PrivacyStatement(mechanism="none"),
    )
    content = messages.encode_parts("update", update, vector(federation.parameters, STEP))
    identity, chunk_bytes = f"{institution}/1/{sequence}", federation.plan.limits.chunk_bytes
    chunks = split(content, kind="update", run_id=federation.run_id, identity=identity, chunk_bytes=chunk_bytes)
    broker.publish_all(update_queue(institution), chunks)
    return -(-content.size // chunk_bytes)


def seconds_to_fold(federation: Federation, each: int) -> float:
    """From the leader's first manifest, which it publishes right before it listens, to its last."""
    with started(aggregator := federation.aggregator()):
        federation.wait_until_leading(aggregator)
        federation.wait_until_folded(each)
    broker = connect(federation.settings(OPERATOR), name="benchmark/count")
    found = [commit for commit in commits(broker) if commit.epoch > 1]
    broker.close()
    return found[-1].at_seconds - found[0].at_seconds


def seconds_to_receive(federation: Federation, messages_waiting: int) -> float:
    """The same queues, the same messages, a fresh process."""
    limits, result = federation.plan.limits, federation.folder / "received.json"
    login = federation.logins.settings(AGGREGATOR)
    host, port, vhost = address(login.url)
    facts = {
        "host": host,
        "port": port,
        "vhost": vhost,
        "user": login.user,
        "password": login.secret(),
        "queues": [update_queue(each) for each in federation.institutions],
        "messages": messages_waiting,
        "prefetch": prefetch_for(limits),
        "result": str(result),
    }
    consumer = federation.program("benchmarks.bare_consumer", "bare-consumer", facts)
    consumer.start()
    if code := consumer.wait(600.0):
        raise FederationError(f"the bare consumer ended with code {code}: {consumer.log_file.read_text()[-600:]}")
    return float(json.loads(result.read_text())["seconds"])


def main() -> None:
    """`python -m benchmarks.drain`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drain", description=__doc__)
    parser.add_argument("--parameters", type=int, default=10_000_000)
    parser.add_argument("--updates", type=int, default=24)
    parser.add_argument("--institutions", type=int, default=4)
    parser.add_argument("--buffer-size", type=int, default=4, help="K: updates per version")
    parser.add_argument("--protection", choices=get_args(Protection), default="plain", help="of every message")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    chosen = parser.parse_args()
    tell(lambda: measure(chosen), as_json=chosen.json)


if __name__ == "__main__":
    main()
