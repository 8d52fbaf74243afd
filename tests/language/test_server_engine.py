"""Servers that answer as real ones do: what is sent to them, their scores, their pauses and their faults."""

from __future__ import annotations

import json
import math
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.errors import UserError
from lumen_hpc.language import http_client
from lumen_hpc.language.endpoints import check_endpoint
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.judge import SCORES

ASKED = [[{"role": "user", "content": f"question {number}"}] for number in range(3)]
Answer = tuple[int, dict[str, str], bytes]


def said(text: str | None, probabilities: dict[str, float] | None = None) -> dict[str, Any]:
    """A chat completion with a server's top_logprobs, the likeliest first."""
    ordered = sorted((probabilities or {}).items(), key=lambda it: -it[1])
    top = [{"token": token, "logprob": math.log(p)} for token, p in ordered]
    return {
        "choices": [{"message": {"content": text}, "logprobs": {"content": [{"top_logprobs": top}]} if top else None}]
    }


@contextmanager
def serving(reply: Callable[[int, dict], dict | Answer]) -> Iterator[tuple[str, list[dict]]]:
    """A server on loopback; `reply` gets the number of the request, from 0, and its JSON. Yields URL and requests."""
    requests: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(request | {"key": self.headers["Authorization"], "host": self.headers["Host"]})
            answer = reply(len(requests) - 1, request)
            status, headers, content = (200, {}, json.dumps(answer).encode()) if isinstance(answer, dict) else answer
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(content))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = headers.get("Content-Length", str(len(content))) != str(len(content))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", requests
    finally:
        server.shutdown()
        server.server_close()


def engine(url: str, **more):
    return open_engine(EngineSettings(kind="server", model="m", endpoint=url, **more))


def one(url: str, **more) -> str:
    return engine(url, **more).chat(ASKED[:1], max_tokens=7, temperature=0.6, seed=4)[0].text


def scored(reply: Callable[[int, dict], dict]) -> tuple[str, dict[str, float]]:
    with serving(reply) as (url, _):
        (completion,) = engine(url).chat(ASKED[:1], max_tokens=2, temperature=0.0, seed=0, choices=SCORES)
    probabilities = zip(SCORES, completion.choice_probabilities, strict=True)
    return completion.text, {score: round(p, 6) for score, p in probabilities if p}


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that the client makes, none of which is waited for."""
    made: list[float] = []
    monkeypatch.setattr(http_client.time, "sleep", made.append)
    return made


def test_a_request_names_its_server():
    with serving(lambda *_: said("fine")) as (url, requests):
        one(url)
    assert requests[0]["host"] == url.removeprefix("http://").removesuffix("/v1")


def test_a_certificate_must_be_that_of_the_servers_name(monkeypatch, pauses):
    names: list[str] = []

    class Context:
        def wrap_socket(self, stream: socket.socket, server_hostname: str) -> socket.socket:
            names.append(server_hostname)
            stream.close()
            error = ssl.SSLCertVerificationError(1, "certificate verify failed")
            error.verify_message = "self-signed certificate"
            raise error

    context = ssl.create_default_context()
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED
    monkeypatch.setattr(http_client.ssl, "create_default_context", Context)
    with serving(lambda *_: said("fine")) as (url, requests):
        with pytest.raises(UserError, match=r"\(self-signed certificate\).* SSL_CERT_FILE=… in profile\.setup"):
            one(url.replace("http:", "https:").replace("127.0.0.1", "localhost"))
    assert set(names) == {"localhost"} and not requests


def test_a_name_that_no_host_can_have_is_no_answer_of_a_server(pauses):
    with pytest.raises(UserError, match="does not answer \\(OSError\\)"):
        one("http://node..cluster:8000/v1")


def test_each_conversation_is_sent_with_its_own_seed_and_answered_in_order():
    with serving(lambda _, request: said(f" {request['messages'][0]['content']} \n")) as (url, requests):
        given = engine(url).chat(ASKED, max_tokens=7, temperature=0.6, seed=[5, 6, 7])
    assert [completion.text for completion in given] == ["question 0", "question 1", "question 2"]
    sent = sorted((it["messages"][0]["content"], it["seed"], it["max_tokens"], it["temperature"]) for it in requests)
    assert sent == [(f"question {number}", 5 + number, 7, 0.6) for number in range(3)]
    assert {request["model"] for request in requests} == {"m"}


def test_conversations_are_sent_at_once():
    """A server batches what it has; one request after the other would take days."""
    together = threading.Barrier(3, timeout=20)

    def reply(*_: object) -> dict:
        together.wait()
        return said("7")

    with serving(reply) as (url, _):
        asked = engine(url)
        asked.chat(ASKED, max_tokens=7, temperature=0.6, seed=4)
        asked.chat(ASKED, max_tokens=2, temperature=0.0, seed=0, choices=SCORES)


@pytest.mark.parametrize("message", [{"content": None, "reasoning_content": "Hm."}, {"tool_calls": []}])
def test_a_message_without_content_is_an_empty_answer(message):
    with serving(lambda *_: {"choices": [{"message": message, "finish_reason": "length"}], "usage": None}) as (url, _):
        assert one(url) == ""


def test_a_score_has_the_probability_of_its_own_token_not_of_one_with_a_space():
    """vLLM's probabilities are those before the constraint, so ` 1` stands beside `1`."""
    text, given = scored(lambda *_: said("1", {"1": 0.6, "10": 0.3, " 1": 0.05, "2": 0.1, "\n2": 0.2}))
    assert (text, given) == ("1", {"1": 0.6, "2": 0.1, "10": 0.3})
    assert scored(lambda *_: said("1", {" 1": 0.6, " 7": 0.2}))[1] == {"1": 0.75, "7": 0.25}


