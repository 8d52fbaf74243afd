"""The data-use gate for language model servers: restricted data goes only to endpoints that the profile allows."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import SplitResult, urlsplit

from lumen_hpc.errors import UserError

_PORTS = {"http": 80, "https": 443}


def check_endpoint(endpoint: str, allowed: Sequence[str] | None) -> None:
    """Refuses an endpoint that may not see the data, before anything is sent.

    `allowed` holds URL prefixes: scheme and host must be equal, and the port (any, where the prefix names none) and
    path must begin with the prefix's. None means that the data may go anywhere. Raises UserError.
    """
    url = _parts(endpoint)
    if allowed is None:
        return
    if not any(_covers(_parts(prefix), url) for prefix in allowed):
        raise UserError(
            f"endpoint {url.scheme}://{url.hostname} may not see restricted data; allowed are "
            f"{', '.join(allowed) or 'none'} (profile.data_use.endpoints)"
        )


def _parts(endpoint: str) -> SplitResult:
    """The parts of a URL; the error message omits what might be a password."""
    try:
        url = urlsplit(endpoint)
        port_is_a_number = url.port is None or url.port > 0
    except ValueError:
        raise UserError("an endpoint is no URL; it looks like http://node:8000/v1") from None
    if url.scheme not in _PORTS or not url.hostname or not port_is_a_number:
        raise UserError(f"endpoint '{endpoint.rsplit('@', 1)[-1]}' is no URL; it looks like http://node:8000/v1")
    if url.username is not None or url.password is not None:
        raise UserError(
            f"endpoint at {url.hostname} carries a name or password; leave it out and set LUMEN_API_KEY instead"
        )
    return url


def _covers(prefix: SplitResult, url: SplitResult) -> bool:
    path = prefix.path.rstrip("/")
    return (
        (prefix.scheme, prefix.hostname) == (url.scheme, url.hostname)
        and prefix.port in (None, url.port or _PORTS[url.scheme])
        and (url.path == path or url.path.startswith(f"{path}/"))
        and ".." not in url.path.split("/")
    )
