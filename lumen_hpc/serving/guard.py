"""The server's door: nothing but `/health` answers without the job's key.

vLLM's own check guards `/v1` alone; `/tokenize`, `/invocations` and `/metrics` would answer everybody on the node.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

KEY = "VLLM_API_KEY"
"""The environment variable that holds the key: it is in no file and on no command line."""
OPEN = ("/health",)


class RequireKey:
    """ASGI middleware: 401 for every request without `Authorization: Bearer KEY`."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app, self._key = app, os.environ.get(KEY, "").encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN or self._allowed(scope):
            return await self._app(scope, receive, send)
        body = json.dumps({"error": {"message": "key missing or wrong: send Authorization: Bearer KEY", "code": 401}})
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": 1008})
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": body.encode()})

    def _allowed(self, scope: dict[str, Any]) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        return bool(self._key) and hmac.compare_digest(given, b"Bearer " + self._key)
