"""Attacks on the data-use gate: a server, a proxy or a name service that leads a prompt elsewhere."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.errors import UserError
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.http_client import Client, check_addresses

PROMPT = [[{"role": "user", "content": "MARKER-of-a-record"}]]
ANSWER = {
    "choices": [{"message": {"content": "fine"}, "logprobs": None}],
}


class Recorder(ThreadingHTTPServer):
    """A server on loopback that records each request's path, headers and body, and answers as it is set up."""

    daemon_threads = True

    def __init__(self, status: int = 200, location: str = "", answer: object = ANSWER) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.location, self.answer = status, location, answer
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.path, dict(self.headers), body))
        answer = self.server.answer
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_CONNECT = do_POST

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(**options) -> Iterator[Recorder]:
    server = Recorder(**options)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def ask(endpoint: str, allowed: list[str] | None):
    engine = open_engine(EngineSettings(kind="server", model="m", endpoint=endpoint), allowed)
    return engine.chat(PROMPT, max_tokens=1, temperature=0.0, seed=0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("lumen_hpc.language.http_client.PAUSE_SECONDS", 0.0)


def test_the_client_sends_the_prompt_to_the_allowed_server_alone(monkeypatch):
    monkeypatch.setenv("LUMEN_API_KEY", "key-of-the-test")
    with serving() as server:
        (completion,) = ask(server.url, [server.url])
    assert completion.text == "fine"
    ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer key-of-the-test"
    assert b"MARKER-of-a-record" in body


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_of_an_allowed_server_is_not_followed(status):
    with serving() as elsewhere, serving(status=status, location=f"{elsewhere.url}/chat/completions") as server:
        with pytest.raises(UserError, match="redirects") as caught:
            ask(server.url, [server.url])
    assert elsewhere.requests == [] and len(server.requests) == 1
    assert "MARKER" not in str(caught.value)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "HTTPS_PROXY"])
def test_a_proxy_of_the_environment_sees_neither_prompt_nor_key(monkeypatch, variable):
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with serving() as proxy, serving() as server:
        monkeypatch.setenv(variable, proxy.url.removesuffix("/v1"))
        ask(server.url, [server.url])
    assert proxy.requests == [] and len(server.requests) == 1


def test_the_environment_does_not_replace_the_endpoint(monkeypatch):
    with serving() as elsewhere, serving() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", elsewhere.url)
        ask(server.url, [server.url])
    assert elsewhere.requests == []


