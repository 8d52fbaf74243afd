"""The page beside the server: two radiographs, a question, the streamed answer and the facts read from it.

Everything it shows comes from this process: no font, script or image from elsewhere, and a policy that forbids them.
It asks the model's server with the job's key, which the browser never sees. The page has a key of its own, the first
part of every path: a cookie would go to each port of the same host, and those belong to other users too.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import html
import io
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from lumen_hpc.data.findings_line import strip
from lumen_hpc.data.instructions import prompt
from lumen_hpc.data.phantom_questions import DIFFERENCE
from lumen_hpc.errors import UserError
from lumen_hpc.language.prediction_questions import templates
from lumen_hpc.plain_text import visible

from .answer_facts import read_facts
from .media import LARGEST, picture, taken_on
from .question import require_days, require_no_mark, require_words

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
LONGEST_TEXT = 10_000
"""Characters of a question, and of the experts' words on an image."""
READING = 4
"""Requests with images that are read at a time; each may take 1 GiB while its image is decoded."""
QUESTIONS = {
    "diagnostic": [
        "what abnormalities are seen in this image?",
        "is there evidence of any abnormalities in this image?",
        "is there evidence of pleural effusion in this image?",
        "is there pneumothorax?",
        "what level is the pleural effusion?",
        "which view is this image taken?",
    ],
    "difference": [DIFFERENCE],
    "prediction": list(templates()),
}
"""Questions of the dataset and of section 2.4, by kind; `{days}` takes the interval."""
SHOWN = {"diagnostic": ("main",), "difference": ("reference", "main"), "prediction": ("reference",)}
"""The images a kind of question shows, as in training."""


@dataclass
class Ask:
    """One question as the page sends it."""

    kind: str
    question: str
    images: dict[str, str]
    """`reference` and `main`: data URLs."""
    experts: dict[str, str] = field(default_factory=dict)
    """The experts' sentence of each image; empty for none."""
    interval: int | None = None
    """Days from the reference to the main image."""

    def __post_init__(self) -> None:
        texts = [self.kind, self.question]
        for part in (self.images, self.experts):
            if not isinstance(part, dict):
                raise TypeError("images and experts go by the names of the images")
            texts += [*part, *part.values()]
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.interval, int | None):
            raise TypeError("a text or a number is of another type")
        if self.kind not in SHOWN:
            raise UserError(f"kind={self.kind!r}: takes one of {', '.join(SHOWN)}")
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise UserError("a text holds half a character (a lone surrogate): type it again") from None
        require_no_mark(self.question, *self.experts.values())
        if (longest := max(map(len, [self.question, *self.experts.values()]))) > LONGEST_TEXT:
            raise UserError(f"a text of {longest} characters is too long: at most {LONGEST_TEXT} are taken")
        require_words(self.question)
        require_days(self.interval)
        if "{days}" in self.question and self.interval is None:
            raise UserError("this question needs the days between the images")
        if lacking := [name for name in SHOWN[self.kind] if not self.images.get(name)]:
            names = {"reference": "the earlier radiograph", "main": "the radiograph"}
            raise UserError(f"{names[lacking[0]]} is missing: this kind of question is about it")

    def content(self) -> list[dict[str, Any]]:
        """The message's parts: the text of training with its `<image>` marks, then the images in that order."""
        shown = [{"study_id": name} for name in SHOWN[self.kind]]
        asked = self.question.strip().replace("{days}", str(self.interval))
        question = {"type": self.kind, "interval_days": self.interval, "question": asked}
        experts = {name: text.strip() for name, text in self.experts.items()}
        parts: list[dict[str, Any]] = [{"type": "text", "text": prompt(shown, question, experts)}]
        for name in SHOWN[self.kind]:
            parts.append({"type": "image_url", "image_url": {"url": self.images[name]}})
        return parts


