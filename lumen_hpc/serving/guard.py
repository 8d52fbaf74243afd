"""The server's guard: only `/health` answers without the job's key, and a request has a bounded length.

vLLM's own check covers only `/v1`; `/tokenize`, `/invocations` and `/metrics` would answer everybody on the node. It
reads a whole request, of any length.
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
OPEN_PATHS = ("/health",)
MAX_REQUEST_BYTES = 1 << 29
"""Three of the largest images in base64."""


class RequireKey:
    """ASGI middleware: 401 for every request without `Authorization: Bearer KEY`."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app, self._key = app, os.environ.get(KEY, "").encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        if scope["path"] not in OPEN_PATHS and not self._allowed(scope):
            return await _refuse(scope, send, 401, "key missing or wrong: send Authorization: Bearer KEY")
        content_length = dict(scope["headers"]).get(b"content-length", b"0")
        limit = 0 if scope["path"] in OPEN_PATHS else MAX_REQUEST_BYTES
        if not content_length.isdigit() or int(content_length) > limit:
            return await _refuse(scope, send, 413, f"a request has at most {MAX_REQUEST_BYTES >> 20} MiB")
        await self._app(scope, _limit_length(receive), validation_text.shorten_refusals(send))

    def _allowed(self, scope: dict[str, Any]) -> bool:
        authorization = dict(scope["headers"]).get(b"authorization", b"")
        return bool(self._key) and hmac.compare_digest(authorization, b"Bearer " + self._key)


async def _refuse(scope: dict[str, Any], send: Any, status: int, message: str) -> None:
    body = json.dumps({"error": {"message": message, "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:  # RFC 9110: which scheme would do; clients ask for a key by it
        headers.append((b"www-authenticate", b"Bearer"))
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _limit_length(receive: Callable[[], Awaitable[dict[str, Any]]]) -> Callable[[], Awaitable[dict[str, Any]]]:
    """`receive` that reports a disconnected client once a request of unannounced length is too long."""
    length = 0

    async def part() -> dict[str, Any]:
        nonlocal length
        message = await receive()
        length += len(message.get("body", b""))
        return message if length <= MAX_REQUEST_BYTES else {"type": "http.disconnect"}

    return part
