"""The figures that every worker has: its version and role, whether it is ready, and how long its certificate holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from monitoring.figures import Figure, families, one
from monitoring.vitals import Vitals

# each counter would have a second figure, when it began, which nobody asks for
disable_created_metrics()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class OwnState(Collector):
    """Any worker. `expires` gives until when its certificate holds, None where there is none that can be read."""

    role: str
    vitals: Vitals
    expires: Callable[[], datetime | None]

    def collect(self) -> Iterator[Metric]:
        """Read at every scrape: a certificate is renewed while the worker runs."""
        return families(OWN_FIGURES, self)


def _expiry(worker: OwnState) -> float | None:
    expires = worker.expires()
    return None if expires is None else expires.timestamp()


OWN_FIGURES: tuple[Figure[OwnState], ...] = (
    Figure(
        "fedqueue_build_info",
        "1, with fedqueue's version and the worker's role",
        lambda worker: [((metadata.version("fedqueue"), worker.role), 1.0)],
        ("version", "role"),
    ),
    Figure("fedqueue_ready", "1 while the worker can do its job, else 0", lambda worker: one(worker.vitals.now().ready)),
    Figure(
        "fedqueue_certificate_expiry_timestamp_seconds",
        "Until when the worker's own certificate holds (Unix time)",
        lambda worker: one(_expiry(worker)),
    ),
)


def new_registry(role: str, vitals: Vitals, expires: Callable[[], datetime | None]) -> CollectorRegistry:
    """A registry with a worker's own state in it."""
    registry = CollectorRegistry()
    registry.register(OwnState(role, vitals, expires))
    return registry
