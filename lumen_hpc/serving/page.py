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
from collections.abc import AsyncIterator, Callable, Sequence
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
from lumen_hpc.data.images import COLOURED, has_colours
from lumen_hpc.data.instructions import prompt
from lumen_hpc.data.phantom_questions import DIFFERENCE
from lumen_hpc.errors import UserError
from lumen_hpc.language.prediction_questions import fill_in, templates
from lumen_hpc.plain_text import visible

from .answer_facts import read_facts
from .media import MAX_IMAGE_BYTES, acquisition_day, decode_picture, patient
from .question import require_days, require_no_mark, require_words

SLOW_UPLOAD = "the upload took too long: try again"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
MAX_TEXT_LENGTH = 10_000
"""Characters of a question, and of the experts' words on an image."""
MAX_READERS = 4
"""Requests with images that are read at once; each may take 1 GiB while its image is decoded."""
UPLOAD_TIMEOUT_S = 120
"""Longest that an upload keeps one of the readers: that of a browser which lost its network never ends."""
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
IMAGES_OF_KIND = {"diagnostic": ("main",), "difference": ("reference", "main"), "prediction": ("reference",)}
"""Kind of question → the images that it shows, as in training."""


@dataclass
class PageQuestion:
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
        is_number = isinstance(self.interval, int | None) and not isinstance(self.interval, bool)
        if not all(isinstance(text, str) for text in texts) or not is_number:
            raise TypeError("a text or a number is of another type")
        if self.kind not in IMAGES_OF_KIND:
            raise UserError(f"kind={self.kind!r}: takes one of {', '.join(IMAGES_OF_KIND)}")
        try:
            "".join(texts).encode()
        except UnicodeEncodeError:
            raise UserError("a text holds half a character (a lone surrogate): type it again") from None
        require_no_mark(self.question, *self.experts.values())
        if (length := max(map(len, [self.question, *self.experts.values()]))) > MAX_TEXT_LENGTH:
            raise UserError(f"a text of {length} characters is too long: at most {MAX_TEXT_LENGTH} are taken")
        require_words(self.question)
        require_days(self.interval)
        if "{days}" in self.question:
            if self.interval is None:
                raise UserError("this question needs the days between the images")
            if self.interval < 1:
                raise UserError(f"this question is about later days, and {self.interval} are between the images")
        if missing_images := [name for name in IMAGES_OF_KIND[self.kind] if not self.images.get(name)]:
            names = {"reference": "the earlier radiograph", "main": "the radiograph"}
            raise UserError(f"{names[missing_images[0]]} is missing: this kind of question is about it")

    def content(self) -> list[dict[str, Any]]:
        """The message's parts: the text of training with its `<image>` marks, then the images in that order."""
        studies = [{"study_id": name} for name in IMAGES_OF_KIND[self.kind]]
        question_text = fill_in(self.question.strip(), self.interval or 0).replace("{days}", str(self.interval))
        question = {"type": self.kind, "interval_days": self.interval, "question": question_text}
        experts = {name: text.strip() for name, text in self.experts.items()}
        parts: list[dict[str, Any]] = [{"type": "text", "text": prompt(studies, question, experts)}]
        for name in IMAGES_OF_KIND[self.kind]:
            parts.append({"type": "image_url", "image_url": {"url": self.images[name]}})
        return parts


def application(
    url: str,
    key: str,
    page_key: str,
    model: str,
    *,
    answer_tokens: int = 256,
    line: Sequence[str] = (),
    experts: Callable[[bytes], str] | None = None,
) -> Starlette:
    """The page's web application.

    url, key: the model's server. page_key: part of the page's own address. line: the findings of the line that is no
    part of an answer. experts: from an image file to the sentence that follows the image in the prompt; None leaves it
    to the user.
    """
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    direct = DefaultAsyncHttpxClient(trust_env=False, follow_redirects=False)  # else HTTP_PROXY gets images and key
    client = AsyncOpenAI(base_url=url, api_key=key, max_retries=0, http_client=direct)
    page = _Page(client, model, answer_tokens, line, experts)
    app = Starlette(
        routes=[
            Route("/", page.index),
            Route("/page.css", page.style),
            Route("/page.js", page.script),
            Route("/questions", page.questions),
            Route("/picture", page.picture, methods=["POST"]),
            Route("/ask", page.ask, methods=["POST"]),
        ]
    )
    app.add_middleware(RequirePageKey, key=page_key)
    return app


