"""What a check of `fedqueue doctor` found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared.errors import BrokerUnavailableError, FederationError

START_BROKER = "start the broker, and see that its address in broker.json can be reached from here"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `remedy` is empty where all is well, or where `what` says it already."""

    name: str
    ok: bool
    what: str
    remedy: str = ""


def told(name: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of a check; one that cannot be made is a finding too, never an error."""
    try:
        yield from check()
    except FederationError as error:
        yield Finding(name, False, str(error), START_BROKER if isinstance(error, BrokerUnavailableError) else "")
