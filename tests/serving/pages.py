"""The page in a real browser, before a model's server that is scripted."""

from __future__ import annotations

import asyncio
import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from lumen_hpc.serving import page
from lumen_hpc.serving.media import decode_picture, read_image_url
from lumen_hpc.serving.supervisor import listen

expect.set_options(timeout=60_000)  # a machine under load answers late
CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no `chromium` on the PATH: the page goes unseen here")
ANSWERS = {
    "given": "The main image has an additional finding of pleural effusion than the reference image.",
    "swapped": "The main image is missing the finding of pleural effusion than the reference image.",
    "same": "Nothing has changed.",
}


class Model:
    """An OpenAI-compatible server that answers by the order of the grey levels it is shown, word by word."""

    def __init__(self) -> None:
        self.asked: list[dict] = []
        self.refuse = ""
        self.held = False
        """Hold the answer back after its first word."""
        self.answer: str | None = None
        """Another answer than the scripted ones."""
        self.ends: str | None = "stop"
        """Why the answer ends: `stop`, `length`, `abort`, None for no reason, or `broken`, a connection that is gone
        after the first word."""
        self.app = Starlette(routes=[Route("/v1/chat/completions", self.complete, methods=["POST"])])

    async def complete(self, request):
        body = await request.json()
        self.asked.append({"body": body, "authorization": request.headers["authorization"]})
        if self.refuse:
            return JSONResponse({"error": {"message": self.refuse, "code": 400}}, 400)
        levels = [np.asarray(image).mean() for image in self.images(-1)]
        how = "same" if len(set(levels)) < 2 else "given" if levels[0] < levels[1] else "swapped"

        async def stream():
            answer = ANSWERS[how] if self.answer is None else self.answer
            for word in answer.split(" "):
                yield f"data: {json.dumps(_chunk(word + ' ' * bool(answer)))}\n\n"
                while self.held:
                    await asyncio.sleep(0.02)
                if self.ends == "broken":
                    raise ConnectionResetError
            yield f"data: {json.dumps(_chunk('', self.ends))}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    def parts(self, place: int) -> list[dict]:
        return self.asked[place]["body"]["messages"][0]["content"]

    def images(self, place: int) -> list[Image.Image]:
        return [
            decode_picture(read_image_url(part["image_url"]["url"], []))
            for part in self.parts(place)
            if part["type"] != "text"
        ]


def _chunk(text: str, ends: str | None = None) -> dict:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": ends}
    return {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "lumen", "choices": [choice]}


@contextmanager
def listening(app):
    with listen("127.0.0.1", 0, "port") as opened, page.serve(app, opened):
        yield f"http://127.0.0.1:{opened.getsockname()[1]}"


def _words(data: bytes) -> str:
    return f"Expert models predict: {'no' if data[128:132] == b'DICM' else 'maybe'} edema."


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def address(model):
    with listening(model.app) as server:
        app = page.application(f"{server}/v1", "server-key", "page-key", "lumen", experts=_words)
        with listening(app) as url:
            yield url


@pytest.fixture
def files(tmp_path):
    """A dark and a bright radiograph, the dark one a DICOM of 2 March 2020, the bright one of 9 March in its Exif."""
    import pydicom
    from pydicom.data import get_testdata_file

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.PixelRepresentation = 0  # a CT's signed values; a radiograph's are unsigned
    dataset.AcquisitionDate = "20200302"
    dataset.save_as(tmp_path / "dark.dcm")
    bright = Image.fromarray(np.full((90, 70), 200, np.uint8))
    exif = bright.getexif()
    exif[0x0132] = "2020:03:09 10:00:00"
    bright.save(tmp_path / "bright.jpg", exif=exif)
    return tmp_path


@pytest.fixture
def browser_page(address):
    """The page opened with its key; a complaint of the browser or a request elsewhere fails the test."""
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.set_default_timeout(60_000)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on(
            "console",
            lambda message: (
                complaints.append(message.text)
                if message.type in ("error", "warning") and "400 (Bad Request)" not in message.text
                else None
            ),
        )
        opened.on(
            "request",
            lambda request: None if request.url.startswith((address, "data:")) else complaints.append(request.url),
        )
        opened.goto(f"{address}/page-key/")
        opened.locator("#questions option").first.wait_for(state="attached")
        yield opened
        browser.close()
    assert complaints == []


def load(opened, files) -> None:
    for name, file in (("reference", "dark.dcm"), ("main", "bright.jpg")):
        opened.locator(f"[data-name={name}] input[type=file]").set_input_files(files / file)
        opened.locator(f"[data-name={name}] .about", has_text=file).wait_for()


def answered(opened, count: int) -> str:
    expect(opened.locator("#answers .chips")).to_have_count(count)
    return opened.locator("#answers li .text").first.inner_text()