def test_a_ten_of_two_digits_has_the_share_of_those_that_go_on():
    def reply(_: int, request: dict) -> dict:
        if "structured_outputs" in request:
            assert request["structured_outputs"] == {"choice": list(SCORES)} and request["top_logprobs"] == 20
            assert request["max_tokens"] > 1 and request["temperature"] == 0
            return said("10", {"1": 0.5, "9": 0.4})
        assert request["messages"][-1] == {"role": "assistant", "content": "1"}
        assert request["continue_final_message"] and not request["add_generation_prompt"]
        return said("0", {"0": 0.6, "<|im_end|>": 0.4})

    text, given = scored(reply)
    assert given == {"1": round(0.2 / 0.9, 6), "9": round(0.4 / 0.9, 6), "10": round(0.3 / 0.9, 6)}
    assert text == "9"  # the most probable, where the server's digit by digit is 10


@pytest.mark.parametrize("token", ["<|im_end|>", "\n"])
def test_a_one_that_ends_the_text_still_tells_how_often_it_goes_on(token):
    """The continuation of the digit is an empty text: a token that ends the turn is no part of it."""

    def reply(_: int, request: dict) -> dict:
        if "structured_outputs" in request:
            return said("1", {"1": 0.9, "2": 0.1})
        top = [{"token": it, "logprob": math.log(p)} for it, p in ((token, 0.9), ("0", 0.1))]
        entries = [{"token": token, "top_logprobs": top}]
        return {"choices": [{"message": {"content": ""}, "logprobs": {"content": entries}}]}

    assert scored(reply) == ("1", {"1": 0.81, "2": 0.1, "10": 0.09})


def test_a_ten_of_one_token_is_not_asked_for_again():
    with serving(lambda *_: said("1", {"1": 0.5, "10": 0.5})) as (url, requests):
        engine(url).chat(ASKED[:1], max_tokens=2, temperature=0.0, seed=0, choices=SCORES)
    assert len(requests) == 1


def test_a_server_without_probabilities_has_its_choice_alone_and_is_reported(caplog):
    assert scored(lambda *_: said("7")) == ("7", {"7": 1.0})
    assert "1 of 1 choices of m came without log probabilities" in caplog.text
    caplog.clear()
    assert scored(lambda *_: said("7", {"7": 0.5, "8": 0.5}))[1] == {"7": 0.5, "8": 0.5}
    assert not caplog.records


def test_the_text_of_a_message_in_parts_is_joined():
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": "Yes."}]
    with serving(lambda *_: {"choices": [{"message": {"content": parts}}]}) as (url, _):
        assert one(url) == "Yes."


