"""Room on the broker's disk: what a topology may take, and whether that fits. Pure."""

from collections.abc import Mapping
from typing import Any

from broker_config.topology import Limits, Topology, journal_queue, update_queue
from shared.errors import TopologyError

_STREAM_POLICIES = ("fl-lineage", "fl-model", "fl-state")


def needed_bytes(limits: Limits, institutions: int) -> int:
    """What the topology may take on a node's disk; a stream keeps up to a segment more than its limit."""
    streams = [limits.model_stream_bytes, limits.state_stream_bytes, limits.lineage_stream_bytes or 0]
    each = limits.update_queue_bytes
    if limits.journal_stream_bytes is not None:
        each += limits.journal_stream_bytes + limits.segment_bytes
    return sum(streams) + len(streams) * limits.segment_bytes + limits.dead_letter_bytes + institutions * each


def allowed_bytes(present: Mapping[str, Any], vhost: str) -> int:
    """What the policies that a broker has allow already, from its definitions; what of it is used is no longer free."""
    policies = {str(each["name"]): each["definition"] for each in present["policies"] if each["vhost"] == vhost}
    queues = [str(each["name"]) for each in present["queues"] if each["vhost"] == vhost]
    streams = sum(_stream_bytes(policies.get(name, {})) for name in _STREAM_POLICIES)
    updates = sum(name.startswith(update_queue("")) for name in queues) * _limit(policies.get("fl-upd", {}))
    journals = sum(name.startswith(journal_queue("")) for name in queues) * _stream_bytes(policies.get("fl-jrn", {}))
    return streams + updates + journals + _limit(policies.get("fl-dlq", {}))


def demand_room(objects: Topology, free_bytes: Mapping[str, int], *, allowed: int = 0) -> None:
    """Raises TopologyError where the limits do not fit: a full disk blocks every publisher, the leader too.

    `allowed` was found to fit before, and a part of it, nobody knows which, is in use.
    """
    need = needed_bytes(objects.limits, len(objects.institutions))
    for place, free in free_bytes.items():
        if need - allowed > free:
            more = f", {need - allowed:,} more than now" if allowed else ""
            raise TopologyError(
                f"the limits allow {need:,} bytes of messages{more}, and {place} has {free:,} bytes free: "
                "lower the limits, or give the broker a larger disk"
            )


def _limit(definition: Mapping[str, Any]) -> int:
    return int(definition.get("max-length-bytes", 0))


def _stream_bytes(definition: Mapping[str, Any]) -> int:
    return _limit(definition) + int(definition.get("stream-max-segment-size-bytes", 0))
