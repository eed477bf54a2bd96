"""The figures that every worker has: its version and role, whether it is ready, and how long its certificate holds."""

from collections.abc import Callable, Iterator
from datetime import datetime
from importlib import metadata

from prometheus_client import CollectorRegistry, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from monitoring.vitals import Vitals

# each counter would have a second figure, when it began, which nobody asks for
disable_created_metrics()  # type: ignore[no-untyped-call]


def new_registry(role: str, vitals: Vitals, expires: Callable[[], datetime | None]) -> CollectorRegistry:
    """A registry with a worker's own state. `expires` gives until when its certificate holds, None where it has none to read."""
    registry = CollectorRegistry()
    registry.register(_OwnState(role, vitals, expires))
    return registry


class _OwnState(Collector):
    """Read at every scrape."""

    def __init__(self, role: str, vitals: Vitals, expires: Callable[[], datetime | None]) -> None:
        self._role = role
        self._vitals = vitals
        self._expires = expires

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("fedqueue_build_info", "fedqueue's version and the worker's role", labels=["version", "role"])
        build.add_metric([metadata.version("fedqueue"), self._role], 1)
        yield build
        ready = self._vitals.now().ready
        yield GaugeMetricFamily("fedqueue_ready", "1 while the worker can do its job, else 0", value=float(ready))
        expires = self._expires()
        if expires is not None:
            yield GaugeMetricFamily(
                "fedqueue_certificate_expiry_timestamp_seconds",
                "Until when the worker's own certificate holds (Unix time)",
                value=expires.timestamp(),
            )
