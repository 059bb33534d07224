"""What is refused before anything is read: a foreign Host, a missing token, a body that is too large or too slow."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BYTES = 4 << 20
"""Of a body."""
BODY_S = 10.0
"""Seconds in which a body must have come."""
OPEN = ("/healthz", "/readyz")
"""Paths that need no token."""


class Limits:
    """ASGI middleware; answers with one line of JSON. `token`: what a client must bring, None: nothing."""

    def __init__(
        self, app: ASGIApp, token: str | None = None, most_bytes: int = MOST_BYTES, body_s: float = BODY_S
    ) -> None:
        self._app, self._token, self._most, self._body_s = app, token, most_bytes, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let it pass with its whole body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = self._refused(scope["path"], Headers(scope=scope)) or await self._body(Request(scope, receive))
        if isinstance(found, bytes):
            await self._app(scope, _replay(found, receive), send)
            return
        status, said = found
        extra = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Connection": "close"}
        await JSONResponse({"error": said}, status, extra)(scope, receive, send)

    def _refused(self, path: str, headers: Headers) -> tuple[int, str] | None:
        if self._token is not None and path not in OPEN:
            given = headers.get("authorization", "").encode("latin-1")
            if not secrets.compare_digest(given, b"Bearer " + self._token.encode()):
                return 401, "give the token of this server: Authorization: Bearer TOKEN"
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._most:
            return self._too_large()
        return None

    def _too_large(self) -> tuple[int, str]:
        return 413, f"a body has at most {self._most} bytes; send fewer questions at a time"

    async def _body(self, request: Request) -> bytes | tuple[int, str]:
        """The body, as far as it came; or why it is refused."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_s):
                async for part in request.stream():
                    body += part
                    if len(body) > self._most:
                        return self._too_large()
        except ClientDisconnect:
            pass
        except TimeoutError:
            return 408, f"the body took more than {self._body_s:g} seconds"
        return bytes(body)


def _replay(body: Any, receive: Receive) -> Receive:
    """A body that was read, once more; then whatever else comes."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
