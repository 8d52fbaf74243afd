"""vLLM's refusal of a malformed request in one line; its own message lists every kind that each part is not."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[dict[str, Any]], Awaitable[None]]

_VALIDATION = re.compile(r"\d+ validation errors?\b")
_BODY_ERROR = re.compile(r"'loc': (.+?), 'msg': (['\"])(.+?)\2, '")
"""Where the request's body is wrong, and how, as vLLM's handler prints what FastAPI found."""
_PART_ERROR = re.compile(r"^(\d+)\b.*\n  (.+?) \[type=", re.M)
"""The same of the numbered parts of a content, which vLLM checks later."""
_UNNUMBERED_PART_ERROR = re.compile(r"\d+ validation errors? for \w+Param\n")
"""The same of a part that is no dictionary of its type: the message lacks its number."""
_NAME = re.compile(r"\d+|[a-z][a-z0-9_]*")
"""A key or a number in the body; anything else in a place is a class of pydantic's or vLLM's."""
_CONTENT = (
    'a content is a text, or a list of {"type": "text", "text": …} and {"type": "image_url", "image_url": {"url": …}}'
)


def first_error(message: str) -> str:
    """The first error with its place; any other message as it is."""
    if not _VALIDATION.match(message):
        return message
    if match := _PART_ERROR.search(message):
        return f"part {int(match[1]) + 1} of a message's content is malformed: {_CONTENT}"
    if match := _BODY_ERROR.search(message):
        names = [name for name in re.findall(r"[\w-]+", match[1]) if _NAME.fullmatch(name) and name != "body"]
        place = ".".join(names) or "the request"
        if names[:1] == ["messages"] and len(names) > 1:
            return f"{place} is malformed: a message has a role and a content; {_CONTENT}"
        return f"{place}: {match[3]}"
    if _UNNUMBERED_PART_ERROR.match(message):
        return f"a part of a message's content is malformed: {_CONTENT}"
    return re.sub(r"^.*:\n *", "", message).partition("\n")[0]


def shorten_refusals(send: Send) -> Send:
    """`send` of an ASGI server, with the message of a refusal (400) in one line."""
    start: dict[str, Any] | None = None
    body = b""

    async def send_part(message: dict[str, Any]) -> None:
        nonlocal start, body
        if message.get("status") == 400:
            start = message
            return
        if start is None:
            return await send(message)
        body += message.get("body", b"")
        if message.get("more_body"):
            return
        short_body = _shorten(body)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await send(start | {"headers": [*headers, (b"content-length", str(len(short_body)).encode())]})
        await send({"type": "http.response.body", "body": short_body})

    return send_part


def _shorten(body: bytes) -> bytes:
    try:
        answer = json.loads(body)
        answer["error"]["message"] = first_error(answer["error"]["message"])
    except (ValueError, KeyError, TypeError):  # a refusal of another form
        return body
    return json.dumps(answer, ensure_ascii=False).encode()
