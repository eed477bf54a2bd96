"""The federation that a campaign torments: a private cluster, two aggregators, and institutions that are the real workers."""

import json
import random
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aggregator_worker.genesis import found
from broker_config import logins as login_file
from broker_config.connection import ConnectionSettings, connect
from broker_config.definitions import AGGREGATOR, OPERATOR
from broker_config.logins import Logins
from broker_config.node import PrivateCluster, PrivateNode, start_cluster
from broker_config.provision import provision
from broker_config.topology import OPERATIONS
from broker_config.topology import Limits as Room
from campaigns.evidence import Evidence, Outage, ledger, stream, waiting
from campaigns.programs import Link, Program, small_disk, with_own_clock
from operator_console.worker_processes import WorkerProcess, entry_point
from shared import messages
from shared.broker import Broker, Message
from shared.errors import BrokerUnavailableError
from shared.messages import Entry, Operation, pseudonym
from shared.parameters import Parameters
from shared.plan import AggregationPlan, Limits, LocalPlan, Plan, PrivacyPlan

TASK_HASH = "0" * 64
ALIVE = ("bank-a", "bank-b", "bank-c")
DEAD = "bank-d"
"""A member that is never started: nobody may wait for it."""
AGGREGATORS = ("aggregator-1", "aggregator-2")
HEARTBEAT_SECONDS = 3
TRAINING_SECONDS = 0.25
_MIB = 2**20
_TRIES = 3
_TARGETS = {"bank-a": 1.0, "bank-b": -2.0, "bank-c": 3.0, "bank-d": 0.0}
_EXAMPLES = {"bank-a": 100, "bank-b": 300, "bank-c": 200, "bank-d": 400}


def first_model() -> Parameters:
    """Ten thousand parameters: ten chunks of 4 KiB as float32, three as int8."""
    return {"weight": np.zeros((99, 100), np.float32), "bias": np.zeros(100, np.float32)}


def drawn_plan(rng: random.Random) -> Plan:
    """What differs from seed to seed: K, momentum, in what numbers models and updates travel, and whether these have noise."""
    private = PrivacyPlan(mechanism="dp-sgd", epsilon=1e6)
    return Plan(
        task="campaign",
        task_hash=TASK_HASH,
        aggregation=AggregationPlan(
            buffer_size=rng.choice((1, 2, 3)), max_wait_seconds=1.0, server_momentum=rng.choice((0.0, 0.5))
        ),
        local=LocalPlan(updates=10**9),
        privacy=rng.choice((private, PrivacyPlan(mechanism="none", epsilon=None))),
        limits=Limits(update_bytes=256 * 1024, chunk_bytes=4 * 1024, letters_per_day=None),  # the checker looks for each
        broadcast=rng.choice(("float32", "bfloat16")),
        update_encoding=rng.choice(("int8", "float16", "float32")),
    )


@dataclass(frozen=True, slots=True)
class Size:
    """How large a campaign is. `kept_bytes` is what each stream may hold (the lineage `lineage_bytes`, all where that is None),
    `mounts` whether state folders are small disks."""

    nodes: int
    kept_bytes: int
    mounts: bool
    training_seconds: float = TRAINING_SECONDS
    segment_bytes: int = 64 * _MIB
    lineage_bytes: int | None = None


@dataclass(slots=True, eq=False)
class Federation:
    """A founded federation and its processes, none of which is started yet."""

    folder: Path
    cluster: PrivateCluster
    logins: Logins
    run_id: str
    run_secret: str
    plan: Plan
    programs: dict[str, Program]

    @property
    def clients(self) -> list[Program]:
        """The institutions' workers."""
        return [self.programs[name] for name in ALIVE]

    @property
    def aggregators(self) -> list[Program]:
        """Leader and standby; who is which changes."""
        return [self.programs[name] for name in AGGREGATORS]

    def pseudonym(self, institution: str) -> str:
        """How manifests name it."""
        return pseudonym(self.run_secret.encode(), institution)

    def institution(self, name: str) -> str | None:
        """The pseudonym of a program that is an institution's."""
        return self.pseudonym(name) if name in ALIVE else None

    def settings(self, user: str) -> ConnectionSettings:
        """A way past the links."""
        return self.logins.settings(user)

    def order(self, kind: str) -> None:
        """Gives an operator's order."""
        operation = Operation(run_id=self.run_id, operation_id=secrets.token_hex(16), kind=kind, arguments={})  # type: ignore[arg-type]
        operator = connect(self.settings(OPERATOR), name="campaign/operator")
        try:
            operator.publish(OPERATIONS, Message(messages.encode("operation", operation), "operation", operation.operation_id))
        finally:
            operator.close()

    def evidence(self, outages: Sequence[Outage], progress: Sequence[tuple[float, str]]) -> Evidence:
        """What was left behind. The clients must have ended: their ledgers are read."""
        names = (*ALIVE, DEAD)

        def operator() -> Broker:
            return connect(self.settings(OPERATOR), name="campaign/evidence")

        return Evidence(
            pseudonyms={name: self.pseudonym(name) for name in names},
            lineage=list(stream(operator, "fl.lineage")),
            models=stream(operator, "fl.model"),
            states=stream(operator, "fl.state"),
            journals={name: stream(operator, f"fl.jrn.{name}") for name in ALIVE},
            dead_letters=waiting(operator, "fl.dlq"),
            ledgers={program.name: ledger(program.state_folder / "ledger.sqlite") for program in self.clients},
            never_started=[DEAD],
            outages=outages,
            progress=progress,
        )