def application(
    url: str,
    key: str,
    page_key: str,
    model: str,
    *,
    answer_tokens: int = 256,
    experts: Callable[[bytes], str] | None = None,
) -> Starlette:
    """The page's web application.

    url, key: the model's server. page_key: what the page's own address carries. experts: from an image file to the
    sentence that stands behind the image in the prompt; None leaves it to the user.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    direct = DefaultAsyncHttpxClient(trust_env=False, follow_redirects=False)  # else HTTP_PROXY gets images and key
    client = AsyncOpenAI(base_url=url, api_key=key, max_retries=0, http_client=direct)
    page = _Page(client, model, answer_tokens, experts)
    app = Starlette(
        routes=[
            Route("/", page.index),
            Route("/page.css", page.style),
            Route("/page.js", page.script),
            Route("/questions", page.questions),
            Route("/picture", page.read, methods=["POST"]),
            Route("/ask", page.ask, methods=["POST"]),
        ]
    )
    app.add_middleware(RequirePageKey, key=page_key)
    return app


class _Page:
    """What each address of the page answers; the arguments are those of `application`."""

    def __init__(self, client: Any, model: str, answer_tokens: int, experts: Callable[[bytes], str] | None) -> None:
        self._client, self._model, self._answer_tokens, self._experts = client, model, answer_tokens, experts
        self._here, self._reading = Path(__file__).parent, asyncio.Semaphore(READING)

    async def index(self, request: Request) -> Response:
        text = (self._here / "page.html").read_text().replace("{model}", html.escape(self._model))
        return Response(text, media_type="text/html", headers=HEADERS)

    async def style(self, request: Request) -> Response:
        return Response((self._here / "page.css").read_bytes(), media_type="text/css", headers=HEADERS)

    async def script(self, request: Request) -> Response:
        return Response((self._here / "page.js").read_bytes(), media_type="text/javascript", headers=HEADERS)

    async def questions(self, request: Request) -> Response:
        return JSONResponse(QUESTIONS, headers=HEADERS)

    async def read(self, request: Request) -> Response:
        """An image file of the user's, decoded, with the experts' words on it."""
        if _too_long(request, LARGEST):
            return _error(f"the file is larger than {LARGEST >> 20} MiB", 413)
        async with self._reading:
            data = await request.body()
            try:
                found = await run_in_threadpool(decoded, data)
                if self._experts:
                    found["experts"] = await run_in_threadpool(self._experts, data)
                return JSONResponse(found, headers=HEADERS)
            except UserError as error:
                return _error(visible(str(error)))

    async def ask(self, request: Request) -> Response:
        """The model's answer to an `Ask`, streamed."""
        if _too_long(request, 3 * LARGEST):  # two images in base64
            return _error("the request is too long", 413)
        try:
            async with self._reading:
                asked = Ask(**await request.json())
        except UserError as error:
            return _error(visible(str(error)))
        except (TypeError, ValueError, RecursionError):
            return _error("the request is not one of this page's")
        return StreamingResponse(_answer(self._client, self._model, asked, self._answer_tokens),
                                 media_type="application/x-ndjson", headers=HEADERS)  # fmt: skip


async def _answer(client: Any, model: str, asked: Ask, answer_tokens: int) -> AsyncIterator[bytes]:
    """Lines of JSON: `{"text"}` for each piece of the answer, then `{"answer", "facts", "note"}`; or `{"error"}`.

    `note`: what must be known beside the answer; empty for one that the model ended itself.
    """
    from httpx import HTTPError
    from openai import APIConnectionError, APIError

    whole, note, ended = "", "", None
    try:
        stream = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": asked.content()}], stream=True, max_tokens=answer_tokens
        )
        async for event in stream:
            for choice in event.choices:
                ended = choice.finish_reason or ended
                if ended == "length":
                    note = f"Cut after {answer_tokens} tokens (predict.max_new_tokens)."
                if piece := choice.delta.content:
                    whole += piece
                    yield _line({"text": visible(piece)})
        if ended not in ("stop", "length"):  # vLLM's abort or error, or a stream that ends without a reason
            yield _line({"error": "the model's server broke the answer off"})
            return
        yield _line({"answer": visible(strip(whole)), "facts": read_facts(whole, asked.kind), "note": note})
    except (APIConnectionError, HTTPError):  # httpx's own, while an answer streams
        yield _line({"error": "the model's server does not answer any more"})
    except APIError as error:
        yield _line({"error": visible(error.message)})


def decoded(data: bytes) -> dict[str, Any]:
    """An image file as the page shows and sends it: a PNG's data URL of 8 bits, its size, and the day it was taken.

    The same decoding as in training. Raises UserError for what cannot be read.
    """
    image = picture(data)
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
    return {"url": url, "width": image.width, "height": image.height, "taken": taken_on(data)}


class RequirePageKey:
    """ASGI middleware: nothing but below `/KEY/`, where KEY is the page's key."""

    def __init__(self, app: Any, key: str) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            given = scope["path"].removeprefix("/").partition("/")[0]
            if not hmac.compare_digest(given.encode(errors="replace"), self._key.encode()):
                refused = Response("open the address that the server printed, its key included", 401, headers=HEADERS)
                return await refused(scope, receive, send)
            scope = scope | {"root_path": f"/{self._key}"}
        await self._app(scope, receive, send)


@contextmanager
def serving(app: Starlette, listening: socket.socket):
    """Serve the page in a thread for the time of the block."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, args=[[listening]], daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def _too_long(request: Request, most: int) -> bool:
    """Whether a request announces more bytes than `most`, or does not say how many."""
    return int(request.headers.get("content-length", most + 1)) > most


def _error(message: str, status: int = 400) -> Response:
    return JSONResponse({"error": message}, status, headers=HEADERS)


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