@pytest.mark.parametrize(
    ("tokens", "given"),
    [
        ([(" ", {" ": 0.99, "1": 0.006}), ("7", {"7": 0.8, "6": 0.2})], {"7": 0.8, "6": 0.2}),
        ([("Okay", {"Okay": 0.99, "1": 0.006}), ("7", {"7": 0.8, "6": 0.2})], {"7": 1.0}),
        ([("\n", {"\n": 0.99, "1": 0.006})], {"7": 1.0}),
    ],
    ids=["space", "reasoning", "line break alone"],
)
def test_a_score_has_no_probabilities_of_another_token(tokens, given):
    """Servers that know no constraint begin with a space, or give the tokens of a model's reasoning too."""
    entries = [
        {"token": token, "top_logprobs": [{"token": other, "logprob": math.log(p)} for other, p in top.items()]}
        for token, top in tokens
    ]
    reply = {"choices": [{"message": {"content": " 7"}, "logprobs": {"content": entries}}]}
    assert scored(lambda *_: reply) == ("7", given)


@pytest.mark.parametrize("reply", [said(""), said(None)], ids=["nothing", "no content"])
def test_a_server_that_chooses_nothing_is_an_error(reply):
    with pytest.raises(UserError, match="filter refused the text or its model spends its tokens"):
        scored(lambda *_: reply)


@pytest.mark.parametrize("text", ["7 of 10", "Score: 7", "four", "11"])
def test_a_server_that_does_not_keep_to_the_scores_is_an_error(text):
    with pytest.raises(UserError, match="structured_outputs"):
        scored(lambda *_: said(text, {"7": 1.0}))


def test_a_pause_that_the_server_asks_for_is_made(pauses):
    """Seconds, a date, too long a one, and none: Azure and LiteLLM ask for one at every limit of their rates."""
    asked = ["40", formatdate(time.time() + 100, usegmt=True), "86400", "soon", formatdate(0, usegmt=True)]
    with serving(lambda number, _: (429, {"Retry-After": asked[number]}, b"{}") if number < 4 else said("fine")) as (
        url,
        requests,
    ):
        assert one(url, timeout=600.0) == "fine"
    assert len(requests) == 5
    assert pauses[0] == 40 and 90 < pauses[1] <= 100 and pauses[2] == 600 and pauses[3] == 4
    assert http_client._pause_seconds(asked[4]) < 0


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
def test_a_status_that_passes_is_asked_again(pauses, status):
    with serving(lambda number, _: (status, {}, b"busy") if number < 2 else said("fine")) as (url, _):
        assert one(url) == "fine"
    assert pauses == [0.5, 1.0]
    with serving(lambda *_: (status, {}, b"busy")) as (url, requests), pytest.raises(UserError, match="submit again"):
        one(url)
    assert len(requests) == 5 and pauses[2:] == [0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("status", "fix"), [(400, "see its log"), (401, "LUMEN_API_KEY"), (403, "LUMEN_API_KEY"), (404, "ends in /v1")]
)
def test_a_status_that_stays_is_an_error_with_its_fix(pauses, status, fix):
    with serving(lambda *_: (status, {}, b"no")) as (url, requests), pytest.raises(UserError, match=fix):
        one(url)
    assert len(requests) == 1 and pauses == []


def refused(code: object, param: object = None) -> Answer:
    return 400, {}, json.dumps({"error": {"message": "question 1", "code": code, "param": param}}).encode()


def test_a_question_that_a_filter_refuses_has_no_answer_and_ends_nothing():
    """Azure's filter refuses a prompt with a status, and an answer without one."""
    with serving(
        lambda _, request: (
            refused("content_filter", "prompt") if "1" in request["messages"][0]["content"] else said("fine")
        )
    ) as (url, _):
        given = engine(url).chat(ASKED, max_tokens=7, temperature=0.6, seed=4)
    assert [completion.text for completion in given] == ["fine", "", "fine"]


@pytest.mark.parametrize(
    ("param", "named"), [("max_tokens", True), ("temperature", True), ("question 1", False), (None, False), ([], False)]
)
def test_an_option_that_a_model_does_not_take_is_named_and_no_other_text(param, named):
    with serving(lambda *_: refused("unsupported_parameter", param)) as (url, _), pytest.raises(UserError) as caught:
        one(url)
    assert (f"does not take {param} so" in str(caught.value)) == named and "question 1" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"error": "no"}', b'{"error": null}', b"\xff", b"[" * 200_000]
)
def test_a_refusal_in_any_form_is_one(content):
    with serving(lambda *_: (400, {}, content)) as (url, _), pytest.raises(UserError, match="answered 400"):
        one(url)