@contextmanager
def founded(folder: Path, plan: Plan, size: Size) -> Iterator[Federation]:
    """Version 0 on a private cluster below `folder`; every process has ended afterwards, the files are still there."""
    names = [*ALIVE, DEAD]
    with ExitStack() as stack:
        cluster = _started_cluster(folder, size.nodes)
        stack.callback(_end_cluster, cluster)
        node = cluster.nodes[0]
        bare = login_file.create(node=node.amqp, management=node.management_url, admin_password=node.admin_password)
        everywhere = ",".join(each.amqp_url(bare.vhost) for each in cluster.nodes)
        logins = bare.with_institutions(names).model_copy(update={"amqp": everywhere})
        _provide(logins, _room(plan, size), node)
        federation = Federation(folder, cluster, logins, secrets.token_hex(8), secrets.token_hex(16), plan, {})
        operator = connect(logins.settings(OPERATOR), name="campaign/found")
        table = {federation.pseudonym(name): Entry(incarnation=1, num_examples=_EXAMPLES[name]) for name in names}
        found(operator, run_id=federation.run_id, plan=plan, parameters=first_model(), table=table)
        operator.close()
        for name in (*AGGREGATORS, *ALIVE):
            federation.programs[name] = _program(federation, name, size)
            stack.callback(federation.programs[name].link.close)
        stack.callback(_end, federation)
        yield federation


def _started_cluster(folder: Path, nodes: int) -> PrivateCluster:
    """A port that was free may be taken by the time a node wants it, so there is more than one try, each with other ports."""
    for attempt in range(1, _TRIES):
        with suppress(BrokerUnavailableError):
            return start_cluster(folder / f"broker-{attempt}", nodes=nodes)
    return start_cluster(folder / f"broker-{_TRIES}", nodes=nodes)


def _provide(logins: Logins, room: Room, node: PrivateNode) -> None:
    """Creates the topology; a cluster that has just formed on a busy machine may need more than one try."""
    for _ in range(1, _TRIES):
        with suppress(BrokerUnavailableError):
            return provision(logins, [*ALIVE, DEAD], room, free_bytes=node.free_bytes)
    return provision(logins, [*ALIVE, DEAD], room, free_bytes=node.free_bytes)


def _room(plan: Plan, size: Size) -> Room:
    return Room(
        update_bytes=plan.limits.update_bytes,
        model_stream_bytes=size.kept_bytes,
        state_stream_bytes=size.kept_bytes,
        journal_stream_bytes=size.kept_bytes,
        segment_bytes=size.segment_bytes,
        lineage_stream_bytes=size.lineage_bytes,
        dead_letter_bytes=256 * _MIB,
    )


def _end_cluster(cluster: PrivateCluster) -> None:
    """At once: nobody needs what its nodes would still write, only their logs."""
    for node in cluster.nodes:
        node.kill()
    cluster.stop()


def _end(federation: Federation) -> None:
    for program in federation.programs.values():
        program.kill()


def _program(federation: Federation, name: str, size: Size) -> Program:
    state_folder = federation.folder / name / "state"
    if size.mounts:
        small_disk(state_folder)
    state_folder.mkdir(parents=True, exist_ok=True)
    link = Link([node.record.amqp_port for node in federation.cluster.nodes])
    login = federation.settings(AGGREGATOR if name in AGGREGATORS else name)
    broker: dict[str, str | int] = {
        "url": link.urls(federation.logins.vhost),
        "user": login.user,
        "password": login.secret(),
        "heartbeat_seconds": HEARTBEAT_SECONDS,
    }
    write = _aggregator_command if name in AGGREGATORS else _client_command
    clock_file = federation.folder / name / "clock"
    command = with_own_clock(write(federation, name, broker, size), clock_file)
    process = WorkerProcess(name, command, federation.folder / "logs" / f"{name}.log", federation.folder)
    return Program(name, process, link, state_folder, clock_file, size.mounts)


def _aggregator_command(federation: Federation, name: str, broker: Mapping[str, str | int], _size: Size) -> list[str]:
    folder = federation.folder / name
    (folder / "members.txt").write_text("\n".join((*ALIVE, DEAD)))
    (folder / "run.secret").touch(mode=0o600)
    (folder / "run.secret").write_text(federation.run_secret)
    settings = folder / "aggregator.toml"
    settings.touch(mode=0o600)
    settings.write_text(
        'state_folder = "state"\nrun_secret_file = "run.secret"\nmembers_file = "members.txt"\n'
        "[durability]\norphan_seconds = 10\n[broker]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in broker.items())
    )
    return [entry_point("fedqueue-aggregator"), "--config", str(settings)]


def _client_command(federation: Federation, name: str, broker: Mapping[str, str | int], size: Size) -> list[str]:
    facts = {
        "institution": name,
        "pseudonym": federation.pseudonym(name),
        "run_id": federation.run_id,
        "task_hash": TASK_HASH,
        "target": _TARGETS[name],
        "num_examples": _EXAMPLES[name],
        "training_seconds": size.training_seconds,
        "state_folder": str(federation.folder / name / "state"),
        "broker": broker,
    }
    file = federation.folder / name / "facts.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps(facts))
    return [sys.executable, "-m", "campaigns.institution", str(file)]
