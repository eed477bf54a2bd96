"""Everything around a running worker that watches it: its address, and systemd where that started it."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import structlog
from prometheus_client import CollectorRegistry

from monitoring.endpoint import served
from monitoring.settings import MonitoringSettings
from monitoring.systemd import supervised
from monitoring.vitals import Vitals

log = structlog.get_logger()


@contextmanager
def watched(
    settings: MonitoringSettings, vitals: Vitals, registry: CollectorRegistry, stopping: threading.Event
) -> Iterator[None]:
    """While inside, whoever asks is answered. Raises SettingsError where nothing can listen on the address."""
    with ExitStack() as around:
        if settings.listen is not None:
            around.enter_context(served(settings.listen, vitals, registry))
            log.info("answering", listen=settings.listen, paths="/metrics /healthz /readyz")
        around.enter_context(supervised(vitals, stopping))
        yield