def test_an_answer_cut_off_on_its_way_is_asked_for_again(pauses):
    cut = (200, {"Content-Length": "5000"}, b'{"choices": [')
    with serving(lambda number, _: cut if number < 2 else said("fine")) as (url, requests):
        assert one(url) == "fine"
    assert len(requests) == 3
    with serving(lambda *_: cut) as (url, _), pytest.raises(UserError, match=r"does not answer \(IncompleteRead\)"):
        one(url)


def test_an_answer_of_more_bytes_than_any_has_is_refused(monkeypatch):
    content = json.dumps(said("fine")).encode()
    with serving(lambda *_: said("fine")) as (url, _):
        monkeypatch.setattr(http_client, "MOST_BYTES", len(content))
        assert one(url) == "fine"
        monkeypatch.setattr(http_client, "MOST_BYTES", len(content) - 1)
        with pytest.raises(UserError, match="does not answer"):
            one(url)


def test_a_page_in_place_of_an_answer_points_to_the_endpoint():
    with serving(lambda *_: (200, {"Content-Type": "text/html"}, b"<html>")) as (url, _):
        with pytest.raises(UserError, match=r"in JSON .* correct engine\.endpoint"):
            one(url)


def test_a_server_that_is_too_slow_points_to_its_timeout(monkeypatch):
    monkeypatch.setattr("lumen_hpc.language.server_engine.RETRIES", 0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        with pytest.raises(UserError, match=r"within engine\.timeout=1 s"):
            one(f"http://127.0.0.1:{silent.getsockname()[1]}/v1", timeout=1.0)


def test_the_address_that_listens_is_taken(monkeypatch):
    """`localhost` is ::1 first on many machines, and vLLM listens at 127.0.0.1 alone."""
    look_up, connect = socket.getaddrinfo, socket.create_connection
    tried: list[str] = []

    def getaddrinfo(host, port, *rest, **options):
        found = ("127.0.0.2", "127.0.0.1") if host == "localhost" else (host,)
        return [entry for address in found for entry in look_up(address, port, *rest, **options)]

    def create_connection(address, *rest):
        tried.append(address[0])
        if address[0] == "127.0.0.2":
            raise ConnectionRefusedError
        return connect(address, *rest)

    monkeypatch.setattr(http_client.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(http_client.socket, "create_connection", create_connection)
    with serving(lambda *_: said("fine")) as (url, _):
        client = http_client.Client(url.replace("127.0.0.1", "localhost"), "k", timeout=9, retries=0, restricted=True)
        for _ in range(2):
            assert client.post("/chat/completions", {})["choices"]
            client._close()
    assert tried == ["127.0.0.2", "127.0.0.1", "127.0.0.1"]


@pytest.mark.parametrize("key", ["sk-1\r", "sk-1\n", " sk-1 "])
def test_the_end_of_a_line_is_no_part_of_a_key(monkeypatch, key):
    monkeypatch.setenv("LUMEN_API_KEY", key)
    with serving(lambda *_: said("fine")) as (url, requests):
        one(url)
    assert requests[0]["key"] == "Bearer sk-1"


@pytest.mark.parametrize("key", ["sk-\N{HORIZONTAL ELLIPSIS}", "sk\n1", "sk\x1b1"])
def test_a_key_that_cannot_be_sent_is_an_error_without_it(monkeypatch, key):
    monkeypatch.setenv("LUMEN_API_KEY", key)
    with pytest.raises(UserError, match="LUMEN_API_KEY holds characters") as caught:
        engine("http://127.0.0.1:9/v1")
    assert "sk" not in str(caught.value)


@pytest.mark.parametrize(
    "rest", ["/v1/chat/completions", "/v1/chat/completions/", "/v1?api-version=2024-10-21", "/v1#a"]
)
def test_an_endpoint_that_is_more_than_a_base_url_is_refused(rest):
    with pytest.raises(UserError, match="more than a base URL") as caught:
        check_endpoint(f"http://node:8000{rest}", None)
    assert "2024" not in str(caught.value)
