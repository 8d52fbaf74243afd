"""`stage=serve`: a real server started by launch.py, asked through the plain `openai` client."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import launch
from lumen_hpc import nvila
from lumen_hpc.data.findings_line import strip
from lumen_hpc.serving.supervisor import read_address

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def served(folders, tmp_path_factory):
    """(address, folder of runs, what the command printed so far) of a server on the tiny model with dynamic tiles."""
    pytest.importorskip("vllm")
    runs = tmp_path_factory.mktemp("runs")
    (runs / "pictures").mkdir()
    words = [
        f"weights={folders['dynamic']}",
        f"serve.images=[{runs / 'pictures'}]",
        "serve.max_images=2",
        "page=true",
        "predict.max_new_tokens=12",
    ]
    out = runs / "printed.txt"
    with out.open("w") as printed:
        process = subprocess.Popen(
            [sys.executable, "launch.py", "stage=serve", "run=try", f"runs={runs}", "serve.max_model_len=1024", *words],
            cwd=ROOT, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        deadline = time.monotonic() + 300
        while (address := read_address(runs / "try" / "serve")) is None or "Ctrl-C" not in out.read_text():
            assert process.poll() is None and time.monotonic() < deadline, out.read_text()
            time.sleep(0.5)
        yield address, runs, out.read_text()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=300) == 130, out.read_text()
    assert read_address(runs / "try" / "serve") is None, "the address goes with the server"
    assert not (runs / "try" / "serve" / "failures.jsonl").exists(), "it was asked to stop"


@pytest.fixture(scope="module")
def client(served):
    from openai import OpenAI

    return OpenAI(base_url=served[0].url, api_key=served[0].key, max_retries=0)


def _url(picture: Image.Image, form: str = "PNG") -> dict:
    out = io.BytesIO()
    picture.save(out, form)
    return _image(f"data:image/{form.lower()};base64,{base64.b64encode(out.getvalue()).decode()}")


def _image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _ask(client, content, **more):
    messages = [{"role": "user", "content": content}]
    return client.chat.completions.create(model="lumen", messages=messages, **{"max_tokens": 12} | more)


def test_answers_are_those_of_predict(client, folders, pictures):
    native = nvila.load(folders["dynamic"], dtype=torch.float32)
    question = "Reference image: <image>\nMain image: <image>\nWhat has changed?"
    record = {"images": pictures[:2], "conversations": [{"from": "human", "value": question}]}
    [expected] = native.generate(native.preprocess([record], generation=True, inline=True), max_new_tokens=12)
    one, two = map(_url, pictures[:2])
    for content in (
        [_text(question), one, two],
        [_text("Reference image: "), one, _text("\nMain image: "), two, _text("\nWhat has changed?")],
    ):
        reply = _ask(client, content, extra_body={"return_token_ids": True})
        assert reply.choices[0].token_ids == expected.ids


def test_an_image_by_path_is_the_same_as_in_the_request(client, served, pictures):
    path = served[1] / "pictures" / "a.png"
    pictures[0].save(path)
    by_path = _image(f"file://{path}")
    texts = [_ask(client, [image, _text("Why?")]).choices[0].message.content for image in (by_path, _url(pictures[0]))]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([_image("data:image/png;base64,aGVsbG8=")], "cannot be read: give a whole"),
        ([_image("file:///etc/hostname")], "outside the folders of serve.images"),
        ([_image("https://example.org/a.png")], "fetches no addresses"),
        ([_url(Image.new("L", (9, 9)))] * 3, r"At most 2 image"),
        ([_url(Image.fromarray(np.zeros((9, 9), np.uint16)))], "a PNG of 16 bits"),
        ([_url(Image.new("1", (9, 9)))], "a PNG of 1 bits"),
        ([_url(Image.new("P", (9, 9)))], "a PNG with a palette"),
        ([_url(Image.new("CMYK", (9, 9)), "JPEG")], "has 4 components"),
        ([_image("data:image/png;base64," + "A" * (200 << 20))], "larger than 128 MiB"),
        ([_image("/etc/hostname")], "fetches no addresses"),
        ([{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}], "At most 0 video"),
        ([_url(Image.new("L", (9, 9))), _text("<image> <image>")], "2 <image> but 1 images are given"),
        ([_text("word " * 2000)], "maximum context length is 1024 tokens"),
    ],
)  # fmt: skip
def test_bad_input_is_answered_400_with_one_clear_line(client, content, message):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match=message):
        _ask(client, content)


GREY = Image.fromarray(np.arange(4096, dtype=np.uint8).reshape(64, 64))


def _texts(reply) -> list[str]:
    return [choice.message.content for choice in reply.choices]


def test_forms_of_a_request_that_mean_the_same_are_answered_alike(client):
    """Streams, bounds that are not reached, odd names of types, an alpha channel and line breaks change no answer."""
    question = _text("What has changed?")
    expected = _texts(_ask(client, [_url(GREY), question]))
    head, _, data = _url(GREY)["image_url"]["url"].partition(",")
    lines = "\r\n".join(data[place : place + 76] for place in range(0, len(data), 76))
    for url in (
        f"{head},{lines}",
        f"data:;base64,{data}",
        f"data:application/pdf;base64,{data}",
        f"{head},{data.rstrip('=')}",
    ):
        assert _texts(_ask(client, [_image(url), question])) == expected
    for mode in ("RGB", "RGBA", "LA"):
        assert _texts(_ask(client, [_url(GREY.convert(mode)), question])) == expected
    for options in (
        {"temperature": 0}, {"seed": 7}, {"stop": []}, {"stop": ["never written"]}, {"n": 1}, {"logprobs": True},
        {"top_p": 1.0}, {"user": "somebody"}, {"extra_body": {"detail": "high"}},
    ):  # fmt: skip
        assert _texts(_ask(client, [_url(GREY), question], **options)) == expected, options
    streamed = _ask(client, [_url(GREY), question], stream=True, stream_options={"include_usage": True})
    assert "".join(event.choices[0].delta.content or "" for event in streamed if event.choices) == expected[0]
    assert client.models.list().data[0].id == "lumen"


def test_requests_of_other_kinds_are_answered(client):
    two = _ask(client, [_url(GREY), _text("Why?")], n=2, temperature=1.0, seed=1)
    again = _ask(client, [_url(GREY), _text("Why?")], n=2, temperature=1.0, seed=1)
    assert len(two.choices) == 2 and _texts(two) == _texts(again)
    limited = _ask(client, [_url(GREY), _text("Why?")], max_tokens=None, max_completion_tokens=1)
    assert limited.usage.completion_tokens == 1 and limited.choices[0].finish_reason == "length"
    word = _ask(client, "Is the heart normal?", max_tokens=8, logprobs=True, top_logprobs=3)
    assert all(len(token.top_logprobs) == 3 for token in word.choices[0].logprobs.content)
    cut = _ask(client, "Is the heart normal?", max_tokens=8, stop=[_texts(word)[0][2]])
    assert cut.choices[0].finish_reason == "stop" and _texts(cut)[0] == _texts(word)[0][:2]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [_url(GREY), _text("What is this?")]},
        {"role": "assistant", "content": "An image."},
        {"role": "user", "content": [_url(GREY), _text("And this?")]},
    ]
    assert client.chat.completions.create(model="lumen", messages=messages, max_tokens=2).usage.completion_tokens
    assert _ask(client, "", max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize("form", ["WEBP", "GIF", "TIFF", "BMP", "JPEG2000"])
def test_another_format_of_image_is_refused_by_name_of_those_that_are_read(client, form):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="cannot be read: give a whole JPG, PNG or DICOM file"):
        _ask(client, [_url(GREY, form), _text("Why?")])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be at least 1"),
        ({"n": 2}, "n must be 1 when using greedy sampling"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": -1}, "max_tokens must be at least 1"),
        ({"max_tokens": 10**9}, "cannot be greater than max_model_len=1024"),
        ({"temperature": -1}, "temperature must be non-negative"),
        ({"logprobs": True, "top_logprobs": 200}, "greater than max allowed: 20"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tool choice requires"),
        ({"extra_body": {"chat_template": "{{ 1 }}"}}, "chat template"),
        ({"extra_body": {"mm_processor_kwargs": {"exact": False}}}, "mm_processor_kwargs are disabled"),
        ({"extra_body": {"truncate_prompt_tokens": 5}}, "the prompt was cut before an image"),
    ],
)
def test_options_that_cannot_be_are_answered_400(client, options, message):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match=message):
        _ask(client, [_url(GREY), _text("Why?")], **options)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": 5}], "messages.0.content is malformed: a message has a role and a content"),
        ([{"role": "user", "content": [_text("a"), 5]}], "part 2 of a message's content is malformed: a content is a"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "part 1 of a message's content is malformed"),
        ([{"role": "user", "content": [{"type": "text", "text": 5}]}], "part 1 of a message's content is malformed"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": "data:"}]}],
            "a part of a message's content is",
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            "a part of a message's content is",
        ),
        ([{"role": "user", "content": [{"type": "picture"}]}], "part 1 of a message's content is malformed"),
        ("Hi", "messages: Input should be a valid list"),
    ],
)
def test_a_malformed_message_is_refused_in_a_line_with_its_place(served, messages, message):
    """The client's own types would not send it."""
    body = json.dumps({"model": "lumen", "messages": messages}).encode()
    headers = {"Authorization": f"Bearer {served[0].key}", "Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{served[0].url}/chat/completions", body, headers), timeout=60)
    text = json.loads(caught.value.read())["error"]["message"]
    assert caught.value.code == 400 and text.startswith(message), text
    assert "\n" not in text and len(text) < 250


