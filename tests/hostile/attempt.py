"""One row of the table: what a hostile institution tries, what it must get, which log holds that, and what it learns by it."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tests.hostile.institution import HostileInstitution

How = Callable[["HostileInstitution"], str]
"""Tries it, and says what came of it."""
Log = Literal["broker", "aggregator"]
NOTHING = "nothing"
CONNECTION = "client-provided name: hostile/"
"""In the broker's log for each of its connections: all that a broker writes of what it allows."""


@dataclass(frozen=True, slots=True)
class By:
    """An answer that depends on the broker's version."""

    rabbitmq_3: str
    rabbitmq_4: str

    def on(self, version: str) -> str:
        """The answer of this version."""
        return self.rabbitmq_3 if version.startswith("3.") else self.rabbitmq_4

    def __str__(self) -> str:
        return f"3.10: {self.rabbitmq_3}; 4.0: {self.rabbitmq_4}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """In `gets` an ellipsis stands for anything; `evidence` is a part of one line of the log."""

    tries: str
    how: How
    gets: str | By
    log: Log
    evidence: str | By
    learns: str | By = NOTHING
    moves_the_model: bool = False

    @property
    def id(self) -> str:
        """The same in every process."""
        return re.sub(r"[^a-z0-9]+", "-", self.tries.lower()).strip("-")

    def is_answered_by(self, got: str, version: str) -> bool:
        """Whether this is what it must get from a broker of this version."""
        parts = on(self.gets, version).split("…")
        return re.fullmatch(".*".join(map(re.escape, parts)), got) is not None


def on(said: str | By, version: str) -> str:
    """What is said of one version."""
    return said.on(version) if isinstance(said, By) else said
