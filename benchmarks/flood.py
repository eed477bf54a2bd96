"""`python -m benchmarks.flood`: what the honest institutions lose while one floods, each attack beside calm in the same run."""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from benchmarks.federation import Federation, founded, plan_for, started
from benchmarks.figures import tell
from benchmarks.flooder import ATTACKS
from benchmarks.readings import processor_seconds
from broker_config.connection import address, connect, waiting_messages
from broker_config.definitions import OPERATOR
from broker_config.streams import MAX_RECORD_BYTES
from broker_config.topology import DEAD_LETTERS, LINEAGE, update_queue
from operator_console.worker_processes import WorkerProcess
from shared import messages
from shared.errors import FederationError

WARM_UP_UPDATES = 3
BEGINNING_SECONDS = 2.0
"""The flood's first moments are not measured: its program has to start, and the first garbage is still listened to."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Updates per second are those of the honest institutions; `calm` is the mean of before and after the flood.

    The longest wait is between two versions with an update of theirs. `refused` is how many of their updates were not aggregated.
    """

    attack: str
    honest: int
    training_seconds: float
    calm_updates_per_second: float
    flooded_updates_per_second: float
    ratio: float
    calm_longest_wait_seconds: float
    flooded_longest_wait_seconds: float
    refused: int
    sent_by_flooder: int
    letters_of_flooder: int
    waiting_of_flooder: int
    broker_cores: float
    aggregator_cores: float
    flooder_cores: float
    broker: str
    cores: int


@dataclass(frozen=True, slots=True)
class Folded:
    """A version with updates of honest institutions: when it was published, how many it folds, how many it refuses."""

    at_seconds: float
    updates: int
    refused: int


@dataclass(frozen=True, slots=True)
class Window:
    """A time on the wall clock, and how many cores each process kept busy in it."""

    since: float
    until: float
    cores: Sequence[float]


def measure(attack: str, options: argparse.Namespace) -> Figures:
    """Founds a federation whose last institution is hostile, and looks at it before, during and after the flood."""
    plan = plan_for(options.parameters, 1, broadcast="float32")
    limits = plan.limits.model_copy(update={"updates_per_hour": options.updates_per_hour})
    plan = plan.model_copy(update={"limits": limits})
    with founded(plan, options.parameters, options.institutions + 1) as federation:
        honest, hostile = federation.institutions[:-1], federation.institutions[-1]
        aggregator, flooder = federation.aggregator(), program(federation, hostile, attack)
        clients = [federation.client(name, training_seconds=options.training_seconds) for name in honest]
        with started(aggregator, *clients):
            federation.wait_until_folded(WARM_UP_UPDATES, honest)
            pids = [federation.broker_pid, aggregator.pid]
            before = watch(pids, options.seconds)
            with started(flooder):
                time.sleep(BEGINNING_SECONDS)
                during = watch([*pids, flooder.pid], options.seconds)
                flooder.demand_alive()
            after = watch(pids, options.seconds)
            for each in (aggregator, *clients):
                each.demand_alive()
        found = folded(federation, honest)
        calm = (rate(found, before) + rate(found, after)) / 2
        admin = federation.logins.settings(federation.logins.administrator)
        return Figures(
            attack=attack,
            honest=len(honest),
            training_seconds=options.training_seconds,
            calm_updates_per_second=round(calm, 2),
            flooded_updates_per_second=round(rate(found, during), 2),
            ratio=round(rate(found, during) / calm, 3),
            calm_longest_wait_seconds=round(max(longest_wait(found, before), longest_wait(found, after)), 2),
            flooded_longest_wait_seconds=round(longest_wait(found, during), 2),
            refused=sum(each.refused for each in found),
            sent_by_flooder=json.loads((federation.folder / "sent.json").read_text())["sent"],
            letters_of_flooder=waiting_messages(admin, DEAD_LETTERS),
            waiting_of_flooder=waiting_messages(admin, update_queue(hostile)),
            broker_cores=round(during.cores[0], 2),
            aggregator_cores=round(during.cores[1], 2),
            flooder_cores=round(during.cores[2], 2),
            broker=federation.broker_version,
            cores=os.cpu_count() or 1,
        )


def program(federation: Federation, institution: str, attack: str) -> WorkerProcess:
    """The hostile institution with its own login, not started yet."""
    login = federation.logins.settings(institution)
    host, port, vhost = address(login.url)
    return federation.program(
        "benchmarks.flooder",
        "flooder",
        {
            "host": host,
            "port": port,
            "vhost": vhost,
            "user": login.user,
            "password": login.secret(),
            "institution": institution,
            "attack": attack,
            "result": str(federation.folder / "sent.json"),
        },
    )


def watch(pids: Sequence[int], seconds: float) -> Window:
    """Lets so many seconds go by."""
    since, before = time.time(), [processor_seconds(pid) for pid in pids]
    time.sleep(seconds)
    until, after = time.time(), [processor_seconds(pid) for pid in pids]
    return Window(since, until, [(late - early) / (until - since) for early, late in zip(before, after, strict=True)])


def folded(federation: Federation, honest: Sequence[str]) -> list[Folded]:
    """Every version that settles updates of these institutions."""
    names, found = {federation.pseudonym(name) for name in honest}, []
    broker = connect(federation.logins.settings(OPERATOR), name="benchmark/count")
    for delivery in broker.read(LINEAGE, "first", count=None, idle_seconds=1.0):
        if delivery.message.kind == "manifest":
            record = messages.decode_record(delivery.message.body, max_bytes=MAX_RECORD_BYTES)
            outcomes = [each.outcome for each in record.manifest.settled if each.institution in names]
            updates = outcomes.count("aggregated")
            if outcomes:
                found.append(Folded(int(delivery.message.headers["at_ms"]) / 1000, updates, len(outcomes) - updates))
    broker.close()
    return found


def rate(found: Sequence[Folded], window: Window) -> float:
    """Updates per second within a window. Raises FederationError where there was none."""
    updates = sum(each.updates for each in found if window.since <= each.at_seconds < window.until)
    if not updates:
        raise FederationError(f"no update was folded in {window.until - window.since:.0f} s; give more --seconds")
    return updates / (window.until - window.since)


def longest_wait(found: Sequence[Folded], window: Window) -> float:
    """The longest time within a window in which no update was folded."""
    times = [each.at_seconds for each in found if window.since <= each.at_seconds < window.until and each.updates]
    edges = [window.since, *times, window.until]
    return max(late - early for early, late in pairwise(edges))


def main() -> None:
    """`python -m benchmarks.flood`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flood", description=__doc__)
    parser.add_argument("--attack", action="append", choices=ATTACKS, help="may be given again; all without it")
    parser.add_argument("--institutions", type=int, default=2, help="honest ones")
    parser.add_argument("--parameters", type=int, default=10_000)
    parser.add_argument("--training-seconds", type=float, default=0.0, help="how long each training sleeps")
    parser.add_argument("--updates-per-hour", type=int, help="limit of the plan; none without it")
    parser.add_argument("--seconds", type=float, default=10.0, help="of calm before, of flood, and of calm after")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each attack instead of tables")
    chosen = parser.parse_args()
    for attack in chosen.attack or ATTACKS:
        tell(partial(measure, attack, chosen), as_json=chosen.json)


if __name__ == "__main__":
    main()
