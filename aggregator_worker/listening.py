"""Which update queues the leader consumes: those of members, less those whose institution has sent too much for now."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

import structlog

from aggregator_worker.rates import Overrun, Rates
from broker_config.topology import update_queue
from shared.broker import Broker, Delivery
from shared.errors import QueueGoneError, TopologyError
from shared.plan import Limits

PREFETCH_BEYOND_LARGEST = 8

log = structlog.get_logger()


def prefetch_for(limits: Limits) -> int:
    """All chunks of the largest update and a few messages more: an update is acknowledged as a whole."""
    return -(-limits.update_bytes // limits.chunk_bytes) + PREFETCH_BEYOND_LARGEST


@dataclass(slots=True, eq=False)
class Listening:
    """The leader's subscriptions to update queues.

    Whoever is over a rate is not listened to: what it sends stays in its own queue, which the broker lets grow to its limit, and
    is taken in the same order later. `forget` lets go of what waits for an institution and was not settled.
    """

    broker: Broker
    rates: Rates
    prefetch: int
    clock: Callable[[], float]
    forget: Callable[[str], None]
    _owners: dict[str, str] = field(default_factory=dict)
    _returned: dict[str, int] = field(default_factory=dict)
    _resting: dict[str, Overrun] = field(default_factory=dict)

    @property
    def institutions(self) -> Collection[str]:
        """Everybody whose queue is followed, also who is not listened to for now."""
        return self._owners.values()

    def follow(self, institution: str) -> None:
        """Listens to an update queue; one that is missing, or may not be read, is its institution's trouble and nobody else's."""
        if update_queue(institution) in self._owners:
            return
        try:
            self.broker.consume(update_queue(institution), prefetch=self.prefetch)
        except TopologyError as error:
            _say_unheard(institution, error)
        else:
            self._owners[update_queue(institution)] = institution

    def leave(self, institution: str) -> None:
        """Listens no more to a queue; what was delivered of it and not settled returns there."""
        if self._owners.pop(update_queue(institution), None) is not None:
            self._resting.pop(institution, None)
            self._stop(institution)

    def lost(self, gone: QueueGoneError) -> None:
        """A queue was deleted. Raises the error again where it is nobody's update queue."""
        institution = self._owners.pop(gone.queue, None)
        if institution is None:
            raise gone
        self._resting.pop(institution, None)
        _say_unheard(institution, gone)

    def owner(self, delivery: Delivery) -> str | None:
        """Whose update queue it came from."""
        return self._owners.get(delivery.queue)

    def heard(self, delivery: Delivery) -> Delivery | None:
        """The delivery to be handled; None for one that is left unsettled, so that soon the broker sends no more of them.

        How often it was given back here says nothing of whether its readers died of it.
        """
        institution = self._owners[delivery.queue]
        if institution in self.rates.overruns:
            return None
        returned = self._returned.get(institution, 0)
        return replace(delivery, delivery_count=max(0, delivery.delivery_count - returned)) if returned else delivery

    def pace(self, unsettled: Collection[Delivery]) -> None:
        """Stops listening to who is over a rate, once nothing of it is `unsettled`, and listens again to who has waited."""
        for institution in list(self._resting):
            if self.rates.has_recovered(institution, now=self.clock()):
                self._resume(institution)
        for institution, overrun in self.rates.overruns.items():
            queue = update_queue(institution)
            if institution in self._resting or queue not in self._owners or any(each.queue == queue for each in unsettled):
                continue
            self._stop(institution)
            self._returned[institution] = self._returned.get(institution, 0) + 1
            self._resting[institution] = overrun
            log.warning("not listened to", institution=institution, limit=overrun.limit)

    def _resume(self, institution: str) -> None:
        overrun = self._resting.pop(institution)
        del self._owners[update_queue(institution)]
        self.follow(institution)
        log.info("listened to again", institution=institution, seconds=round(self.clock() - overrun.since, 1))

    def _stop(self, institution: str) -> None:
        self.forget(institution)
        self.broker.cancel(update_queue(institution))


def _say_unheard(institution: str, error: Exception) -> None:
    log.error("an institution is not listened to", institution=institution, reason=str(error))
