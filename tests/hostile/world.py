"""A federation under attack: a real broker, an aggregator process, two honest institutions, and an eye on all that they do."""

import json
import os
import signal
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pika

from broker_config.connection import address
from broker_config.definitions import User, user_limits
from broker_config.keyring import save_identity, save_trust
from broker_config.provision import administration, provision
from broker_config.topology import DEAD_LETTERS, update_queue
from broker_config.written import write_private
from operator_console.worker_processes import WorkerProcess, entry_point
from shared.broker import Delivery, Message
from shared.errors import PublishRefusedError
from shared.messages import Entry
from shared.plan import Defence, Plan, PrivacyPlan
from tests.builders import NAMES, SECRET, a_hello, a_plan, a_statement, array, as_messages, name_of, small_limits
from tests.conftest import LIMITS, RabbitmqServer, eventually
from tests.guarding import GuardedServer, Keyring
from tests.hostile.certificates import Holder
from tests.running import EXAMPLES, Hand, Watch, begin
from tests.tls import TlsNode

HOSTILE = "bank-c"
HONEST = ("bank-a", "bank-b")
VICTIM = HONEST[0]
DELTA = {"w": array(1, 2, 3)}
PATIENCE_SECONDS = 10.0
MIB = 1 << 20
PLAN = a_plan(
    {"rule": "credit", "largest_share": 0.5, "server_learning_rate": 1.0},
    privacy=PrivacyPlan(mechanism="dp-sgd", epsilon=3.0),
    limits=small_limits(useless_per_minute=None, letters_per_day=None),
    defence=Defence(strikes=None),
)
"""Without quarantine and without limits on what is useless, so that each attempt is judged by itself."""

LIFTED = {"max-connections": 1_000, "max-channels": 10_000}
"""RabbitMQ goes on counting a connection that has ended, for as long as a busy machine takes: hundreds of short ones,
one attempt after the other, would find no room. The limits of a member hold for the attempts at them alone."""

LIMITED = PLAN.model_copy(update={"limits": small_limits(updates_per_hour=360)})
"""With the limits that a plan has unless it says otherwise, and six updates a minute."""


@dataclass
class LogFile:
    """A log that grows."""

    path: Path

    def mark(self) -> int:
        """Where it ends."""
        return self.path.stat().st_size

    def since(self, mark: int) -> str:
        """What was written since."""
        with self.path.open("rb") as file:
            file.seek(mark)
            return file.read().decode(errors="replace")

    def says(self, words: str, mark: int, *, timeout_seconds: float = PATIENCE_SECONDS) -> bool:
        """Whether one line since the mark has the words, within the patience of a test."""
        deadline = time.monotonic() + timeout_seconds
        while words not in self.since(mark):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


