"""A small HTTP client for language model servers that sends a request to one checked address and nowhere else.

It follows no redirect and reads no proxy from the environment: an answer of 307 would carry the prompt to a server
that nobody allowed, and HTTP_PROXY would carry the prompt and the key. It resolves the host's name once, checks its
addresses and then connects to the first of these that takes a connection, and to it alone.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from lumen_hpc.errors import UserError
from lumen_hpc.language.endpoints import PORTS

MOST_BYTES = 64 << 20
"""Longest answer that the client reads."""
PAUSE_SECONDS = 0.5
"""Pause after the first failure; it doubles with each one."""
RETRYABLE = frozenset({408, 429, *range(500, 600)})
"""Status codes after which the same request may succeed."""
FAILURES = (OSError, http.client.HTTPException, ValueError, RecursionError)
"""What a lost connection or an answer that is not JSON raises."""


class StatusError(Exception):
    """The server answered with another status than 200.

    `retry_after` is the pause that it asks for [s]; `code` and `param` are those of an error as OpenAI writes it, and
    may be any text.
    """

    def __init__(self, status: int, retry_after: float, content: bytes) -> None:
        super().__init__(f"status {status}")
        self.status, self.retry_after = status, retry_after
        try:
            error = json.loads(content)["error"]
            self.code, self.param = error.get("code"), error.get("param")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.code = self.param = None


class Client:
    """Posts JSON below one base URL; threads may share it, each keeps its own connection."""

    def __init__(self, endpoint: str, key: str, *, timeout: float, retries: int, restricted: bool) -> None:
        """`timeout` [s] of one request. With `restricted`, the server's addresses must pass `check_addresses`."""
        url = urlsplit(endpoint)
        self._scheme, self._host, self._path = url.scheme, url.hostname or "", url.path.rstrip("/")
        self._port = url.port or PORTS[url.scheme]
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "Host": url.netloc}
        self._timeout, self._retries = timeout, retries
        self._restricted = restricted
        self._addresses: list[str] = []
        self._lock, self._local = threading.Lock(), threading.local()

    def post(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        """The server's JSON answer. Raises StatusError, UserError for an address that is refused, or one of FAILURES.

        It repeats a request after a lost connection or a status of RETRYABLE, `retries` times, each after the pause
        that the server asks for, if it is shorter than `timeout`.
        """
        body = json.dumps(value).encode()
        for attempt in range(self._retries + 1):
            pause = PAUSE_SECONDS * 2**attempt
            try:
                return self._post(f"{self._path}{path}", body)
            except StatusError as error:
                if error.status not in RETRYABLE or attempt == self._retries:
                    raise
                pause = max(pause, min(error.retry_after, self._timeout))
            except (OSError, http.client.HTTPException):
                self._close()
                if attempt == self._retries:
                    raise
            time.sleep(pause)
        raise AssertionError("the loop returns or raises")

    def _post(self, path: str, body: bytes) -> dict[str, Any]:
        connection = self._connection()
        with self._deadline(connection.sock):
            connection.request("POST", path, body, self._headers)
            answer = connection.getresponse()
            content = answer.read(MOST_BYTES + 1)
            if answer.length and len(content) <= MOST_BYTES:  # read() of so many bytes takes fewer for the whole
                raise http.client.IncompleteRead(b"", answer.length)
        if answer.will_close or len(content) > MOST_BYTES:
            self._close()
        if answer.status != 200:  # a redirect too: the next server was not checked
            raise StatusError(answer.status, _pause_seconds(answer.headers.get("Retry-After", "")), content)
        if len(content) > MOST_BYTES:
            raise ValueError(f"the answer has more than {MOST_BYTES} bytes")
        return json.loads(content)

    @contextmanager
    def _deadline(self, stream: socket.socket) -> Iterator[None]:
        """Ends the connection when the block takes longer than a request may.

        A socket's own timeout counts from byte to byte: a server that sends one now and then would never reach it.
        """
        expired = threading.Event()

        def abort() -> None:
            expired.set()
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self._timeout, abort)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            if expired.is_set() or isinstance(error, TimeoutError):  # the socket's own may come first
                raise TimeoutError(f"no whole answer within {self._timeout:g} s") from error
            raise
        finally:
            timer.cancel()
        if expired.is_set():  # what was read looks whole where its end is that of the connection
            raise TimeoutError(f"no whole answer within {self._timeout:g} s")

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's connection, to an address that was checked."""
        connection = getattr(self._local, "connection", None)
        if connection is None:
            stream = self._connect()
            if self._scheme == "https":  # the certificate must be that of the name
                stream = ssl.create_default_context().wrap_socket(stream, server_hostname=self._host)
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
            connection.auto_open = 0  # a lost connection is opened here again, never by name
            connection.sock = stream
            self._local.connection = connection
        return connection

    def _close(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _connect(self) -> socket.socket:
        """A connection to the first address that takes one: `localhost` is ::1 first, where vLLM does not listen."""
        last_error = OSError("no address")
        for address in self._resolve():
            try:
                stream = socket.create_connection((address, self._port), self._timeout)
            except OSError as error:
                last_error = error
            else:
                self._addresses = [address]
                return stream
        raise last_error

    def _resolve(self) -> list[str]:
        """The server's addresses, resolved and checked once: a name that changes them later changes nothing."""
        with self._lock:
            if not self._addresses:
                try:
                    address_infos = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                except UnicodeError as error:  # an empty or overlong part: not a ValueError of the answer
                    raise OSError("no host has this name") from error
                addresses = [str(entry[4][0]) for entry in address_infos]
                if self._restricted:
                    check_addresses(self._scheme, self._host, addresses)
                self._addresses = addresses
            return self._addresses


def _pause_seconds(retry_after: str) -> float:
    """The pause of a Retry-After, in seconds or up to a date; 0 for any other text."""
    try:
        if retry_after.strip().isdecimal():
            return float(retry_after)
        return parsedate_to_datetime(retry_after).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0


def check_addresses(scheme: str, host: str, addresses: Iterable[str]) -> None:
    """Raises UserError if one of a host's addresses may not see restricted data.

    Over https the certificate identifies the server, at any address. Over http the address alone does, and the text
    travels in the clear: it must be the host itself, written as an address, or loopback or private. `localhost` must
    be loopback.
    """
    for address in addresses:
        ip = ipaddress.ip_address(address.partition("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip  # older Pythons call every ::ffff:… private
        if host == "localhost" and not ip.is_loopback:
            raise UserError(f"localhost resolves to {address}, which is not this machine; correct /etc/hosts")
        if scheme == "http" and host != address and not (ip.is_loopback or ip.is_private):
            raise UserError(
                f"{host} resolves to the public address {address}, and http would send restricted data there in the "
                "clear; use https, or list the server by its address in profile.data_use.endpoints"
            )