class _Page:
    """The handlers of the page's addresses; the arguments are those of `application`."""

    def __init__(
        self,
        client: Any,
        model: str,
        answer_tokens: int,
        line: Sequence[str],
        experts: Callable[[bytes], str] | None,
    ) -> None:
        self._client, self._model, self._answer_tokens = client, model, answer_tokens
        self._line, self._experts = line, experts
        self._folder, self._readers = Path(__file__).parent, asyncio.Semaphore(MAX_READERS)

    async def index(self, request: Request) -> Response:
        text = (self._folder / "page.html").read_text().replace("{model}", html.escape(self._model))
        return Response(text, media_type="text/html", headers=HEADERS)

    async def style(self, request: Request) -> Response:
        return Response((self._folder / "page.css").read_bytes(), media_type="text/css", headers=HEADERS)

    async def script(self, request: Request) -> Response:
        return Response((self._folder / "page.js").read_bytes(), media_type="text/javascript", headers=HEADERS)

    async def questions(self, request: Request) -> Response:
        return JSONResponse(QUESTIONS, headers=HEADERS)

    async def picture(self, request: Request) -> Response:
        """An image file of the user's, decoded, with the experts' words on it."""
        if _too_long(request, MAX_IMAGE_BYTES):
            return _error_response(f"the file is larger than {MAX_IMAGE_BYTES >> 20} MiB", 413)
        async with self._readers:
            try:
                data = await _body(request)
                image = await run_in_threadpool(decode_image, data)
                if self._experts:
                    image["experts"] = await run_in_threadpool(self._experts, data)
                return JSONResponse(image, headers=HEADERS)
            except UserError as error:
                return _error_response(visible(str(error)))
            except TimeoutError:
                return _error_response(SLOW_UPLOAD, 408)

    async def ask(self, request: Request) -> Response:
        """The model's answer to a `PageQuestion`, streamed."""
        if _too_long(request, 3 * MAX_IMAGE_BYTES):  # two images in base64
            return _error_response("the request is too long", 413)
        try:
            async with self._readers:
                question = PageQuestion(**json.loads(await _body(request)))
        except UserError as error:
            return _error_response(visible(str(error)))
        except TimeoutError:
            return _error_response(SLOW_UPLOAD, 408)
        except (TypeError, ValueError, RecursionError):
            return _error_response("the request is not one of this page's")
        return StreamingResponse(_stream_answer(self._client, self._model, question, self._answer_tokens, self._line),
                                 media_type="application/x-ndjson", headers=HEADERS)  # fmt: skip


async def _stream_answer(
    client: Any, model: str, question: PageQuestion, answer_tokens: int, line: Sequence[str]
) -> AsyncIterator[bytes]:
    """Lines of JSON: `{"text"}` for each piece of the answer, then `{"answer", "facts", "note"}`; or `{"error"}`.

    `note`: what a reader must know of the answer; empty if the model ended it.
    """
    from httpx import HTTPError
    from openai import APIConnectionError, APIError

    text, note, finish_reason = "", "", None
    try:
        stream = await client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": question.content()}],
            stream=True,
            max_tokens=answer_tokens,
        )
        async for event in stream:
            for choice in event.choices:
                finish_reason = choice.finish_reason or finish_reason
                if finish_reason == "length":
                    note = f"Cut after {answer_tokens} tokens (predict.max_new_tokens)."
                if piece := choice.delta.content:
                    text += piece
                    yield _json_line({"text": visible(piece)})
        if finish_reason not in ("stop", "length"):  # vLLM's abort or error, or a stream that ends without a reason
            yield _json_line({"error": "the model's server broke the answer off"})
            return
        answer = strip(text, line)
        yield _json_line({"answer": visible(answer), "facts": read_facts(answer, question.kind), "note": note})
    except (APIConnectionError, HTTPError):  # httpx's own, while an answer streams
        yield _json_line({"error": "the model's server does not answer any more"})
    except APIError as error:
        yield _json_line({"error": visible(error.message)})


def decode_image(data: bytes) -> dict[str, Any]:
    """An image file as the page shows and sends it: a PNG's data URL of 8 bits, its size, day, patient and a warning.

    The same decoding as in training. Raises UserError for what cannot be read.
    """
    image = decode_picture(data)
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=1)
    url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    warning = COLOURED if has_colours(image) else ""
    size = {"width": image.width, "height": image.height}
    return {"url": url, "taken": acquisition_day(data), "patient": patient(data), "warning": warning, **size}


class RequirePageKey:
    """ASGI middleware: 401 outside `/KEY/`, where KEY is the page's key."""

    def __init__(self, app: Any, key: str) -> None:
        self._app, self._key = app, key

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            path_key = scope["path"].removeprefix("/").partition("/")[0]
            if not hmac.compare_digest(path_key.encode(errors="replace"), self._key.encode()):
                refusal = Response("open the address that the server printed, its key included", 401, headers=HEADERS)
                return await refusal(scope, receive, send)
            scope = scope | {"root_path": f"/{self._key}"}
        await self._app(scope, receive, send)


@contextmanager
def serve(app: Starlette, listener: socket.socket):
    """Serve the page in a thread for the time of the block."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run, args=[[listener]], daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def _too_long(request: Request, limit: int) -> bool:
    """Whether a request announces more bytes than `limit`, or does not say how many."""
    return int(request.headers.get("content-length", limit + 1)) > limit


async def _body(request: Request) -> bytes:
    """The whole body; TimeoutError where it does not arrive in time."""
    async with asyncio.timeout(UPLOAD_TIMEOUT_S):
        return await request.body()


def _error_response(message: str, status: int = 400) -> Response:
    return JSONResponse({"error": message}, status, headers=HEADERS)


def _json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
