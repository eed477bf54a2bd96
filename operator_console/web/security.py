"""What holds for every request and every answer, whatever page it is for."""

import ipaddress
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser tells no Origin when it sends a form
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
MOST_BODY_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """By which names the console is reached. `public_url` is that of a reverse proxy, without a slash behind it, or empty."""

    names: Collection[str]
    over_tls: bool
    public_url: str = ""

    @property
    def secure(self) -> bool:
        """Whether browsers reach it over TLS."""
        return self.over_tls or self.public_url.startswith("https:")

    def knows(self, host: str) -> bool:
        """Whether a request's Host is a name of ours; an address is, for only a name can be bent to another computer."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            urlsplit(f"//{host}").port  # noqa: B018 - raises for what is no port
        except ValueError:
            return False
        if "@" in host:
            return False
        known = [*self.names, urlsplit(self.public_url).hostname or ""]
        return _is_address(name) or any(pattern and fnmatchcase(name, pattern.lower()) for pattern in known)

    def is_origin(self, origin: str, host: str) -> bool:
        """Whether a page of this console sent a request."""
        if self.public_url and host == urlsplit(self.public_url).netloc:
            return origin == self.public_url
        own = f"{'https' if self.over_tls else 'http'}://{host}"
        return origin == own or (self.public_url != "" and origin == self.public_url)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Guarded:
    """Refuses a Host that is not ours, and gives every answer of the inner application its headers."""

    def __init__(self, inner: ASGIApp, place: Place) -> None:
        self._inner, self._place = inner, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                headers.setdefault("Cache-Control", "no-cache" if scope["path"].startswith("/static/") else "no-store")
            await send(message)

        if self._place.knows(Headers(scope=scope).get("host", "")):
            await self._inner(scope, receive, guarded)
        else:
            words = "This console does not go by that name; --public-url tells it another one.\n"
            await PlainTextResponse(words, status_code=421)(scope, receive, guarded)


def demand_same_origin(request: Request, place: Place) -> None:
    """Raises HTTPException for what no page of this console sent."""
    if not place.is_origin(request.headers.get("origin", ""), request.headers.get("host", "")):
        raise HTTPException(403, "The request does not come from a page of this console.")


async def body_of(request: Request) -> bytes:
    """The body, never more of it in memory than is allowed. Raises HTTPException."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise HTTPException(413, f"A request holds at most {MOST_BODY_BYTES} bytes.")
    return bytes(body)
