"""Asks a worker on this computer whether it is ready, as a health check does: over its own address, without a library."""

import http.client
import json
from dataclasses import dataclass

from monitoring.settings import MonitoringSettings, split_address
from shared.errors import SettingsError

PATIENCE_SECONDS = 5.0
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - asked at, not listened on


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of the question."""

    ready: bool
    reason: str


def ask_ready(settings: MonitoringSettings) -> Answer:
    """Whether the worker with these settings is ready, and why not. Raises SettingsError where it answers nobody."""
    if settings.listen is None:
        raise SettingsError('--ready asks the worker at monitoring.listen: set it in both, as listen = "127.0.0.1:9464"')
    host, port = split_address(settings.listen)
    connection = http.client.HTTPConnection(_EVERYWHERE.get(host, host), port, timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", "/readyz")
        told = json.loads(connection.getresponse().read(2**16))
        return Answer(bool(told["ready"]), str(told["reason"]))
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        return Answer(ready=False, reason=f"no worker answers at {settings.listen}: {error}")
    finally:
        connection.close()