class World:
    """One federation; `sent` of the honest ones is kept, so that the model can be made again from it alone."""

    def __init__(
        self,
        server: RabbitmqServer,
        node: TlsNode,
        folder: Path,
        plan: Plan = PLAN,
        *,
        keyring: Keyring | None = None,
        table: Mapping[str, Entry] | None = None,
    ) -> None:
        self.server, self.plan, self.folder, self.node = server, plan, folder, node
        self.keyring = keyring or Keyring(sealed=True)
        self.guarded = GuardedServer(server, self.keyring)
        begin(self.guarded, plan, table=table or self.keyring.table())
        self.watch = Watch(self.guarded.connect("operator"))
        self.start = self.watch.head
        self.hands = {name: Hand(self.guarded, name) for name in NAMES}
        self.letters: list[Delivery] = []
        self._wires: dict[str, Any] = {}
        self._mailbox = self.guarded.connect("operator")
        self._mailbox.consume(DEAD_LETTERS, prefetch=1000)
        self._process = self._aggregator(folder)
        self.logs = {"broker": LogFile(node.node.log_file), "aggregator": LogFile(self._process.log_file)}
        with administration(server.logins) as management:
            self.version = management.version()
        assert self.watch.until(lambda: self.watch.head.epoch > 1)

    def warm_up(self) -> None:
        """All three say hello and give two honest updates."""
        self.barrier()
        for _ in range(2):
            self.require_updates_to_count(NAMES)

    def _aggregator(self, folder: Path) -> WorkerProcess:
        settings = self.server.logins.settings("aggregator")
        (folder / "members.txt").write_text("\n".join(NAMES))
        write_private(folder / "secret", SECRET)
        (folder / "secret").chmod(0o600)
        (folder / "aggregator.toml").write_text(
            'state_folder = "state"\nrun_secret_file = "secret"\nmembers_file = "members.txt"\n[broker]\n'
            f'url = "{settings.url}"\nuser = "{settings.user}"\nkeys_folder = "keys"\nca_file = "{settings.ca_file}"\n'
            f'certificate_file = "{settings.certificate_file}"\nkey_file = "{settings.key_file}"\n'
        )
        save_identity(self.keyring.identities["aggregator"], folder / "keys")
        save_trust(self.keyring.trust, folder / "keys")
        command = [entry_point("fedqueue-aggregator"), "--config", str(folder / "aggregator.toml")]
        process = WorkerProcess("aggregator", command, folder / "log", folder)
        process.start()
        return process

    def close(self) -> None:
        """Ends the aggregator, which must have lived until now and must end well."""
        for user in list(self._wires):
            self._hang_up(user)
        self._process.demand_alive()
        self._process.ask_to_end()
        assert self._process.wait() == 0

    @contextmanager
    def aggregator_held_up(self) -> Iterator[None]:
        """While inside, the aggregator does nothing."""
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    @contextmanager
    def limited_as_a_member(self, limit: str) -> Iterator[None]:
        """While inside, the hostile institution has one of the limits that every member has."""
        set_limits(self.server, {limit: user_limits(User(HOSTILE))[limit]})
        try:
            yield
        finally:
            set_limits(self.server, LIFTED)

    # who may connect, and how

    @property
    def place(self) -> tuple[str, int]:
        """Host and port of the broker."""
        return address(self.server.logins.amqp)[:2]

    @property
    def authority(self) -> Holder:
        """The federation's own, with a key that a hostile institution does not have."""
        folder = self.node.folder / "ca"
        return replace(Holder.of(folder / "ca.pem", folder / "ca.key"), chain=())

    @property
    def authority_file(self) -> Path:
        """Whose certificates the federation believes."""
        return self.node.folder / "ca" / "ca.pem"

    def certificate(self, user: str) -> Path:
        """The folder of a login's certificate and key."""
        return self.node.certificate(user)

    def context(self, user: str) -> ssl.SSLContext:
        """TLS with a login's own certificate."""
        context, folder = ssl.create_default_context(cafile=self.authority_file), self.certificate(user)
        context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
        return context

    def parameters(self, user: str, name: str, **changes: Any) -> pika.ConnectionParameters:
        """A login's way in, for pika itself."""
        host, port, vhost = address(self.server.logins.amqp)
        usual = {
            "host": host,
            "port": port,
            "virtual_host": vhost,
            "ssl_options": pika.SSLOptions(self.context(user), host),
            "credentials": pika.credentials.ExternalCredentials(),
            "client_properties": {"connection_name": name},
            "socket_timeout": 10,
            "blocked_connection_timeout": 30,
        }
        return pika.ConnectionParameters(**(usual | changes))

    def wire(self, user: str) -> Any:
        """A login's open channel in confirm mode; another one, once the broker has closed it."""
        channel = self._wires.get(user)
        if channel is None or not channel.is_open:
            self._hang_up(user)
            channel = pika.BlockingConnection(self.parameters(user, f"hostile/{user}")).channel()
            channel.confirm_delivery()
            self._wires[user] = channel
        return channel

    def _hang_up(self, user: str) -> None:
        channel = self._wires.pop(user, None)
        if channel is not None and channel.connection.is_open:
            channel.connection.close()

    def signed(self, author: str, message: Message) -> Message:
        """As the author's own program would publish it: sealed, and signed with its key."""
        return self.guarded.guards[author].protected(update_queue(author), message)

    # what comes of it

    def pseudonym(self, institution: str) -> str:
        """Of the lineage."""
        return name_of(institution)

    def duplicates(self, institution: str) -> int:
        """How many repeats of its updates were counted."""
        return self.watch.entry(institution).counters.duplicate

    def follow(self, seconds: float = 0.0) -> None:
        """Reads what the lineage and the dead letters have of late, and keeps the others' connections alive."""
        for hand in self.hands.values():
            hand.broker.receive(0.0)
        for channel in self._wires.values():
            channel.connection.process_data_events(0)
        while (delivery := self.watch.broker.receive(0.0)) is not None:
            self.watch.broker.ack(delivery)
            self.watch.reader.take(delivery)
        while (delivery := self._mailbox.receive(seconds)) is not None:
            self._mailbox.ack(delivery)
            self.letters.append(delivery)

    def letters_drained(self) -> int:
        """How many letters there are by now, those of an attempt before included."""
        self.follow()
        return len(self.letters)

    def used_up_a_number(self) -> bool:
        """Whether the last letter may be an update that could not be read: its number is settled a moment later."""
        headers = self.letters[-1].message.headers
        return "fault" not in headers and headers.get("id") == f"{HOSTILE}/1/{self.watch.entry(HOSTILE).watermark + 1}"

    def letter_is_whole(self, count: int) -> bool:
        """Whether the last letter is the last of an upload of so many messages."""
        return count == 1 or self.letters[-1].message.headers.get("chunk") == count - 1

    def wait_for_letter(self, known: int, look: Callable[[Delivery], bool]) -> Delivery | None:
        """A letter beyond those known that it looks for, within the patience of a test."""
        return eventually(lambda: self.follow() or next((each for each in self.letters[known:] if look(each)), None))

    def next_nonce(self) -> str:
        """Of two hellos the later one has the larger."""
        return f"{time.time_ns():016x}"

    def recorded(self, stream: str, kind: str) -> Message:
        """The first message of a kind in a stream as it came over the wire: what somebody could have stolen on its way."""
        reader = self.server.connect("operator")
        with closing(reader.read(stream, "first", count=None, idle_seconds=5)) as deliveries:
            found = next(each.message for each in deliveries if each.message.kind == kind)
        reader.close()
        return found

    def barrier(self) -> None:
        """Returns once the aggregator has handled all that the hostile institution has sent: it answers its hello."""
        nonce = self.next_nonce()
        (hello,) = as_messages(a_hello(HOSTILE, nonce=nonce, num_examples=EXAMPLES[HOSTILE]))
        assert eventually(lambda: self._is_taken(hello))
        assert self.watch.until(lambda: self.watch.entry(HOSTILE).nonce == nonce)

    def _is_taken(self, message: Message) -> bool:
        try:
            self.hands[HOSTILE].publish(message)
        except PublishRefusedError:  # its own queue is still full
            return False
        return True

    def settle_down(self) -> None:
        """Returns once the aggregator has handled all that was sent, and its letters were read."""
        self.barrier()
        self.follow(0.5)

    def require_updates_to_count(self, names: Iterable[str] = HONEST) -> None:
        """Each gives one more honest update, and it is aggregated."""
        for name in names:
            sequence = self.watch.entry(name).watermark + 1
            spent = 0.5 + 0.01 * sequence
            statement = a_statement(self.plan, spent)
            self.hands[name].send(self.watch.head, sequence, 1, -sequence, 0.5, privacy=statement)
            assert self.watch.until(lambda n=name, s=sequence: self.watch.entry(n).watermark == s)
            assert self.watch.outcomes(name)[-1] == (sequence, "aggregated")

    def aggregator_events(self, mark: int) -> list[dict[str, Any]]:
        """The aggregator's log since the mark."""
        return [json.loads(line) for line in self.logs["aggregator"].since(mark).splitlines() if line.startswith("{")]

    def entries(self, institutions: Iterable[str]) -> list[Entry]:
        """What the lineage has of them."""
        return [self.watch.entry(each) for each in institutions]

    def model_hash(self) -> str:
        """Of the newest version."""
        return self.watch.head.manifest.model.hash


def set_limits(server: RabbitmqServer, limits: Mapping[str, int]) -> None:
    """What the hostile institution may have of connections and channels."""
    with administration(server.logins) as management:
        for name, value in limits.items():
            management._call("PUT", "user-limits", HOSTILE, name, body={"value": value})


class AttackedServer(RabbitmqServer):
    """With room for journals; and room for the hostile institution, again each time the rights and limits of all are set anew."""

    def _apply(self) -> None:
        limits = replace(LIMITS, journal_stream_bytes=16 * MIB)
        provision(self.logins, self.institutions, limits, free_bytes=self._node.free_bytes)
        set_limits(self, LIFTED)


@contextmanager
def under_attack(node: TlsNode, folder: Path, plan: Plan = PLAN, **beginning: Any) -> Iterator[World]:
    """A federation in a virtual host of its own, named after the folder."""
    server = AttackedServer(node.node, node.logins(folder.name), node.certificate)
    world = World(server, node, folder, plan, **beginning)
    try:
        yield world
    finally:
        world.close()
        server.close()
