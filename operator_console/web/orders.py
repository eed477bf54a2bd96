"""Orders that a browser gives: one at a time, on a connection of their own, with an answer in words whatever happens."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from operator_console.dead_letter_commands import take_in_again
from operator_console.dead_letters import IncompleteUploadError, NoSuchLetterError, UnusableLetterError
from operator_console.federation_folder import FederationFolder
from operator_console.institution_commands import present
from operator_console.operation_commands import NoAnswerError, OrderDesk, OrderRefusedError, order_desk
from operator_console.web.letters import Letters
from shared.errors import FederationError, SettingsError

Kind = Literal["pause", "resume", "stop", "quarantine", "release"]
KINDS: tuple[Kind, ...] = ("pause", "resume", "stop", "quarantine", "release")
OF_AN_INSTITUTION: tuple[Kind, ...] = ("quarantine", "release")
ANSWER_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of an order. `version` is the newest one then, None where nobody told; `status` is HTTP's."""

    applied: bool
    reason: str
    version: int | None
    status: int = 200

    def told(self) -> dict[str, Any]:
        """As the API has it."""
        return {"applied": self.applied, "reason": self.reason, "version": self.version}

    def __str__(self) -> str:
        where = "" if self.version is None else f" at version {self.version}"
        return f"applied{where}" if self.applied else f"refused: {self.reason}"


class Orders:
    """The way to the aggregator that leads."""

    def __init__(self, folder: FederationFolder, letters: Letters, *, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._folder, self._letters = folder, letters
        self._answer_seconds = answer_seconds
        self._lock = threading.Lock()

    def give(self, kind: Kind, institution: str, reason: str) -> Answer:
        """One order; returns once a manifest tells its outcome, or with the reason why none did."""

        def order() -> Answer:
            with order_desk(self._folder) as desk:
                return self._told(desk, kind, institution, reason)

        return self._answered(order)

    def requeue(self, handle: str) -> Answer:
        """Has a dead letter taken in again, and removes it then."""

        def order() -> Answer:
            with self._letters.alone():
                self._letters.forget()
                take_in_again(self._folder, handle)
            return Answer(True, "it was taken in again, and is no longer a dead letter", None)

        return self._answered(order)

    def _told(self, desk: OrderDesk, kind: Kind, institution: str, reason: str) -> Answer:
        arguments = {}
        if kind in OF_AN_INSTITUTION:
            present(self._folder, desk, institution)
            arguments = {"institution": institution, "reason": reason}
        outcome = desk.give(kind, timeout_seconds=self._answer_seconds, **arguments)
        return Answer(outcome.applied, outcome.reason, desk.head.manifest.version)

    def _answered(self, order: Callable[[], Answer]) -> Answer:
        try:
            with self._alone():
                return order()
        except (NoAnswerError, OrderRefusedError) as error:
            return Answer(False, str(error), None, 504 if isinstance(error, NoAnswerError) else 200)
        except NoSuchLetterError as error:
            return Answer(False, str(error), None, 404)
        except (SettingsError, UnusableLetterError, IncompleteUploadError, _BusyError) as error:
            return Answer(False, str(error), None, 409)
        except FederationError as error:
            return Answer(False, str(error), None, 503)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._lock.acquire(timeout=self._answer_seconds):
            raise _BusyError("another order is under way; wait for its answer")
        try:
            yield
        finally:
            self._lock.release()


class _BusyError(FederationError):
    """Wait for the other order's answer."""
