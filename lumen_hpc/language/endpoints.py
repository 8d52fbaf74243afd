"""The data-use gate for language model servers: restricted data goes only to endpoints that the profile allows."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from lumen_hpc.errors import UserError

PORTS = {"http": 80, "https": 443}


def check_endpoint(endpoint: str, allowed: Sequence[str] | None) -> None:
    """Refuses an endpoint that may not see the data, before anything is sent.

    `allowed` holds URL prefixes: scheme, host and port must be equal, and the path must begin with the prefix's. None
    means that the data may go anywhere. Both sides must write their port: a name without one would allow whoever
    listens on any port of that host. Raises UserError.
    """
    url = _parts(endpoint)
    if allowed is None:
        return
    for prefix in allowed:
        if _parts(prefix).port is None:
            raise UserError(f"profile.data_use.endpoints: {prefix} has no port; write it, as in http://node:8000/v1")
    if not any(_covers(_parts(prefix), url) for prefix in allowed):
        raise UserError(
            f"endpoint {url.scheme}://{url.hostname}:{url.port or '(no port)'} may not see restricted data; "
            f"allowed are {', '.join(allowed) or 'none'} (profile.data_use.endpoints)"
        )


def _parts(endpoint: str) -> SplitResult:
    """The parts of a URL; the error message omits what might be a password."""
    try:
        url = urlsplit(endpoint)
        port_is_a_number = url.port is None or url.port > 0
    except ValueError:
        raise UserError("an endpoint is no URL; it looks like http://node:8000/v1") from None
    if url.scheme not in PORTS or not url.hostname or not port_is_a_number:
        raise UserError(f"endpoint '{endpoint.rsplit('@', 1)[-1]}' is no URL; it looks like http://node:8000/v1")
    if url.query or url.fragment or url.path.rstrip("/").endswith("/chat/completions"):
        raise UserError(
            f"endpoint at {url.hostname} is more than a base URL, to which /chat/completions is joined; it looks like "
            "http://node:8000/v1"
        )
    if url.username is not None or url.password is not None:
        raise UserError(
            f"endpoint at {url.hostname} carries a name or password; leave it out and set LUMEN_API_KEY instead"
        )
    return url


def _covers(prefix: SplitResult, url: SplitResult) -> bool:
    path = prefix.path.rstrip("/")
    return (
        (prefix.scheme, prefix.hostname, prefix.port) == (url.scheme, url.hostname, url.port)
        and (url.path == path or url.path.startswith(f"{path}/"))
        and ".." not in url.path.split("/")
    )
