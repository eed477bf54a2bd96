"""Who is logged in, in memory: a restart of the console ends every session. No clock of its own."""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from operator_console.web.accounts import Account, AccountBook, Role

IDLE_SECONDS = 3600.0
ABSOLUTE_SECONDS = 12 * 3600.0
MOST_SESSIONS = 1000
_TOKEN_BYTES = 32


@dataclass(slots=True)
class Session:
    """One login. It ends when its account is not exactly the one that logged in any more."""

    name: str
    account: Account
    csrf: str
    begun_at: float
    used_at: float

    @property
    def role(self) -> Role:
        """What its user may do."""
        return self.account.role

    def fits(self, csrf: str) -> bool:
        """Whether a request knows the session's word against forged requests."""
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


class Sessions:
    """Sessions by the hash of their token, which is known to the browser alone. `clock` gives monotonic seconds."""

    def __init__(
        self,
        accounts: AccountBook,
        clock: Callable[[], float],
        *,
        idle_seconds: float = IDLE_SECONDS,
        absolute_seconds: float = ABSOLUTE_SECONDS,
    ) -> None:
        self._accounts, self._clock = accounts, clock
        self._idle_seconds, self._absolute_seconds = idle_seconds, absolute_seconds
        self._sessions: dict[bytes, Session] = {}

    def begin(self, name: str, account: Account) -> str:
        """A token that was never used before, for one login. Of too many sessions the one that was unused for longest ends."""
        now = self._clock()
        self._sessions = {key: each for key, each in self._sessions.items() if self._holds(each, now)}
        if len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].used_at)]
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._sessions[_key(token)] = Session(name, account, secrets.token_urlsafe(_TOKEN_BYTES), now, now)
        return token

    def find(self, token: str | None, *, used: bool = True) -> Session | None:
        """The session of a token, while it holds. What a page asks for by itself does not count as use."""
        session = self._sessions.get(_key(token)) if token else None
        if token is None or session is None:
            return None
        now = self._clock()
        if not self._holds(session, now):
            self.end(token)
            return None
        if used:
            session.used_at = now
        return session

    def end(self, token: str) -> None:
        """Logs out."""
        self._sessions.pop(_key(token), None)

    def _holds(self, session: Session, now: float) -> bool:
        return (
            now - session.used_at <= self._idle_seconds
            and now - session.begun_at <= self._absolute_seconds
            and self._accounts.all().get(session.name) == session.account
        )


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
