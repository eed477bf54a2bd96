"""One audited run: a founded federation, the real workers, and what was published, as the broker's journal holds it."""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from broker_config.connection import connect
from broker_config.definitions import OPERATOR
from broker_config.logins import Logins, create
from broker_config.node import PrivateNode
from broker_config.provision import remove_vhost
from broker_config.streams import LineageReader
from broker_config.topology import MIB, journal_queue
from campaigns import evidence
from campaigns.one_run_audit import Coins, Scores
from campaigns.privacy_audit_data import Audited, flipped_coins, training_csv
from operator_console.federation_folder import ClientOptions, FederationFolder, InstitutionFacts
from operator_console.founding import Founding, found_federation
from operator_console.plan_options import PlanOptions, RoomOptions
from operator_console.worker_processes import WorkerProcess, entry_point
from shared import messages
from shared.compact import widened
from shared.errors import FederationError
from shared.messages import Update
from shared.parameters import Parameters
from shared.plan import Ending

INSTITUTION = "audited-bank"
PATIENCE_SECONDS = 600.0
MAX_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """What an attacker has: every update's fields and delta, as they were sent. `ledger_epsilon` is what the institution has
    charged itself; None without noise."""

    updates: Sequence[tuple[Update, Parameters]]
    ledger_epsilon: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One run as the attacker scored it. `plan_epsilon` is what the federation agreed on, None for no noise."""

    seed: int
    plan_epsilon: float | None
    ledger_epsilon: float | None
    noise_multiplier: float | None
    scores: Scores
    included: Coins


def attack(node: PrivateNode, folder: Path, audited: Audited, *, epsilon: float | None, seed: int) -> Run:
    """Founds a federation on a virtual host of its own, lets it run to its end and scores the canaries by what it published."""
    included = flipped_coins(audited, seed)
    folder.mkdir(parents=True)
    data_file = folder / "training.csv"
    data_file.write_text(training_csv(audited, included, seed))
    published = publish(node, FederationFolder(folder / "federation"), audited, epsilon=epsilon, data_file=data_file)
    return Run(
        seed=seed,
        plan_epsilon=epsilon,
        ledger_epsilon=published.ledger_epsilon,
        noise_multiplier=published.updates[-1][0].privacy.noise_multiplier,
        scores=audited.scores(delta for _, delta in published.updates),
        included=included,
    )


def publish(
    node: PrivateNode, folder: FederationFolder, audited: Audited, *, epsilon: float | None, data_file: Path
) -> Published:
    """Runs the aggregator and the institution's client, each as a service does, until the last planned update is aggregated."""
    with _virtual_host(node, f"audit-{folder.path.parent.name}") as logins:
        options = PlanOptions(
            epsilon=epsilon,
            target_delta=audited.target_delta,
            max_wait_seconds=MAX_WAIT_SECONDS,
            updates_as=audited.encoding,
            ending=Ending(updates=audited.updates, updates_each=audited.updates),
        )
        founding = Founding(
            audited.task_text(),
            "the audit's task",
            [InstitutionFacts(id=INSTITUTION, title="The audited bank")],
            options,
            room=RoomOptions(journal_bytes=64 * MIB + 16 * audited.updates * audited.canaries),
            clients={INSTITUTION: ClientOptions(num_examples=audited.num_examples, training_file=str(data_file.resolve()))},
            free_bytes=node.free_bytes,
        )
        found_federation(folder, logins, founding)
        workers = [
            _worker(folder, "aggregator", "fedqueue-aggregator", folder.aggregator_file),
            _worker(folder, INSTITUTION, "fedqueue-client", folder.client_file(INSTITUTION)),
        ]
        _run_to_the_end(workers, logins)
        updates = list(_journal(logins))
        ledger_epsilon = _ledger_epsilon(folder.institution(INSTITUTION) / "ledger.sqlite")
    if len(updates) != audited.updates:
        raise FederationError(f"{len(updates)} of {audited.updates} updates are in the journal; see the logs in {folder.path}")
    return Published(updates, ledger_epsilon)


@contextmanager
def _virtual_host(node: PrivateNode, name: str) -> Iterator[Logins]:
    bare = create(node=node.amqp, management=node.management_url, admin_password=node.admin_password, vhost=name)
    logins = bare.with_institutions([INSTITUTION])
    try:
        yield logins
    finally:
        remove_vhost(logins)


def _worker(folder: FederationFolder, name: str, program: str, settings: Path) -> WorkerProcess:
    return WorkerProcess(name, [entry_point(program), "--config", str(settings)], folder.log_file(name), folder.path)


def _run_to_the_end(workers: Sequence[WorkerProcess], logins: Logins) -> None:
    try:
        for worker in workers:
            worker.start()
        _wait_until_finished(workers, logins)
        for worker in workers:
            worker.ask_to_end()
        for worker in workers:
            code = worker.wait()
            if code != 0:
                raise FederationError(f"{worker.name} ended with code {code}; see {worker.log_file}")
    finally:
        for worker in workers:
            worker.kill()


def _wait_until_finished(workers: Sequence[WorkerProcess], logins: Logins) -> None:
    broker = connect(logins.settings(OPERATOR), name="privacy-audit/wait")
    try:
        reader = LineageReader(broker)
        reader.catch_up()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while reader.current()[0].manifest.phase != "finished":
            for worker in workers:
                worker.demand_alive()
            if time.monotonic() > deadline:
                raise FederationError(f"the run did not end within {PATIENCE_SECONDS:g} s; see {workers[-1].log_file}")
            delivery = broker.receive(0.5)
            if delivery is not None:
                broker.ack(delivery)
                reader.take(delivery)
    finally:
        broker.close()


def _journal(logins: Logins) -> Iterator[tuple[Update, Parameters]]:
    """Every update that was published, once: what is sent again has the same bytes."""
    seen = set()
    for stored in evidence.stream(lambda: connect(logins.settings(OPERATOR), name="privacy-audit"), journal_queue(INSTITUTION)):
        if stored.kind != "update" or stored.headers["id"] in seen:
            continue
        if stored.headers["chunks"] != 1:
            raise FederationError("an update came in several chunks; audit with fewer canaries, so that one chunk holds it")
        seen.add(stored.headers["id"])
        update, delta = messages.decode_update(stored.body, max_bytes=len(stored.body))
        yield update, widened(delta)


def _ledger_epsilon(file: Path) -> float | None:
    """What the ledger's last reservation says of everything charged; None where it was charged nothing."""
    reserved = [row.fields for row in evidence.ledger(file) if row.state == "RESERVED"]
    spent = reserved[-1]["epsilon_spent"] if reserved else math.nan
    return None if spent is None else float(spent)
