"""The kinds of fault: whom each may strike, how it begins, how long it lasts, how it is healed, and what shows recovery."""

import random
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from broker_config.node import PrivateNode
from broker_config.node_files import environment
from campaigns import hostile
from campaigns.federation import Federation
from campaigns.hostile import Mischief
from campaigns.programs import Program, faketime_library
from campaigns.progress import Progress
from campaigns.tcp_proxy import Direction

BROKER = "broker"
_RABBITMQCTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"
_DAY_SECONDS = 86_400
_PATIENCE_SECONDS = 40.0
_WAYS: tuple[Direction, ...] = ("up", "down")
_MORE_THAN_ANY_DISK = 10**15

Begin = Callable[["Stage", str], "Injected | None"]
Targets = Callable[["Stage"], list[str]]


@dataclass(slots=True)
class Injected:
    """A fault that has begun. Recovery is a settlement (of the target's own, where it is an institution) after `heal`; one of a
    later epoch than before the fault, where it takes the lead away (`another_leads`); one of each institution that no other
    fault holds, where it strikes all (`everybody`)."""

    lasts_seconds: float
    heal: Callable[[], None]
    detail: str = ""
    another_leads: bool = False
    everybody: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """`weight` is how often it is drawn; `outage` says that its target is out of reach while it lasts."""

    weight: float
    targets: Targets
    begin: Begin
    outage: bool = False


@dataclass(slots=True, eq=False)
class Stage:
    """What faults act on."""

    federation: Federation
    progress: Progress
    rng: random.Random
    mounts: bool

    def program(self, name: str) -> Program:
        """By its name."""
        return self.federation.programs[name]

    def leader(self) -> Program | None:
        """Who claimed last, while it runs."""
        pid = self.progress.chain.claimant.rpartition("/")[2].partition("-")[0]
        return next((each for each in self.federation.aggregators if str(each.pid) == pid), None)


def _nothing() -> None:
    return


def _clients(stage: Stage) -> list[str]:
    return [program.name for program in stage.federation.clients if program.running]


def _leader(stage: Stage) -> list[str]:
    leader = stage.leader()
    return [leader.name] if leader is not None else []


def _standby(stage: Stage) -> list[str]:
    leader = stage.leader()
    return [each.name for each in stage.federation.aggregators if each.running and each is not leader]


def _workers(stage: Stage) -> list[str]:
    return [program.name for program in stage.federation.programs.values() if program.running]


def _broker(_stage: Stage) -> list[str]:
    return [BROKER]


def _cluster(stage: Stage) -> list[str]:
    return [BROKER] if len(stage.federation.cluster.nodes) >= 3 else []


def _with_disk(targets: Targets) -> Targets:
    return lambda stage: targets(stage) if stage.mounts else []


def _with_clock(targets: Targets) -> Targets:
    return lambda stage: targets(stage) if faketime_library() is not None else []


def _kill(stage: Stage, target: str) -> Injected:
    program, leads = stage.program(target), target in _leader(stage)
    program.kill()
    pause = stage.rng.uniform(0.1, 4.0)
    return Injected(pause, program.start, f"restarted after {pause:.1f} s", another_leads=leads)


def _pause(shortest: float, longest: float) -> Begin:
    def begin(stage: Stage, target: str) -> Injected:
        program = stage.program(target)
        program.pause()
        lasts = stage.rng.uniform(shortest, longest)
        return Injected(lasts, program.go_on, f"for {lasts:.1f} s")

    return begin


def _cut(stage: Stage, target: str) -> Injected:
    leads = target in _leader(stage)
    stage.program(target).link.each(lambda proxy: proxy.cut())
    return Injected(0.0, _nothing, another_leads=leads)


def _cut_in_message(stage: Stage, target: str) -> Injected:
    after, way = stage.rng.randrange(1, 60_000), stage.rng.choice(_WAYS)
    link = stage.program(target).link
    link.each(lambda proxy: proxy.cut_after(after, way))
    return Injected(2.0, link.heal, f"after {after} bytes {way}")


def _stall(stage: Stage, target: str) -> Injected:
    link, lasts = stage.program(target).link, stage.rng.uniform(1.0, 9.0)
    link.each(lambda proxy: proxy.stall())
    return Injected(lasts, link.heal, f"for {lasts:.1f} s")


def _slow(stage: Stage, target: str) -> Injected:
    link, pace, lasts = stage.program(target).link, stage.rng.choice((5_000, 20_000, 50_000)), stage.rng.uniform(2.0, 5.0)
    link.each(lambda proxy: proxy.slow(pace, "up"))
    link.each(lambda proxy: proxy.slow(pace, "down"))
    return Injected(lasts, link.heal, f"{pace} bytes/s for {lasts:.1f} s")


def _refuse(stage: Stage, target: str) -> Injected:
    link, lasts = stage.program(target).link, stage.rng.uniform(1.0, 5.0)
    link.each(lambda proxy: proxy.refuse())
    link.each(lambda proxy: proxy.cut())
    return Injected(lasts, link.heal, f"for {lasts:.1f} s")


