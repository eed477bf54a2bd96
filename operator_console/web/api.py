"""The API of the console's page: what a viewer reads, and what an operator orders."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import anyio
from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from operator_console.web.gate import Gate
from operator_console.web.orders import KINDS, OF_AN_INSTITUTION, Answer, Kind
from operator_console.web.parts import Parts
from operator_console.web.security import body_of
from operator_console.web.versions import version_of
from shared.errors import FederationError

MOST_STREAMS = 200
LONGEST_REASON = 200
SHOWN_AUDIT_LINES = 200
SLOW_AT_ONCE = 8
"""Requests that wait for the broker or the disk at a time; the snapshot has threads of its own, and no page waits for them."""
TICK_SECONDS = 0.25
KEEP_ALIVE_TICKS = 60
RETRY = b"retry: 2000\n\n"


class Api:
    """Answers under /api, and /healthz."""

    def __init__(self, parts: Parts, gate: Gate) -> None:
        self._parts, self._gate = parts, gate
        self._streams = 0
        self._slow = anyio.CapacityLimiter(SLOW_AT_ONCE)

    def routes(self) -> list[Route]:
        """Where they are."""
        return [
            Route("/healthz", self.health),
            Route("/api/me", self.me),
            Route("/api/state", self.state),
            Route("/api/events", self.events),
            Route("/api/versions/{version:int}", self.version),
            Route("/api/dead-letters", self.dead_letters),
            Route("/api/dead-letters/{handle}/requeue", self.requeue, methods=["POST"]),
            Route("/api/orders/{kind}", self.order, methods=["POST"]),
            Route("/api/audit", self.audit),
        ]

    async def health(self, _request: Request) -> Response:
        """Whether the broker is listened to; for anybody, and nothing more."""
        connected = self._parts.feed.connected
        return JSONResponse({"connected": connected}, status_code=200 if connected else 503)

    async def me(self, request: Request) -> Response:
        """Who is logged in, and the word that orders need."""
        session = self._gate.viewer(request)
        return JSONResponse({"name": session.name, "role": session.role, "csrf": session.csrf})

    async def state(self, request: Request) -> Response:
        """The snapshot."""
        self._gate.viewer(request, used=False)
        _, text = await to_thread.run_sync(self._parts.feed.state)
        return Response(text, media_type="application/json")

    async def events(self, request: Request) -> Response:
        """The snapshot whenever it changed, until the session or the console ends."""
        self._gate.viewer(request, used=False)
        if self._streams >= MOST_STREAMS:
            raise HTTPException(503, f"{MOST_STREAMS} pages are open already; close one.")
        return StreamingResponse(self._stream(request), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _stream(self, request: Request) -> AsyncIterator[bytes]:
        self._streams += 1
        try:
            yield RETRY
            last, quiet = -1, 0
            while not self._parts.closing() and self._holds(request):
                number, text = await to_thread.run_sync(self._parts.feed.state)
                if number != last:
                    yield b"event: state\ndata: " + text + b"\n\n"
                    last, quiet = number, 0
                elif (quiet := quiet + 1) % KEEP_ALIVE_TICKS == 0:
                    yield b": still here\n\n"
                await anyio.sleep(TICK_SECONDS)
        finally:
            self._streams -= 1

    def _holds(self, request: Request) -> bool:
        with suppress(FederationError):
            return self._gate.session(request, used=False) is not None
        return False

    async def version(self, request: Request) -> Response:
        """What one version is made of."""
        self._gate.viewer(request)
        version = request.path_params["version"]
        try:
            found = await to_thread.run_sync(version_of, self._parts.feed, version, limiter=self._slow)
        except FederationError as error:
            raise HTTPException(503, f"Version {version} cannot be read: {error}") from error
        if found is None:
            raise HTTPException(404, f"There is no version {version} in the lineage.")
        return JSONResponse(found)

    async def dead_letters(self, request: Request) -> Response:
        """The oldest dead letters; all stay where they are."""
        self._gate.viewer(request)
        try:
            return JSONResponse(await to_thread.run_sync(self._parts.letters.told, limiter=self._slow))
        except FederationError as error:
            raise HTTPException(503, f"The dead letters cannot be read: {error}") from error

    async def order(self, request: Request) -> Response:
        """One order to the aggregator."""
        session = self._gate.operator(request)
        self._gate.demand_meant(request, session)
        kind, asked = request.path_params["kind"], await _confirmed(request)
        institution, reason = asked.get("institution", ""), asked.get("reason", "")
        if kind not in KINDS:
            raise HTTPException(404, f"There is no order {kind}; there are {', '.join(KINDS)}.")
        if not isinstance(institution, str) or not isinstance(reason, str) or len(reason) > LONGEST_REASON:
            raise HTTPException(400, f"institution and reason are texts, and a reason has at most {LONGEST_REASON} characters.")
        if (kind in OF_AN_INSTITUTION) != bool(institution):
            raise HTTPException(400, "quarantine and release name an institution, other orders name none.")
        did = f"order {kind} {institution}".strip()
        return await self._ordered(session.name, did, lambda: self._parts.orders.give(cast(Kind, kind), institution, reason))

    async def requeue(self, request: Request) -> Response:
        """Has one dead letter taken in again."""
        session = self._gate.operator(request)
        self._gate.demand_meant(request, session)
        handle = request.path_params["handle"]
        await _confirmed(request)

        def order() -> Answer:
            return replace(self._parts.orders.requeue(handle), version=self._parts.feed.version())

        return await self._ordered(session.name, f"requeue dead letter {handle}", order)

    async def _ordered(self, who: str, did: str, order: Any) -> Response:
        """A line of the audit before anything is done, and another one with what came of it."""

        def recorded() -> Answer:
            trail = self._parts.trail
            trail.write(who, did, "given")
            answer: Answer = order()
            trail.write(who, did, str(answer))
            return answer

        answer = await to_thread.run_sync(recorded, limiter=self._slow)
        return JSONResponse(answer.told(), status_code=answer.status)

    async def audit(self, request: Request) -> Response:
        """The newest lines of the console's audit."""
        self._gate.operator(request)
        lines = await to_thread.run_sync(self._parts.trail.newest, SHOWN_AUDIT_LINES, limiter=self._slow)
        return JSONResponse({"lines": lines})


async def _confirmed(request: Request) -> dict[str, Any]:
    try:
        asked = json.loads(await body_of(request))
    except (ValueError, RecursionError):
        raise HTTPException(400, "The body is no JSON.") from None
    if not isinstance(asked, dict) or asked.get("confirm") is not True:
        raise HTTPException(400, "An order needs a JSON object with confirm: true.")
    return asked
