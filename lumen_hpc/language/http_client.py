"""A small HTTP client for language model servers that sends a request to one checked address and nowhere else.

It follows no redirect and reads no proxy from the environment: an answer of 307 would carry the prompt to a server
that nobody allowed, and HTTP_PROXY would carry the prompt and the key. It resolves the host's name once, when the
client opens, checks the address and then connects to that address alone.
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
from typing import Any
from urllib.parse import urlsplit

from lumen_hpc.errors import UserError
from lumen_hpc.language.endpoints import PORTS

MOST_BYTES = 64 << 20
"""Longest answer that the client reads."""
PAUSE_SECONDS = 0.5
"""Pause after the first failure; it doubles with each one."""
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
"""Status codes after which the same request may succeed."""
FAILURES = (OSError, http.client.HTTPException, ValueError, RecursionError)
"""What a lost connection or an answer that is not JSON raises."""


class StatusError(Exception):
    """The server answered with another status than 200."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class Client:
    """Posts JSON below one base URL; threads may share it, each keeps its own connection."""

    def __init__(self, endpoint: str, key: str, *, timeout: float, retries: int, restricted: bool) -> None:
        """`timeout` [s] of one request. With `restricted`, the server's address must pass `checked_address`."""
        url = urlsplit(endpoint)
        self._scheme, self._host, self._path = url.scheme, url.hostname or "", url.path.rstrip("/")
        self._port = url.port or PORTS[url.scheme]
        self._headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", "Host": url.netloc}
        self._timeout, self._retries = timeout, retries
        self._restricted = restricted
        self._address = ""
        self._lock, self._own = threading.Lock(), threading.local()

    def post(self, path: str, value: dict[str, Any]) -> dict[str, Any]:
        """The server's JSON answer. Raises StatusError, UserError for an address that is refused, or one of FAILURES.

        It repeats a request after a lost connection or a status of RETRIED, `retries` times.
        """
        body = json.dumps(value).encode()
        for attempt in range(self._retries + 1):
            try:
                return self._post(f"{self._path}{path}", body)
            except StatusError as error:
                if error.status not in RETRIED or attempt == self._retries:
                    raise
            except (OSError, http.client.HTTPException):
                self._close()
                if attempt == self._retries:
                    raise
            time.sleep(PAUSE_SECONDS * 2**attempt)
        raise AssertionError("the loop returns or raises")

    def _post(self, path: str, body: bytes) -> dict[str, Any]:
        connection = self._connection()
        with self._in_time(connection.sock):
            connection.request("POST", path, body, self._headers)
            answer = connection.getresponse()
            content = answer.read(MOST_BYTES + 1)
        if answer.will_close or len(content) > MOST_BYTES:
            self._close()
        if answer.status != 200:  # a redirect too: the next server was not checked
            raise StatusError(answer.status)
        if len(content) > MOST_BYTES:
            raise ValueError(f"the answer has more than {MOST_BYTES} bytes")
        return json.loads(content)

    @contextmanager
    def _in_time(self, stream: socket.socket) -> Iterator[None]:
        """Ends the connection when the block takes longer than a request may.

        A socket's own timeout counts from byte to byte: a server that sends one now and then would never reach it.
        """
        over = threading.Event()

        def end() -> None:
            over.set()
            with suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(self._timeout, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            if over.is_set() or isinstance(error, TimeoutError):  # the socket's own may come first
                raise TimeoutError(f"no whole answer within {self._timeout:g} s") from error
            raise
        finally:
            timer.cancel()
        if over.is_set():  # what was read looks whole where its end is that of the connection
            raise TimeoutError(f"no whole answer within {self._timeout:g} s")

    def _connection(self) -> http.client.HTTPConnection:
        """This thread's connection, to the address that was checked."""
        connection = getattr(self._own, "connection", None)
        if connection is None:
            stream: socket.socket = socket.create_connection((self._resolved(), self._port), self._timeout)
            if self._scheme == "https":  # the certificate must be that of the name
                stream = ssl.create_default_context().wrap_socket(stream, server_hostname=self._host)
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)
            connection.auto_open = 0  # a lost connection is opened here again, never by name
            connection.sock = stream
            self._own.connection = connection
        return connection

    def _close(self) -> None:
        connection = getattr(self._own, "connection", None)
        if connection is not None:
            connection.close()
            self._own.connection = None

    def _resolved(self) -> str:
        """The server's address, resolved and checked once: a name that changes its address later changes nothing."""
        with self._lock:
            if not self._address:
                found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
                addresses = [str(entry[4][0]) for entry in found]
                self._address = (
                    checked_address(self._scheme, self._host, addresses) if self._restricted else addresses[0]
                )
            return self._address


def checked_address(scheme: str, host: str, addresses: Iterable[str]) -> str:
    """The first address of a host that may see restricted data; raises UserError if one of them may not.

    Over https the certificate identifies the server, at any address. Over http the address alone does, and the text
    travels in the clear: it must be the host itself, written as an address, or loopback or private. `localhost` must
    be loopback.
    """
    addresses = list(addresses)
    for address in addresses:
        place = ipaddress.ip_address(address.partition("%")[0])
        place = getattr(place, "ipv4_mapped", None) or place  # older Pythons call every ::ffff:… private
        if host == "localhost" and not place.is_loopback:
            raise UserError(f"localhost resolves to {address}, which is not this machine; correct /etc/hosts")
        if scheme == "http" and host != address and not (place.is_loopback or place.is_private):
            raise UserError(
                f"{host} resolves to the public address {address}, and http would send restricted data there in the "
                "clear; use https, or list the server by its address in profile.data_use.endpoints"
            )
    return addresses[0]
