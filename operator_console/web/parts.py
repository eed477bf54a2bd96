"""What the console is made of."""

from collections.abc import Callable
from dataclasses import dataclass

from operator_console.web.accounts import AccountBook
from operator_console.web.feed import Feed
from operator_console.web.letters import Letters
from operator_console.web.orders import Orders
from operator_console.web.sessions import Sessions
from operator_console.web.trail import Trail


@dataclass(frozen=True, slots=True)
class Parts:
    """One of each. `clock` gives monotonic seconds; `closing` tells open streams that the console ends."""

    feed: Feed
    accounts: AccountBook
    sessions: Sessions
    orders: Orders
    letters: Letters
    trail: Trail
    clock: Callable[[], float]
    closing: Callable[[], bool]
