"""A campaign: faults drawn one after another, a few at a time, each healed and waited for until progress is seen again."""

import random
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from campaigns.evidence import Outage
from campaigns.federation import ALIVE, Federation
from campaigns.injections import KINDS, Injected, Stage
from campaigns.progress import Step
from operator_console.worker_processes import WorkerEndedError
from shared.errors import FederationError

AT_ONCE = 3
PAUSE_SECONDS = (0.2, 1.0)
WARM_UP_SECONDS = 90.0
GIVE_UP_SECONDS = 150.0
"""A client sends again after a minute; who shows no progress in twice that time has not recovered."""
DRAIN_SECONDS = 200.0
MOST_ENDINGS = 5
"""A worker that nobody killed must not end; it is started again, as a service manager would, but not for ever."""
_TICK_SECONDS = 0.05
_DRAWS = 20


@dataclass(slots=True, eq=False)
class Fault:
    """One fault; times are this process's monotonic clock."""

    number: int
    kind: str
    target: str
    begun_at: float
    epoch: int
    injected: Injected | None = None
    healed_at: float | None = None
    recovered_at: float | None = None
    given_up: bool = False

    @property
    def recovery_seconds(self) -> float | None:
        """From the cure on; from the fault itself where another leader is to take over meanwhile."""
        if self.recovered_at is None or self.healed_at is None or self.injected is None:
            return None
        return self.recovered_at - (self.begun_at if self.injected.another_leads else self.healed_at)

    @property
    def end(self) -> float:
        """Until when it may have disturbed others."""
        return self.recovered_at or float("inf")


