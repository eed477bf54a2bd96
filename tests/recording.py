"""What leaves an institution: a broker that writes down every message before it hands it on."""

import base64
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client_worker.mechanism import Charge
from shared import codec, messages
from shared.broker import Broker, Message
from shared.messages import PrivacyStatement
from tests.running import Server

Tell = Callable[[Message], None]


def _nothing(_point: str) -> None:
    return


class RecordingBroker:
    """The broker underneath, and everything that is published told first. `passed` hears of the points around it."""

    def __init__(self, broker: Broker, tell: Tell, passed: Callable[[str], None] = _nothing) -> None:
        self._broker = broker
        self._tell = tell
        self._passed = passed

    def publish(self, exchange: str, message: Message) -> None:
        self.publish_all(exchange, [message])

    def publish_all(self, exchange: str, several: Iterable[Message]) -> None:
        self._broker.publish_all(exchange, self._told(several))
        self._passed("handed on")

    def _told(self, several: Iterable[Message]) -> Iterator[Message]:
        for message in several:
            self._tell(message)
            self._passed(f"recorded {message.kind}")
            yield message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)


class RecordingServer:
    """A server whose every connection records into `sent`."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.sent: list[Message] = []

    def connect(self, user: str) -> Any:
        return RecordingBroker(self._server.connect(user), self.sent.append)

    @property
    def kinds(self) -> list[str]:
        """Of everything that was published, in order."""
        return [message.kind for message in self.sent]

    @property
    def updates(self) -> list["Released"]:
        """Every update that was published, in order, re-sends too."""
        return [Released.of(message) for message in self.sent if message.kind == "update"]


@dataclass(frozen=True)
class Released:
    """An update whose bytes left, in one chunk."""

    id: str
    sequence: int
    hash: str
    privacy: PrivacyStatement

    @classmethod
    def of(cls, message: Message) -> "Released":
        assert message.headers["chunks"] == 1
        update, _ = messages.decode_update(message.body, max_bytes=2**20)
        identity = f"{update.institution}/{update.incarnation}/{update.sequence}"
        assert message.headers["id"] == identity
        return cls(identity, update.sequence, codec.content_hash(message.body), update.privacy)

    @property
    def charge(self) -> Charge:
        """What its own statement says that it cost."""
        stated = self.privacy
        assert stated.noise_multiplier is not None
        if stated.mechanism == "update-gaussian":  # noise once on the whole, whatever the steps
            return Charge(stated.noise_multiplier, 1.0, 1)
        assert stated.sample_rate is not None
        return Charge(stated.noise_multiplier, stated.sample_rate, stated.steps)


class RecordFile:
    """A record that outlives a process which is killed: each message is on disk before `tell` returns."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tell(self, message: Message) -> None:
        line = {"kind": message.kind, "id": message.message_id, "headers": dict(message.headers)}
        packed = json.dumps({**line, "body": base64.b64encode(message.body).decode()})
        with self._path.open("a") as file:
            file.write(packed + "\n")
            file.flush()
            os.fsync(file.fileno())

    def updates(self) -> list[Released]:
        """Every update of the record."""
        return [Released.of(message) for message in self._messages("update")]

    def contents(self, kind: str) -> list[tuple[str, str]]:
        """Id and content hash of every message of a kind."""
        return [(message.message_id, codec.content_hash(message.body)) for message in self._messages(kind)]

    def _messages(self, kind: str) -> Iterator[Message]:
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            told = json.loads(line)
            if told["kind"] == kind:
                yield Message(base64.b64decode(told["body"]), kind, told["id"], told["headers"])