def test_a_body_of_another_type_is_refused_with_the_type_that_is_taken(served):
    headers = {"Authorization": f"Bearer {served[0].key}", "Content-Type": "application/x-www-form-urlencoded"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{served[0].url}/chat/completions", b"a=b", headers), timeout=60)
    assert json.loads(caught.value.read())["error"]["message"].endswith("Only 'application/json' is allowed")


def test_an_image_is_told_from_another_by_its_pixels_whatever_name_a_request_gives_it(client):
    """vLLM takes a `uuid` for the image: it answers about the first one of that name."""
    from openai import BadRequestError

    white = Image.new("L", (64, 64), 255)
    expected = [_texts(_ask(client, [_url(picture), _text("Why?")])) for picture in (GREY, white)]
    named_answers = [
        _texts(_ask(client, [_url(picture) | {"uuid": "main"}, _text("Why?")])) for picture in (GREY, white)
    ]
    assert named_answers == expected and expected[0] != expected[1]
    with pytest.raises(BadRequestError, match="by its uuid alone: send the image itself"):
        _ask(client, [{"type": "image_url", "image_url": None, "uuid": "main"}, _text("Why?")])


def test_another_model_is_answered_404_with_the_name_that_is_served(client):
    from openai import NotFoundError

    with pytest.raises(NotFoundError, match="`gpt-4` does not exist"):
        client.chat.completions.create(model="gpt-4", messages=[{"role": "user", "content": "Hi"}])


def test_without_the_key_nothing_is_answered(served):
    address = served[0]
    for path in ("/v1/models", "/metrics", "/tokenize", "/docs"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"http://{address.host}:{address.port}{path}", timeout=60)
        assert caught.value.code == 401, path


def test_the_key_is_in_one_private_file_and_on_the_screen_only(served, capsys):
    address, runs, printed = served
    assert address.key in printed and address.url in printed and address.page in printed
    assert launch.main(["status", "run=try", f"runs={runs}"]) == 0
    assert address.key in capsys.readouterr().out
    files_with_key = [
        path for path in (runs / "try").rglob("*") if path.is_file() and address.key.encode() in path.read_bytes()
    ]
    assert files_with_key == [runs / "try" / "serve" / "server.json"]
    assert stat.S_IMODE(files_with_key[0].stat().st_mode) == 0o600
    processes = subprocess.run(["ps", "axww"], capture_output=True, text=True).stdout
    assert "lumen_hpc.serving.server" in processes and address.key not in processes


def test_it_listens_on_loopback_alone(served):
    address = served[0]
    _only_loopback(address.port)
    _only_loopback(int(address.page.split(":")[2].split("/")[0]))


def _only_loopback(port: int) -> None:
    hexport = f"{port:04X}"
    listening = [
        line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if line.split()[3] == "0A"
    ]
    assert [local for local in listening if local.endswith(f":{hexport}")] == [f"0100007F:{hexport}"]
    assert not any(f":{hexport} " in line for line in Path("/proc/net/tcp6").read_text().splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=none"], "run=none: there is no"),
        (["run=try", "weights={tmp}/nothing"], "no config.json in {tmp}/nothing; give a checkpoint's folder"),
        (["run=try", "weights={tmp}/made"], "no NVILA in {tmp}/made: it has neither llm/"),
        (["run=made"], "run made has no trained lumen yet"),
        (["run=made", "model=ft"], "run made has no trained ft yet"),
        (["run=made", "model=other"], "takes one of nvila, ft, lumen"),
        (["run=made", "weights={model}", "serve.images=[{tmp}/none]"], "serve.images: {tmp}/none is not a folder"),
        (["run=made", "weights={model}", "serve.tensor_parallel=2"], "profile.resources.gpu.gpus"),
        (
            ["run=made", "weights={model}", "page=true", "serve.port=9999", "serve.page_port=9999"],
            "serve.page_port=9999 is serve.port too; 0 takes a free one",
        ),
        (["run=made", "weights={model}", "serve.page_port=9999"], "serve.page_port: nothing would read it"),
        (["run=made", "weights={model}", "serve.images=['']"], "serve.images has an empty folder"),
        (
            ["run=made", "weights={model}", "serve.max_model_len=99999"],
            "serve.max_model_len=99999: the language model in {model} reads at most 8192 tokens; lower it",
        ),
        (["run=made", "weights={model}", "serve.gpu_memory=0"], "serve.gpu_memory=0.0: must be from 0.01 to 1"),
    ],
)
def test_what_would_stop_it_is_said_before_anything_starts(folders, tmp_path, capsys, words, message):
    from lumen_hpc.config import config_file
    from lumen_hpc.config.resolve import resolve

    (tmp_path / "made").mkdir()
    config_file.save(resolve(["stage=full", "run=made", f"runs={tmp_path}"]), tmp_path / "made" / "config.yaml")
    (tmp_path / "made" / "config.json").write_text('{"model_type": "qwen2"}')
    names = {"tmp": tmp_path, "model": folders["resize"]}
    assert launch.main(["stage=serve", f"runs={tmp_path}", *[word.format(**names) for word in words]]) == 2
    assert message.format(**names) in capsys.readouterr().err
    assert not (tmp_path / "try").exists()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no `chromium` on the PATH: the page goes unseen here")