@dataclass(slots=True, eq=False)
class Campaign:
    """`kinds` are those that are drawn from, `say` gets every fault that is over."""

    stage: Stage
    planned: int
    kinds: Sequence[str]
    say: Callable[[Fault], None]
    faults: list[Fault] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    _active: dict[str, Fault] = field(default_factory=dict)
    _under_way: dict[str, Future[Injected | None]] = field(default_factory=dict)
    _healing: dict[str, Future[None]] = field(default_factory=dict)
    _deck: list[str] = field(default_factory=list)
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(AT_ONCE + 1, thread_name_prefix="fault"))

    @property
    def federation(self) -> Federation:
        """What is tormented."""
        return self.stage.federation

    def run(self) -> None:
        """From the first start of a worker to the last one's clean end."""
        for program in self.federation.programs.values():
            program.start()
        self._wait(self._all_settled_once, WARM_UP_SECONDS, "the federation did not begin")
        # every kind once, those of more weight rather early: a key of u^(1/weight) each (Efraimidis & Spirakis 2006)
        self._deck = sorted(self.kinds, key=lambda kind: self.stage.rng.random() ** (1 / KINDS[kind].weight))
        next_at = time.monotonic()
        while len(self.faults) < self.planned or self._active:
            self._tick()
            if time.monotonic() >= next_at and len(self._active) < AT_ONCE and len(self.faults) < self.planned:
                self._begin()
                next_at = time.monotonic() + self.stage.rng.uniform(*PAUSE_SECONDS)
            time.sleep(_TICK_SECONDS)
        self._drain()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def outages(self) -> list[Outage]:
        """The times in which one institution was out and the rest of the federation was well."""
        return [
            Outage(fault.target, fault.begun_at, fault.healed_at)
            for fault in self.faults
            if KINDS[fault.kind].outage and fault.target in ALIVE and fault.healed_at is not None and self._alone(fault)
        ]

    def _alone(self, fault: Fault) -> bool:
        meanwhile = [
            other
            for other in self.faults
            if other is not fault and other.begun_at < (fault.healed_at or 0) and other.end > fault.begun_at
        ]
        return all(other.target in ALIVE for other in meanwhile) and {other.target for other in meanwhile} < set(ALIVE) - {
            fault.target
        }

    def _all_settled_once(self) -> bool:
        seen = {step.pseudonym for step in self.stage.progress.steps}
        return all(self.federation.pseudonym(name) in seen for name in ALIVE)

    def _wait(self, look: Callable[[], bool], timeout_seconds: float, trouble: str) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not look():
            self._tick()
            if time.monotonic() > deadline:
                raise FederationError(f"{trouble} within {timeout_seconds:g} s")
            time.sleep(_TICK_SECONDS)

    def _tick(self) -> None:
        if not self.stage.progress.follows:
            raise FederationError("the lineage cannot be followed any more")
        for program in self.federation.programs.values():
            if program.running and program.name not in self._under_way:
                self._demand_alive(program.name)
        for target, fault in list(self._active.items()):
            self._advance(target, fault)

    def _demand_alive(self, name: str) -> None:
        program = self.federation.programs[name]
        try:
            program.process.demand_alive()
        except WorkerEndedError as error:
            if self.stage.progress.phase == "finished":
                return
            self.troubles.append(str(error))
            program.kill()
            if len(self.troubles) > MOST_ENDINGS:
                self.planned = len(self.faults)  # enough is known
            else:
                program.start()

    def _begin(self) -> None:
        for _ in range(_DRAWS):
            kind = self._deck.pop() if self._deck else self._drawn()
            targets = [target for target in KINDS[kind].targets(self.stage) if target not in self._active]
            if not targets:
                continue
            target = self.stage.rng.choice(targets)
            fault = Fault(0, kind, target, time.monotonic(), self.stage.progress.chain.epoch)
            self._active[target] = fault
            self._under_way[target] = self._pool.submit(KINDS[kind].begin, self.stage, target)
            return

    def _drawn(self) -> str:
        (kind,) = self.stage.rng.choices(self.kinds, [KINDS[kind].weight for kind in self.kinds])
        return kind

    def _advance(self, target: str, fault: Fault) -> None:
        now = time.monotonic()
        if target in self._under_way:
            if self._under_way[target].done():
                self._injected(target, fault, self._under_way.pop(target).result())
        elif target in self._healing:
            if self._healing[target].done():
                self._healing.pop(target).result()
                fault.healed_at = now
        elif fault.healed_at is None:
            if fault.injected is not None and now >= fault.begun_at + fault.injected.lasts_seconds:
                self._healing[target] = self._pool.submit(fault.injected.heal)
        elif self._recovered(fault) or now > fault.healed_at + GIVE_UP_SECONDS:
            fault.given_up = fault.recovered_at is None
            del self._active[target]
            self.say(fault)

    def _injected(self, target: str, fault: Fault, injected: Injected | None) -> None:
        if injected is None or len(self.faults) >= self.planned:  # nothing to strike at, or one more than was asked for
            del self._active[target]
            if injected is not None:
                injected.heal()
            return
        fault.injected = injected
        fault.number = len(self.faults) + 1
        self.faults.append(fault)

    def _recovered(self, fault: Fault) -> bool:
        healed_at, injected = fault.healed_at, fault.injected
        if healed_at is None or injected is None:
            return False
        progress = self.stage.progress
        if injected.another_leads:
            step = progress.since(fault.begun_at, above_epoch=fault.epoch)
        elif injected.everybody:
            step = self._last_of_all(healed_at)
        else:
            step = progress.since(healed_at, pseudonym=self.federation.institution(fault.target))
        fault.recovered_at = step.at if step else None
        return step is not None

    def _last_of_all(self, healed_at: float) -> Step | None:
        """When the last of the institutions that no fault holds was settled again."""
        free = [name for name in ALIVE if name not in self._active]
        steps = [self.stage.progress.since(healed_at, pseudonym=self.federation.pseudonym(name)) for name in free]
        return max((step for step in steps if step), default=None) if all(steps) else None

    def _drain(self) -> None:
        """Everything is well again: the operator stops the run, and every client ends by itself once its outbox is empty."""
        self._order_stop()
        deadline = time.monotonic() + DRAIN_SECONDS
        for client in self.federation.clients:
            code = client.wait(max(1.0, deadline - time.monotonic()))
            if code != 0:
                self.troubles.append(
                    f"{client.name} ended with code {code} after the run was stopped: see {client.process.log_file}"
                )
        for aggregator in self.federation.aggregators:
            aggregator.process.ask_to_end()
        for aggregator in self.federation.aggregators:
            code = aggregator.wait(30.0)
            if code not in (0, -signal.SIGTERM):  # one that had just been started does not listen to signals yet
                self.troubles.append(f"{aggregator.name} ended with code {code} when it was asked to end")

    def _order_stop(self) -> None:
        deadline = time.monotonic() + WARM_UP_SECONDS
        while True:
            try:
                self.federation.order("stop")
            except FederationError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)
            else:
                return


def drawn_from(seed: int) -> random.Random:
    """The draws of a campaign. The same seed gives the same plan and kinds; when and where they strike depends on the machine."""
    return random.Random(seed)  # noqa: S311 - no secrets here