def resolve_to(monkeypatch, *addresses: str) -> list[str]:
    """Makes every name resolve to these addresses in turn; returns the list of names that were looked up."""
    looked_up: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host, port, *rest, **options):
        if host[0].isdigit():
            return real(host, port, *rest, **options)
        looked_up.append(host)
        address = addresses[min(len(looked_up), len(addresses)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr("lumen_hpc.language.http_client.socket.getaddrinfo", getaddrinfo)
    return looked_up


def test_an_allowed_name_that_resolves_to_a_public_address_is_refused_over_http(monkeypatch):
    resolve_to(monkeypatch, "8.8.8.8")
    with pytest.raises(UserError, match=r"public address 8\.8\.8\.8"):
        ask("http://llm.site.example:8000/v1", ["http://llm.site.example:8000"])


def test_localhost_that_is_another_machine_is_refused(monkeypatch):
    resolve_to(monkeypatch, "10.0.0.7")
    with pytest.raises(UserError, match="not this machine"):
        ask("http://localhost:8000/v1", ["http://localhost:8000"])


def test_a_name_that_changes_its_address_between_requests_changes_nothing(monkeypatch):
    with serving() as server:
        port = server.server_address[1]
        connect = socket.create_connection
        connected: list[str] = []

        def create_connection(address, *rest):
            connected.append(address[0])
            return connect(address, *rest)

        monkeypatch.setattr("lumen_hpc.language.http_client.socket.create_connection", create_connection)
        resolve_to(monkeypatch, "127.0.0.1", "8.8.8.8")
        url = f"http://llm.site.example:{port}/v1"
        engine = open_engine(EngineSettings(kind="server", model="m", endpoint=url), [url])
        for _ in range(3):
            engine.chat(PROMPT * 4, max_tokens=1, temperature=0.0, seed=0)
    assert set(connected) == {"127.0.0.1"}


def test_one_public_address_among_several_is_enough_to_refuse():
    with pytest.raises(UserError, match="public address"):
        check_addresses("http", "llm.site.example", ["10.0.0.1", "8.8.8.8"])
    check_addresses("http", "8.8.8.8", ["8.8.8.8"])
    check_addresses("https", "llm.site.example", ["8.8.8.8"])


def test_https_demands_the_certificate_of_the_name():
    with serving() as server, pytest.raises(UserError, match="does not answer"):
        ask(server.url.replace("http:", "https:"), [server.url.replace("http:", "https:")])
    assert server.requests == []


@pytest.mark.parametrize("answer", [{}, [], {"choices": []}, {"choices": [{"message": None}]}, "MARKER"])
def test_an_answer_of_another_form_is_an_error_without_its_text(answer):
    with serving(answer=answer) as server, pytest.raises(UserError, match="chat completions") as caught:
        ask(server.url, [server.url])
    assert "MARKER" not in str(caught.value)


def answer(text: object = "fine", logprobs: object = None) -> dict:
    return {"choices": [{"message": {"content": text}, "logprobs": logprobs}]}


def top(logprob: float, token: str = "1") -> dict:
    return {"content": [{"top_logprobs": [{"token": token, "logprob": logprob}]}]}


@pytest.mark.parametrize(
    "given",
    [
        answer(text=5), answer(text={"MARKER": 1}),
        answer(text=["MARKER"]), answer(logprobs=top(1e308)), answer(logprobs=top(float("nan"))),
        answer(logprobs=top(7.0)), answer(logprobs=top(0.1)), answer(logprobs=top(float("inf"))),
        answer(logprobs={"content": [{}]}), answer(logprobs="MARKER"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_in_an_answer_is_an_error_without_its_text(given):
    """A probability of 1096 would be a score; text in a number's place would be in the shard."""
    with serving(answer=given) as server, pytest.raises(UserError, match="chat completions") as caught:
        ask(server.url, [server.url])
    assert "MARKER" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b'{"a":' * 200_000, b"MARKER", b"\xff\xfe", b"", b"1" * 10_000, b'{"choices": [NaN'],
)  # fmt: skip
def test_bytes_that_are_no_json_are_an_error_without_them(content):
    with serving(answer=content) as server, pytest.raises(UserError, match="does not answer") as caught:
        ask(server.url, [server.url])
    assert "MARKER" not in str(caught.value)


def test_half_a_character_does_not_keep_a_shard_from_being_written(tmp_path):
    from lumen_hpc.data.records import write_jsonl

    with serving(answer=answer(text="fine \ud83d\udc00x \ud800")) as server:
        (completion,) = ask(server.url, [server.url])
    assert write_jsonl(tmp_path / "shard.jsonl", [{"text": completion.text}]) == 1


class Slow(BaseHTTPRequestHandler):
    """Answers a byte at a time, for ever: each comes within the timeout of a socket."""

    server: ThreadingHTTPServer
    form = ""

    def do_POST(self) -> None:
        start = {"header": b"HTTP/1.1 200 OK\r\nX: ", "body": b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n",
                 "open end": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", "continue": b""}  # fmt: skip
        repeated = b"HTTP/1.1 100 Continue\r\n\r\n" if self.form == "continue" else b" "
        self.wfile.write(start[self.form])
        try:
            while True:
                self.wfile.write(repeated)
                time.sleep(0.05)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("form", ["header", "body", "open end", "continue"])
def test_a_server_that_answers_a_byte_at_a_time_does_not_keep_a_job_for_ever(form):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Slow,), {"form": form}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        client = Client(f"http://127.0.0.1:{server.server_address[1]}", "key", timeout=0.5, retries=0, restricted=True)
        with pytest.raises(TimeoutError, match=r"no whole answer within 0\.5 s"):
            client.post("/chat/completions", {})
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_that_says_nothing_is_named_alike_whichever_clock_is_first(monkeypatch):
    """The socket's own timeout may come before the one of the whole request, on a machine that does other things."""
    monkeypatch.setattr("lumen_hpc.language.http_client.threading.Timer.start", lambda timer: None)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = Client(f"http://127.0.0.1:{silent.getsockname()[1]}", "key", timeout=0.1, retries=0, restricted=True)
        with pytest.raises(TimeoutError, match=r"no whole answer within 0\.1 s"):
            client.post("/chat/completions", {})


@pytest.mark.parametrize("address", ["::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1", "100.64.0.1", "fec0::1"])
def test_another_spelling_of_a_public_address_is_one(address):
    with pytest.raises(UserError, match="public address"):
        check_addresses("http", "llm.site.example", [address])
    with pytest.raises(UserError, match="not this machine"):
        check_addresses("http", "localhost", ["0.0.0.0"])


def test_an_overloaded_server_is_asked_again_and_a_refusal_is_not():
    with serving(status=503) as server, pytest.raises(UserError, match="answered 503"):
        ask(server.url, [server.url])
    assert len(server.requests) == 5
    with serving(status=401) as server, pytest.raises(UserError, match="answered 401"):
        ask(server.url, [server.url])
    assert len(server.requests) == 1


def test_no_server_is_allowed_by_default():
    from lumen_hpc.config.profile import DataUse

    assert DataUse().endpoints == []
