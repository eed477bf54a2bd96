"""The door: logging in and out, and who a request comes from."""

import hashlib
import hmac
import math
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs

import anyio
from jinja2 import Environment, FileSystemLoader
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from operator_console.audit import LOG_IN, LOG_OUT, REFUSED
from operator_console.web.accounts import LONGEST_NAME, AccountBook
from operator_console.web.attempts import Attempts
from operator_console.web.security import Place, body_of, demand_same_origin
from operator_console.web.sessions import Session, Sessions
from operator_console.web.trail import Trail

WRONG = "That name and password do not belong together."
BUSY = "Many are signing in at this moment. Try again in 5 s."
SLOWED = "Too many wrong passwords. Try again in {seconds} s."
OLD_FORM = "This form is too old, or cookies are switched off. Try again."
NOBODY = "(no user)"
"""In the audit: what was typed as a name may be somebody's password."""
ENDED = "Your session has ended. Sign in again."
MOST_WAITING = 16
"""Logins that wait for another one's password to be checked, which takes memory and time."""
_TOKEN_BYTES = 32


class Gate:
    """Decides whose request it is; everything else asks it."""

    def __init__(  # noqa: PLR0913 - the parts of a door
        self,
        accounts: AccountBook,
        sessions: Sessions,
        trail: Trail,
        place: Place,
        *,
        port: int,
        title: str,
        clock: Callable[[], float],
    ) -> None:
        self._accounts, self._sessions, self._trail, self._place = accounts, sessions, trail, place
        self._title = title
        self._attempts = Attempts(clock)
        self._one_at_a_time = anyio.Lock()
        self._secret = secrets.token_bytes(_TOKEN_BYTES)
        prefix = "__Host-" if place.secure else ""  # cookies know no port, and another console may have another one
        self._cookie, self._form_cookie = f"{prefix}fedqueue-{port}", f"{prefix}fedqueue-form-{port}"
        self._pages = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True)

    def session(self, request: Request, *, used: bool = True) -> Session | None:
        """Of whoever sent it; None for a stranger and where the session has ended."""
        return self._sessions.find(request.cookies.get(self._cookie), used=used)

    def viewer(self, request: Request, *, used: bool = True) -> Session:
        """Anybody who is logged in. Raises HTTPException."""
        session = self.session(request, used=used)
        if session is None:
            raise HTTPException(401, ENDED)
        return session

    def operator(self, request: Request) -> Session:
        """Somebody who may give orders. Raises HTTPException."""
        session = self.viewer(request)
        if session.role != "operator":
            raise HTTPException(403, f"{session.name} may look, and give no orders: the role operator is needed.")
        return session

    def demand_meant(self, request: Request, session: Session) -> None:
        """Raises HTTPException unless a page of this session sent the request."""
        demand_same_origin(request, self._place)
        if not session.fits(request.headers.get("x-csrf-token", "")):
            raise HTTPException(403, "The request lacks the session's X-CSRF-Token; load the page again.")

    async def form(self, request: Request) -> Response:
        """The page to log in."""
        if self.session(request) is not None:
            return RedirectResponse("/", status_code=303)
        return self._form(request, ENDED if "ended" in request.query_params else "")

    def _form(self, request: Request, failure: str, *, status: int = 200, pause_seconds: int = 0) -> Response:
        nonce = request.cookies.get(self._form_cookie) or secrets.token_urlsafe(_TOKEN_BYTES)
        page = self._pages.get_template("login.html").render(csrf=self._mark(nonce), failure=failure, title=self._title)
        response = HTMLResponse(page, status_code=status)
        if pause_seconds:
            response.headers["Retry-After"] = str(pause_seconds)
        self._give(response, self._form_cookie, nonce)
        return response

    def _mark(self, nonce: str) -> str:
        """What stands in a form whose browser holds the nonce; nobody else can make it."""
        return hmac.new(self._secret, nonce.encode(), hashlib.sha256).hexdigest()

    async def log_in(self, request: Request) -> Response:
        """A name with its password begins a session, under a token that is new."""
        demand_same_origin(request, self._place)
        name, password, csrf = _fields(await body_of(request))
        nonce = request.cookies.get(self._form_cookie, "")
        if not nonce or not hmac.compare_digest(csrf.encode(), self._mark(nonce).encode()):
            return self._form(request, OLD_FORM, status=403)
        if self._one_at_a_time.statistics().tasks_waiting >= MOST_WAITING:
            return self._form(request, BUSY, status=429, pause_seconds=5)
        address = request.client.host if request.client else ""
        async with self._one_at_a_time:
            pause = math.ceil(self._attempts.pause_seconds(name, address))
            if pause:
                return self._form(request, SLOWED.format(seconds=pause), status=429, pause_seconds=pause)
            account = await anyio.to_thread.run_sync(self._accounts.verify, name, password)
            if account is None:
                self._attempts.failed(name, address)
        if account is None:
            who = name if name in self._accounts.all() else NOBODY
            await anyio.to_thread.run_sync(lambda: self._trail.write(who, LOG_IN, REFUSED, address=address))
            return self._form(request, WRONG, status=401)
        self._attempts.succeeded(name)
        await anyio.to_thread.run_sync(lambda: self._trail.write(name, LOG_IN, f"as {account.role}", address=address))
        self._sessions.end(request.cookies.get(self._cookie, ""))
        response = RedirectResponse("/", status_code=303)
        self._give(response, self._cookie, self._sessions.begin(name, account))
        response.delete_cookie(self._form_cookie, secure=self._place.secure, httponly=True, samesite="strict")
        return response

    def _give(self, response: Response, name: str, value: str) -> None:
        """Until the browser is closed; the session itself ends earlier."""
        response.set_cookie(name, value, httponly=True, samesite="strict", secure=self._place.secure, path="/")

    async def log_out(self, request: Request) -> Response:
        """Ends the session, in all tabs."""
        session = self.viewer(request)
        self.demand_meant(request, session)
        self._sessions.end(request.cookies.get(self._cookie, ""))
        await anyio.to_thread.run_sync(lambda: self._trail.write(session.name, LOG_OUT, "done"))
        response = Response(status_code=204)
        response.delete_cookie(self._cookie, secure=self._place.secure, httponly=True, samesite="strict")
        return response


def _fields(body: bytes) -> tuple[str, str, str]:
    """Name, password and mark of a form; a name is cut, for what is longer is nobody's. Raises HTTPException."""
    try:
        fields = parse_qs(body.decode(errors="replace"), max_num_fields=10)
    except ValueError:
        raise HTTPException(400, "The form has too many fields.") from None
    name, password, csrf = (fields.get(field, [""])[0] for field in ("name", "password", "csrf"))
    return name[: LONGEST_NAME + 1], password, csrf
