"""The operator's connection behind `fedqueue status`, the history that it fills, and what was seen last when it is gone."""

import json
import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from broker_config import logins as login_file
from broker_config.connection import connect
from broker_config.definitions import OPERATOR, VIEWER
from broker_config.provision import administration
from broker_config.streams import LineageReader
from broker_config.topology import LEAD
from broker_config.written import write_private
from operator_console.completions import LAST_KNOWN
from operator_console.events import read_events
from operator_console.expiry import expiries
from operator_console.federation_folder import FederationFolder
from operator_console.history import History, fold_next, follow
from operator_console.status_screen import SCHEMA, Around, completed, status_object
from operator_console.summary import best_version
from operator_console.view_state import Shown, ViewState, view_of
from shared.broker import Broker
from shared.errors import BrokerUnavailableError, FederationError
from shared.tasks.spec import parse_task

TICK_SECONDS = 0.5
LOOK_AROUND_SECONDS = 5.0
"""Queues and certificates are looked at so often; the management API's own figures are no fresher."""


class StatusSession:
    """One connection with the operator's login, made again when it is lost, its reader, and the history it fills."""

    def __init__(self, folder: FederationFolder) -> None:
        """Connects. Raises BrokerUnavailableError, SettingsError, TopologyError or UninitialisedError."""
        logins, facts = folder.logins(), folder.facts()
        spec = parse_task(folder.task_file.read_text(), source=str(folder.task_file))
        self.history = History(folder.names())
        self.around = Around()
        self._folder = folder
        self._shown = Shown(
            title=facts.title,
            metric=spec.first_metric,
            management_url=f"{logins.management}/#/queues",
            login=f"{VIEWER}; its password is in {folder.path / login_file.FILE}",
        )
        self._broker: Broker | None = None
        self._looked_at = 0.0
        self._reader = self._begin()
        self._look_around()

    def _begin(self) -> LineageReader:
        self._broker = connect(self._folder.logins().settings(OPERATOR), name="fedqueue-status")
        try:
            return follow(self._broker, self.history)
        except FederationError:
            self.close()
            raise

    def close(self) -> None:
        """Hangs up."""
        if self._broker is not None:
            self._broker.close()
            self._broker = None

    def view(self) -> ViewState:
        """The run as it stands, with what needs attention."""
        now = datetime.now(UTC)
        return completed(self._bare(now), self.around, now, best_version(self.history))

    def object(self) -> dict[str, Any]:
        """The same for scripts; kept in the folder, for when the broker does not answer."""
        now = datetime.now(UTC)
        found = status_object(self.history, self._bare(now), self.around, now)
        with suppress(OSError):  # a folder that may only be read
            write_private(self._folder.path / LAST_KNOWN, json.dumps(found, allow_nan=False).encode())
        return found

    def _bare(self, now: datetime) -> ViewState:
        events = read_events(self._folder.path / "events.json")
        return view_of(self.history, self._shown, now_ms=round(now.timestamp() * 1000), events=events)

    def tick(self) -> ViewState:
        """Folds what came within half a second; where the broker is away, tries again and says since when."""
        try:
            if self._broker is None:
                self._reader = self._begin()
            if self._broker is not None:
                fold_next(self._broker, self._reader, timeout_seconds=TICK_SECONDS)
            if time.monotonic() - self._looked_at > LOOK_AROUND_SECONDS or self.around.away:
                self._look_around()
                self.object()
        except BrokerUnavailableError as error:
            self._lost(error)
            time.sleep(TICK_SECONDS)
        return self.view()

    def _lost(self, error: BrokerUnavailableError) -> None:
        self.close()
        since = self.around.away.partition(": ")[0] or f"Away since {datetime.now().astimezone():%H:%M:%S}, trying again"
        self.around = Around(ends=self.around.ends, away=f"{since}: {error}")

    def _look_around(self) -> None:
        self._looked_at = time.monotonic()
        self.around = around_of(self._folder)


def around_of(folder: FederationFolder) -> Around:
    """What the management API and the folder tell at this moment."""
    ends = expiries(folder)
    try:
        with administration(folder.logins(), OPERATOR) as management:
            queues = {str(queue["name"]): queue for queue in management.queues()}
    except FederationError:
        return Around(ends=ends)
    depths = {name: int(queue.get("messages", 0)) for name, queue in queues.items()}
    return Around(depths, queues.get(LEAD, {}).get("consumers"), ends)


def last_known(folder: FederationFolder) -> dict[str, Any] | None:
    """What `fedqueue status` saw last of this run; None where there is nothing that this version of it could show."""
    try:
        found = json.loads((folder.path / LAST_KNOWN).read_bytes())
        return dict(found) if (found["schema"], found["run_id"]) == (SCHEMA, folder.facts().run_id) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
