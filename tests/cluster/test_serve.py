"""A model served by a job of a real cluster: reached, handed over near the time limit, and cancelled."""

from __future__ import annotations

import stat
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from lumen_hpc import nvila
from lumen_hpc.serving.supervisor import Address, read_address
from sandbox.checkout import ROOT, make
from sandbox.slurm import Cluster
from tests.cluster.conftest import Site
from tests.serving.conftest import make_family


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Site:
    """A checkout with the project's own stages."""
    return Site(make(tmp_path / "checkout", jobs=ROOT / "jobs"), cluster, tmp_path / "runs")


def _ask(address: Address) -> str:
    from openai import OpenAI

    client = OpenAI(base_url=address.url, api_key=address.key, max_retries=0)
    messages = [{"role": "user", "content": "Is the heart size normal?"}]
    return client.chat.completions.create(model="lumen", messages=messages, max_tokens=4).choices[0].message.content


@pytest.mark.timeout(3600)
def test_a_server_hands_over_near_its_time_limit_and_ends_when_cancelled(site: Site, tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    weights = nvila.save(make_family("resize"), tmp_path / "model")
    words = [f"weights={weights}", "serve.max_model_len=512", "serve.successor=true", "profile.resources.gpu.mem_gb=16"]
    site.launch("stage=serve", "run=served", *words, "profile.resources.gpu.successors=1")
    folder = site.runs / "served" / "serve"

    def published() -> Address | None:
        return read_address(folder)

    site.wait(lambda: published() is not None, 400, "the server's address")
    first = published()
    assert first is not None and first.host == "127.0.0.1" and first.node.startswith("n")
    assert stat.S_IMODE((folder / "server.json").stat().st_mode) == 0o600
    shown = site.launch("status", "run=served")
    assert first.ends > time.time() and f"until    {datetime.fromtimestamp(first.ends):%Y-%m-%d %H:%M}, in " in shown
    assert first.key in shown and first.url in shown and f"-J {first.login} {first.node}" in shown
    answer = _ask(first)

    subprocess.run(
        ["scancel", "--signal=USR2", "--batch", first.job], env=site.cluster.environment, check=True, timeout=60
    )
    site.wait(lambda: (now := published()) is not None and now.key != first.key, 400, "the successor's address")
    second = published()
    assert second is not None and second.job != first.job
    logs = [path.read_text(errors="replace") for path in (folder / "logs").iterdir()]
    assert any("asked to stop: the time limit is near" in text for text in logs), "the end is announced"
    assert _ask(second) == answer

    site.launch("cancel", "run=served")
    site.wait(lambda: published() is None, 120, "the end of the server")
    listed = subprocess.run(["ps", "axww"], capture_output=True, text=True).stdout
    site.wait(lambda: str(weights) not in _processes(), 60, f"the end of its processes: {listed[-500:]}")
    assert second.key not in site.launch("status", "run=served")


def _processes() -> str:
    listed = subprocess.run(["ps", "axww"], capture_output=True, text=True).stdout
    return "\n".join(line for line in listed.splitlines() if "serving.server" in line)
