"""The console's pages and its API, as one application. What a request may do is decided before anything is done."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from operator_console.web.api import Api
from operator_console.web.gate import Gate
from operator_console.web.parts import Parts
from operator_console.web.security import Guarded, Place
from shared.errors import FederationError

FILES = Path(__file__).parent
log = structlog.get_logger()


def application(parts: Parts, place: Place, *, port: int) -> ASGIApp:
    """The whole console; its feed runs as long as the server does."""
    gate = Gate(parts.accounts, parts.sessions, parts.trail, place, port=port, title=parts.feed.shown.title, clock=parts.clock)
    api = Api(parts, gate)

    async def page(request: Request) -> Response:
        if gate.session(request) is None:
            return RedirectResponse("/login", status_code=303)
        return FileResponse(FILES / "templates" / "index.html", media_type="text/html", headers={"Cache-Control": "no-store"})

    @asynccontextmanager
    async def running(_app: Starlette) -> AsyncIterator[None]:
        parts.feed.start()
        try:
            yield
        finally:
            parts.feed.stop()

    routes = [
        Route("/", page),
        Route("/login", gate.form),
        Route("/login", gate.log_in, methods=["POST"]),
        Route("/logout", gate.log_out, methods=["POST"]),
        *api.routes(),
        Mount("/static", StaticFiles(directory=FILES / "static")),
    ]
    failures = {HTTPException: _refusal, FederationError: _failure, Exception: _defect}
    return Guarded(Starlette(routes=routes, lifespan=running, exception_handlers=failures), place)


def _refusal(_request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else ""
    headers = error.headers if isinstance(error, HTTPException) else None
    return JSONResponse({"reason": detail}, status_code=status, headers=headers)


def _failure(_request: Request, error: Exception) -> Response:
    """Whoever asks may be a stranger: the sentence, which may name files, goes to the log."""
    log.error("a request failed", error=type(error).__name__, reason=str(error))
    return JSONResponse({"reason": "The console cannot do that just now; its log says why."}, status_code=503)


def _defect(_request: Request, error: Exception) -> Response:
    log.error("a request failed", error=type(error).__name__, exc_info=error)
    return JSONResponse({"reason": "The console failed; its log says why."}, status_code=500)
