"""The server's door: nothing but `/health` answers without the job's key, and no request has any length.

vLLM's own check guards `/v1` alone; `/tokenize`, `/invocations` and `/metrics` would answer everybody on the node. It
reads a request whole, however long it is.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

from lumen_hpc.serving import validation_text

KEY = "VLLM_API_KEY"
"""The environment variable that holds the key: it is in no file and on no command line."""
OPEN = ("/health",)
LONGEST = 1 << 29
"""Bytes of a request: three of the largest images in base64."""


class RequireKey:
    """ASGI middleware: 401 for every request without `Authorization: Bearer KEY`."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app, self._key = app, os.environ.get(KEY, "").encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["path"] not in OPEN and not self._allowed(scope):
            return await _refuse(scope, send, 401, "key missing or wrong: send Authorization: Bearer KEY")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > (0 if scope["path"] in OPEN else LONGEST):
            return await _refuse(scope, send, 413, f"a request has at most {LONGEST >> 20} MiB")
        await self._app(scope, _limited(receive), validation_text.short(send))

    def _allowed(self, scope: dict[str, Any]) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return bool(self._key) and hmac.compare_digest(given, b"Bearer " + self._key)


async def _refuse(scope: dict[str, Any], send: Any, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:  # RFC 9110: which scheme would do; clients ask for a key by it
        headers.append((b"www-authenticate", b"Bearer"))
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _limited(receive: Callable[[], Awaitable[dict[str, Any]]]) -> Callable[[], Awaitable[dict[str, Any]]]:
    """The request's parts; of one that does not announce its length, the client is gone once it is too long."""
    length = 0

    async def part() -> dict[str, Any]:
        nonlocal length
        message = await receive()
        length += len(message.get("body", b""))
        return message if length <= LONGEST else {"type": "http.disconnect"}

    return part
