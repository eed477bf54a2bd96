"""When versions were made and of how many updates, read from the lineage afterwards: the measurement itself costs nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

from broker_config.streams import MAX_RECORD_BYTES
from broker_config.topology import LINEAGE
from shared import messages
from shared.broker import Broker


@dataclass(frozen=True, slots=True)
class Commit:
    """One version: when its manifest was published, by the leader's clock, and how many updates were folded into it."""

    at_seconds: float
    epoch: int
    updates: int


def commits(broker: Broker) -> list[Commit]:
    """Every manifest of the lineage, in its order."""
    found = []
    for delivery in broker.read(LINEAGE, "first", count=None, idle_seconds=1.0):
        if delivery.message.kind != "manifest":
            continue
        record = messages.decode_record(delivery.message.body, max_bytes=MAX_RECORD_BYTES)
        updates = sum(each.outcome == "aggregated" for each in record.manifest.settled)
        found.append(Commit(int(delivery.message.headers["at_ms"]) / 1000, record.epoch, updates))
    return found


def updates_per_second(found: Sequence[Commit], since: float, until: float) -> float | None:
    """Updates per second from the first to the last version that was made in between; None where there are not two."""
    within = [each for each in found if since <= each.at_seconds <= until and each.updates]
    if len(within) < 2:
        return None
    return sum(each.updates for each in within[1:]) / (within[-1].at_seconds - within[0].at_seconds)
