"""What one version is made of, from memory or, of a long run, from the lineage itself."""

from contextlib import closing
from typing import Any

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.streams import MAX_RECORD_BYTES
from broker_config.topology import LINEAGE
from operator_console.history import History
from operator_console.web.course import Place
from operator_console.web.feed import Feed
from shared import messages
from shared.errors import RejectedMessageError

IDLE_SECONDS = 2.0


def version_of(feed: Feed, version: int) -> dict[str, Any] | None:
    """As the API has it; None for a version that never was. Raises FederationError where the broker does not answer."""
    lock, course = feed.course()
    with lock:
        line, place = course.line(version), course.place(version)
    if line is None and place is not None:
        line = _read_again(feed, version, place)
        if line is not None:
            with lock:
                line["seconds"] = course.seconds(line["at_ms"])
    return line and _shown(line)


def _read_again(feed: Feed, version: int, place: Place) -> dict[str, Any] | None:
    """Only a record is taken whose hash is the one that stood in the chain."""
    with feed.course()[0]:
        history = History(feed.course()[1].history.names)
    with closing(connect(feed.folder.logins().settings(OPERATOR), name="fedqueue-console-lineage")) as broker:
        for delivery in broker.read(LINEAGE, place.offset, count=None, idle_seconds=IDLE_SECONDS):
            try:
                message = delivery.believed()
                if message.kind == "claim":
                    continue
                record = messages.decode_record(message.body, max_bytes=MAX_RECORD_BYTES)
            except RejectedMessageError:
                continue
            if record.hash in place.hashes:
                history.take(record, delivery)
            if len(history.links) == len(place.hashes) or record.manifest.version > version:
                break
    return history.line(version)


def _shown(line: dict[str, Any]) -> dict[str, Any]:
    updates = [{**each, "scale": float.fromhex(each["scale_hex"])} for each in line["updates"]]
    return {**line, "updates": updates}