def _mischief(mischief: Mischief) -> Begin:
    def begin(stage: Stage, target: str) -> Injected | None:
        done = hostile.send(stage.federation, stage.program(target), mischief, stage.rng)
        return Injected(0.0, _nothing) if done else None

    return begin


def _full_disk(stage: Stage, target: str) -> Injected:
    program, lasts = stage.program(target), stage.rng.uniform(1.0, 4.0)
    program.fill_disk()
    return Injected(lasts, program.empty_disk, f"for {lasts:.1f} s")


def _clock_jump(stage: Stage, target: str) -> Injected:
    program = stage.program(target)
    ahead = stage.rng.choice((-1, 1)) * stage.rng.choice((30, 3600, _DAY_SECONDS, 400 * _DAY_SECONDS))
    program.set_clock(ahead)
    return Injected(1.5, lambda: program.set_clock(0), f"{ahead:+d} s, and back")


def _kill_node(stage: Stage, _target: str) -> Injected:
    return _kill_nodes(stage, 1, stage.rng.uniform(0.0, 2.0))


def _kill_majority(stage: Stage, _target: str) -> Injected:
    return _kill_nodes(stage, 2, stage.rng.uniform(1.0, 4.0))


def _kill_nodes(stage: Stage, many: int, pause: float) -> Injected:
    all_nodes = stage.federation.cluster.nodes
    nodes = stage.rng.sample(all_nodes, many)
    for node in nodes:
        node.kill()

    def heal() -> None:
        for node in nodes:
            node.launch()
        _until_all_listen(all_nodes)

    return Injected(pause, heal, " and ".join(node.record.name for node in nodes), everybody=True)


def _until_all_listen(nodes: Sequence[PrivateNode]) -> None:
    """A node that paused without its majority may fail to resume (RabbitMQ 3.10 compares its features with a node that is still
    booting, and stays stopped); the others wait for it. As an operator would, this starts it again."""
    launched = time.monotonic()
    while silent := [node for node in nodes if not _listens(node)]:
        if time.monotonic() > launched + _PATIENCE_SECONDS:
            for node in silent:
                node.kill()
            for node in silent:
                node.launch()
            launched = time.monotonic()
        time.sleep(0.1)


def _listens(node: PrivateNode) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", node.record.amqp_port)) == 0


def _disk_alarm(stage: Stage, _target: str) -> Injected:
    node = stage.rng.choice(stage.federation.cluster.nodes)
    _control(node, "set_disk_free_limit", str(_MORE_THAN_ANY_DISK))
    lasts = stage.rng.uniform(0.5, 3.0)
    return Injected(
        lasts, lambda: _control(node, "set_disk_free_limit", "200MB"), f"{node.record.name} for {lasts:.1f} s", everybody=True
    )


def _control(node: PrivateNode, *words: str) -> None:
    variables = dict(environment(node.record, node.folder, marked=node.folder))
    command = [_RABBITMQCTL, "--node", node.record.name, "--quiet", *words]
    subprocess.run(command, env=variables, cwd=node.folder, check=True, capture_output=True, timeout=60)  # noqa: S603


KINDS: Mapping[str, Kind] = {
    "leader killed": Kind(5, _leader, _kill),
    "standby killed": Kind(2, _standby, _kill),
    "client killed": Kind(6, _clients, _kill, outage=True),
    "leader stopped for a moment": Kind(2, _leader, _pause(0.3, 2.0)),
    "leader stopped beyond heartbeats": Kind(2, _leader, _pause(7.0, 10.0)),
    "standby stopped": Kind(1, _standby, _pause(0.3, 9.0)),
    "client stopped": Kind(3, _clients, _pause(0.3, 9.0), outage=True),
    "broker node killed": Kind(2, _broker, _kill_node),
    "quorum lost": Kind(0.3, _cluster, _kill_majority),
    "connection cut": Kind(5, _workers, _cut),
    "connection cut in mid-message": Kind(6, _workers, _cut_in_message),
    "connection stalled": Kind(3, _workers, _stall, outage=True),
    "connection slow": Kind(3, _workers, _slow),
    "connection refused": Kind(3, _workers, _refuse, outage=True),
    "update sent twice": Kind(5, _clients, _mischief(hostile.repeated)),
    "corrupt chunk": Kind(4, _clients, _mischief(hostile.corrupted)),
    "truncated update": Kind(4, _clients, _mischief(hostile.truncated)),
    "reordered chunks": Kind(4, _clients, _mischief(hostile.reordered)),
    "aggregator's disk full": Kind(3, _with_disk(_leader), _full_disk),
    "client's disk full": Kind(3, _with_disk(_clients), _full_disk, outage=True),
    "broker's disk alarm": Kind(1.5, _broker, _disk_alarm),
    "aggregator's clock jumps": Kind(2, _with_clock(_leader), _clock_jump),
    "client's clock jumps": Kind(2, _with_clock(_clients), _clock_jump),
}