def test_the_page_beside_it_asks_this_server(served, client, pictures, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    one, two = tmp_path / "one.png", tmp_path / "two.png"
    pictures[0].save(one)
    pictures[1].save(two)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(served[0].page)
        for name, file in (("reference", one), ("main", two)):
            page.locator(f"[data-name={name}] input[type=file]").set_input_files(file)
            page.locator(f"[data-name={name}] .about", has_text=file.name).wait_for()
        page.locator("#interval").fill("7")
        page.locator("#ask").click()
        expect(page.locator("#answers .chips")).to_have_count(1, timeout=60_000)
        shown = page.locator("#answers .text").inner_text()
        browser.close()
    text = (
        "reference image: <image>\nmain image, 7 days later: <image>\nwhat has changed compared to the reference image?"
    )
    expected = _ask(client, [_text(text), _url(pictures[0]), _url(pictures[1])])
    assert shown.split() == strip(expected.choices[0].message.content).split()


@pytest.mark.parametrize(
    ("grey", "options"),
    [(3, {"n": 0}), (4, {"n": 2}), (5, {"max_tokens": -1}), (6, {"temperature": -1})],
)
def test_an_image_that_was_first_seen_in_a_refused_request_is_answered_about(client, grey, options):
    """vLLM's two caches of images would differ from then on, and the next request with this image be a 500."""
    from openai import BadRequestError

    picture = Image.new("L", (64, 64), grey)
    with pytest.raises(BadRequestError):
        _ask(client, [_url(picture), _text("Why?")], **options)
    assert all(_texts(_ask(client, [_url(picture), _text("Why?")])))
