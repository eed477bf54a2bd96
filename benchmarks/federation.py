"""A federation to be measured: a private broker, version 0, and the workers as processes, each as a service runs it."""

import json
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from aggregator_worker.genesis import found
from broker_config import logins as login_file
from broker_config.connection import ConnectionSettings, connect
from broker_config.definitions import AGGREGATOR, OPERATOR
from broker_config.keyring import save_identity, save_trust
from broker_config.logins import Logins
from broker_config.node import start_node
from broker_config.provision import administration, provision
from broker_config.streams import LineageReader
from broker_config.topology import Limits as Room
from operator_console.worker_processes import WorkerProcess, entry_point, watched_over
from shared.codec import Dtype
from shared.errors import FederationError
from shared.keys import Identity, PublicKeys, Trust
from shared.messages import Entry, pseudonym
from shared.parameters import Array, Parameters, count
from shared.plan import AggregationPlan, Limits, LocalPlan, Plan, PrivacyPlan, UpdateEncoding

TASK_HASH = "0" * 64
EXAMPLES = 100
PATIENCE_SECONDS = 600.0
Protection = Literal["plain", "signed", "sealed"]
_MIB = 2**20
_ENVELOPE_BYTES = 64 * 1024


def vector(parameters: int, value: float) -> dict[str, Array]:
    """So many parameters of one value, as one large array and a small one, as a layer has them."""
    small = max(1, parameters // 1000)
    return {"weight": np.full(parameters - small, value, np.float32), "bias": np.full(small, value, np.float32)}


def plan_for(parameters: int, buffer_size: int, *, broadcast: Dtype, update_encoding: UpdateEncoding = "float32") -> Plan:
    """A plan without noise that never ends; above one update per version the buffer is exact."""
    return Plan(
        task="benchmark",
        task_hash=TASK_HASH,
        aggregation=AggregationPlan(buffer_size=buffer_size, exact_buffer=buffer_size > 1, max_wait_seconds=60.0),
        local=LocalPlan(updates=10**9),
        privacy=PrivacyPlan(mechanism="none", epsilon=None),
        limits=Limits(update_bytes=max(_MIB, 2 * 4 * parameters + _ENVELOPE_BYTES)),
        broadcast=broadcast,
        update_encoding=update_encoding,
    )


@dataclass(frozen=True, slots=True)
class Federation:
    """What the processes need to know, and where their files are."""

    folder: Path
    logins: Logins
    run_id: str
    run_secret: str
    plan: Plan
    parameters: int
    institutions: Sequence[str]
    broker_version: str
    broker_pid: int

    def pseudonym(self, institution: str) -> str:
        """How manifests name it."""
        return pseudonym(self.run_secret.encode(), institution)

    def settings(self, user: str) -> ConnectionSettings:
        """A login, with its keys where messages are signed."""
        keys = self.folder / "keys" / user
        return self.logins.settings(user).model_copy(update={"keys_folder": keys if keys.exists() else None})

    def aggregator(self) -> WorkerProcess:
        """The aggregator's own program with its settings file, not started yet."""
        folder = self.folder / "aggregator"
        folder.mkdir(exist_ok=True)
        login = self.settings(AGGREGATOR)
        keys = f'keys_folder = "{login.keys_folder}"\n' if login.keys_folder else ""
        (folder / "members.txt").write_text("\n".join(self.institutions))
        (folder / "run.secret").touch(mode=0o600)
        (folder / "run.secret").write_text(self.run_secret)
        settings = folder / "aggregator.toml"
        settings.write_text(
            'state_folder = "state"\nrun_secret_file = "run.secret"\nmembers_file = "members.txt"\n'
            f'[broker]\nurl = "{login.url}"\nuser = "{login.user}"\npassword = "{login.secret()}"\n{keys}'
        )
        command = [entry_point("fedqueue-aggregator"), "--config", str(settings)]
        return WorkerProcess("aggregator", command, self.folder / "aggregator.log", self.folder)

    def client(self, institution: str, *, training_seconds: float = 0.0) -> WorkerProcess:
        """A client worker whose training costs nothing, and sleeps so long, not started yet."""
        return self.program("benchmarks.institution", institution, {"institution": institution, "training": training_seconds})

    def program(self, module: str, name: str, facts: Mapping[str, object]) -> WorkerProcess:
        """One of this package's own programs. It gets its facts, its login among them, in a file."""
        file = self.folder / f"{name}.json"
        common = {"run_id": self.run_id, "run_secret": self.run_secret, "parameters": self.parameters}
        file.touch(mode=0o600)
        file.write_text(json.dumps({**common, "folder": str(self.folder), **facts}))
        return WorkerProcess(name, [sys.executable, "-m", module, str(file)], self.folder / f"{name}.log", self.folder)

    def wait_until_leading(self, aggregator: WorkerProcess) -> None:
        """Returns once the aggregator has restored and waits for updates."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while '"leading"' not in aggregator.log_file.read_text():
            aggregator.demand_alive()
            if time.monotonic() > deadline:
                raise FederationError(f"the aggregator does not lead after {PATIENCE_SECONDS:g} s: see {aggregator.log_file}")
            time.sleep(0.05)

    def wait_until_folded(self, updates: int, institutions: Sequence[str] = ()) -> None:
        """Returns once each of these institutions, all of them without any, has had so many updates folded."""
        names = [self.pseudonym(name) for name in institutions or self.institutions]
        broker = connect(self.settings(OPERATOR), name="benchmark/wait")
        reader = LineageReader(broker)
        reader.catch_up()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while min((reader.lineage.table or {})[name].counters.aggregated for name in names) < updates:
            if time.monotonic() > deadline:
                raise FederationError(f"an institution had no {updates} updates folded in {PATIENCE_SECONDS:g} s")
            delivery = broker.receive(0.5)
            if delivery is not None:
                broker.ack(delivery)
                reader.take(delivery)
        broker.close()


def write_keys(folder: Path, names: Sequence[str], protection: Protection) -> dict[str, PublicKeys]:
    """A folder of keys below `keys` for everybody, where messages are signed; the institutions' public keys by name."""
    if protection == "plain":
        return {}
    identities = {name: Identity.create() for name in (OPERATOR, AGGREGATOR, *names)}
    public = {name: identity.public for name, identity in identities.items()}
    trust = Trust(operator=public[OPERATOR], aggregators={AGGREGATOR: public[AGGREGATOR]}, sealed=protection == "sealed")
    known = {name: public[name] for name in names}
    for name, identity in identities.items():
        save_identity(identity, folder / "keys" / name)
        save_trust(trust.with_institutions(known if name in (OPERATOR, AGGREGATOR) else {}), folder / "keys" / name)
    return known


@contextmanager
def founded(
    plan: Plan, parameters: int, institutions: int, *, updates_waiting: int = 3, protection: Protection = "plain"
) -> Iterator[Federation]:
    """A federation of so many parameters, all 0, and so many institutions with as many examples each."""
    examples = dict.fromkeys((f"bank-{i + 1}" for i in range(institutions)), EXAMPLES)
    model = vector(parameters, 0.0)
    with founded_on(plan, model, examples, updates_waiting=updates_waiting, protection=protection) as federation:
        yield federation


@contextmanager
def founded_on(
    plan: Plan, model: Parameters, examples: Mapping[str, int], *, updates_waiting: int = 3, protection: Protection = "plain"
) -> Iterator[Federation]:
    """Version 0 on a private node of its own; node, processes and files are gone afterwards.

    `examples` is of each institution; `updates_waiting` is how many updates of one its queue has room for.
    """
    names = list(examples)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedqueue-benchmark-", ignore_cleanup_errors=True)))
        stack.enter_context(watched_over(folder))
        cluster = start_node(folder / "broker", remove_with_parent=True)
        stack.callback(cluster.stop)
        node = cluster.nodes[0]
        logins = login_file.create(
            node=node.amqp, management=node.management_url, admin_password=node.admin_password
        ).with_institutions(names)
        kept_bytes = max(64 * _MIB, 10 * plan.limits.update_bytes)
        room = Room(plan.limits.update_bytes, updates_waiting, model_stream_bytes=kept_bytes, state_stream_bytes=kept_bytes)
        provision(logins, names, room, free_bytes=node.free_bytes)
        with administration(logins) as management:
            version = management.version()
        pid = int((node.folder / "pid").read_text())
        login_file.save(logins, folder)
        run_id, secret = secrets.token_hex(8), secrets.token_hex(16)
        federation = Federation(folder, logins, run_id, secret, plan, count(model), names, version, pid)
        keys = write_keys(folder, names, protection)
        table = {federation.pseudonym(name): _entry(examples[name], keys.get(name)) for name in names}
        operator = connect(federation.settings(OPERATOR), name="benchmark/found")
        found(operator, run_id=run_id, plan=plan, parameters=model, table=table)
        operator.close()
        yield federation


def _entry(examples: int, keys: PublicKeys | None) -> Entry:
    public = {} if keys is None else {"signing_key": keys.signing, "sealing_key": keys.sealing}
    return Entry.model_validate({"incarnation": 1, "num_examples": examples, **public})


@contextmanager
def started(*processes: WorkerProcess) -> Iterator[None]:
    """While inside, these processes run; they are asked to end afterwards, and killed where they do not."""
    try:
        for process in processes:
            process.start()
        yield
    finally:
        for process in processes:
            process.ask_to_end()
        for process in processes:
            process.wait()
