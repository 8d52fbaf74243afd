"""The data-use gate for servers: refused before anything is sent."""

from __future__ import annotations

import pytest

from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.errors import UserError
from lumen_hpc.language.endpoints import check_endpoint
from lumen_hpc.language.engine import open_engine

LOCAL = ["http://localhost:8000", "http://127.0.0.1:8000/v1", "https://llm.site.example:8443/v1"]


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://localhost:8000/v1",
        "http://127.0.0.1:8000/v1",
        "https://llm.site.example:8443/v1",
        "http://LOCALHOST:8000/v1",
    ],
)
def test_an_allowed_endpoint_passes(endpoint):
    check_endpoint(endpoint, LOCAL)


@pytest.mark.parametrize(
    "endpoint",
    [
        "https://api.example.com/v1",
        "http://localhost.evil.example/v1",
        "http://localhost:x@evil.example/v1",
        "http://localhost@evil.example/v1",
        "https://localhost/v1",
        "http://127.0.0.10:8000/v1",
        "http://127.0.0.1:8001/v1",
        "http://localhost/v1",
        "https://llm.site.example/v1",
        "https://llm.site.example:8443/v2",
        "https://llm.site.example:8443/v1/../v2",
        "https://llm.site.example:8443/v10",
        "",
        "localhost:8000",
    ],
)
def test_any_other_endpoint_is_refused(endpoint):
    with pytest.raises(UserError):
        check_endpoint(endpoint, LOCAL)


def test_an_allowed_entry_without_a_port_is_refused():
    with pytest.raises(UserError, match="has no port"):
        check_endpoint("http://localhost:8000/v1", ["http://localhost"])


def test_an_empty_list_refuses_everything_and_none_nothing():
    with pytest.raises(UserError, match="allowed are none"):
        check_endpoint("http://localhost:8000", [])
    check_endpoint("https://api.example.com/v1", None)


def test_a_password_in_an_endpoint_is_refused_and_not_repeated():
    for endpoint in ("https://me:hunter2@api.example.com/v1", "ftp://me:hunter2@api.example.com"):
        with pytest.raises(UserError) as caught:
            check_endpoint(endpoint, None)
        assert "hunter2" not in str(caught.value)


def test_an_engine_checks_before_it_connects():
    with pytest.raises(UserError, match="may not see restricted data"):
        open_engine(EngineSettings(kind="server", model="m", endpoint="https://api.example.com/v1"), LOCAL)


def test_an_engine_without_a_model_says_so():
    with pytest.raises(UserError, match=r"engine\.model is empty"):
        open_engine(EngineSettings(kind="vllm"))
