"""What surrounds the server: its key, its door, its image reader, its words, and why it ended."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lumen_hpc.config.schema import Serve
from lumen_hpc.data.images import grey_levels
from lumen_hpc.errors import UserError
from lumen_hpc.serving import guard, media, supervisor


def _address(**more) -> supervisor.Address:
    fields = {"host": "127.0.0.1", "port": 8000, "key": "secret", "node": "n7", "model": "lumen"}
    return supervisor.Address(**fields | more)


def test_the_address_is_readable_by_the_user_alone_and_goes_with_the_server(tmp_path):
    (tmp_path / "server.json").write_text("left by a killed server")
    with supervisor.publish(tmp_path, _address()):
        file = tmp_path / "server.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert supervisor.read_address(tmp_path) == _address()
    assert supervisor.read_address(tmp_path) is None


def test_the_tunnel_reaches_loopback_through_the_node_and_a_nodes_address_through_the_login():
    page = "http://127.0.0.1:9000/k/"
    assert shlex.split(_address(login="login1", page=page).ssh) == [
        "ssh", "-N", "-L", "8000:127.0.0.1:8000", "-L", "9000:127.0.0.1:9000", "-J", "login1", "n7",
    ]  # fmt: skip
    assert _address(host="10.0.0.7", login="login1").ssh == "ssh -N -L 8000:10.0.0.7:8000 login1"
    assert _address().ssh == ""
    assert not any("ssh" in line for line in _address().lines())


def test_the_end_of_a_job_with_a_time_limit_is_shown():
    lines = "\n".join(_address(ends=time.time() + 7290).lines())
    assert re.search(r"until    20\d\d-\d\d-\d\d \d\d:\d\d, in 2 h 1 min", lines)
    assert "until" not in "\n".join(_address().lines())


def test_a_server_never_listens_on_all_interfaces():
    assert supervisor.host_address("loopback") == "127.0.0.1"
    assert supervisor.host_address("node") not in ("0.0.0.0", "")


@pytest.mark.parametrize(("addresses", "host"), [(["127.0.1.1", "10.1.2.3"], "10.1.2.3"), (["127.0.1.1"], "127.0.1.1")])
def test_of_the_addresses_of_a_nodes_name_one_is_taken_that_others_reach(monkeypatch, addresses, host):
    monkeypatch.setattr(supervisor.socket, "gethostbyname_ex", lambda name: (name, [], addresses))
    assert supervisor.host_address("node") == host


@pytest.mark.parametrize(("host", "end"), [("127.0.1.1", "-J login n1"), ("10.1.2.3", "login")])
def test_behind_a_tunnel_the_page_has_a_local_address(host, end):
    address = supervisor.Address(
        host=host, port=80, key="k", node="n1", login="login", page=f"http://{host}:81/key/"
    )  # fmt: skip
    assert address.ssh == f"ssh -N -L 80:{host}:80 -L 81:{host}:81 {end}"
    assert address.lines()[-1].split() == ["and", "http://127.0.0.1:81/key/"]


def test_a_taken_port_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"serve\.port={port} cannot be used .*0 takes a free one"):
            supervisor.free_port("127.0.0.1", port)
        with pytest.raises(UserError, match=rf"serve\.page_port={port} cannot be used"):
            supervisor.listen("127.0.0.1", port, "serve.page_port")
    assert supervisor.free_port("127.0.0.1", 0) > 0


def test_the_key_is_on_no_command_line(tmp_path):
    settings = Serve(images=[str(tmp_path)])
    words = supervisor.server_arguments(settings, tmp_path, tmp_path / "t", "float32", "127.0.0.1", 8000, gpu=False)
    variables = supervisor.server_environment(settings, "the-key")
    assert "the-key" not in " ".join(words)
    assert variables[guard.KEY] == "the-key" and variables[media.FOLDERS] == json.dumps([str(tmp_path)])
    assert len({supervisor.new_key() for _ in range(50)}) == 50 and len(supervisor.new_key()) >= 40


@pytest.mark.parametrize(
    ("log", "hint"),
    [
        ("ValueError: (16 GiB KV cache is needed, which is larger than the available KV cache memory (4 GiB). Based on "
         "the available memory, the estimated maximum model length is 2048. Try", r"lower it \(2048 fits\), or raise"),
        ("ValueError: (16 GiB KV cache is needed, which is larger than the available KV cache memory (0 GiB). Try",
         r"serve\.max_model_len does not fit .*: lower it, or raise serve\.gpu_memory"),
        ("ValueError: No available memory for the cache blocks.", r"lower serve\.max_model_len"),
        ("torch.OutOfMemoryError: CUDA out of memory.", r"serve\.tensor_parallel"),
        ("OSError: [Errno 98] Address already in use", r"serve\.port is taken"),
        ("Value error, Total number of attention heads (28) must be divisible by tensor parallel size (3).",
         r"serve\.tensor_parallel does not divide"),
        ("KeyError: 'something'\nbye", r"ended with code 3: KeyError: 'something'"),
        ("(EngineCore pid=7) ERROR [core.py] lumen_hpc.errors.UserError: llm/model.safetensors is cut: copy it again\n"
         "RuntimeError: Engine core initialization failed. See root cause above.",
         r"the server ended: llm/model\.safetensors is cut: copy it again \(log: "),
        ("(EngineCore) ERROR [core.py] KeyError: 'x'\nRuntimeError: Engine core initialization failed. See root "
         "cause above.", r"ended with code 3: \(EngineCore\) ERROR .* KeyError: 'x'"),
        ("", "it left no error"),
    ],
)  # fmt: skip
def test_why_it_ended_is_one_line_with_the_setting_that_helps(tmp_path, log, hint):
    with pytest.raises(UserError, match=hint) as caught:
        raise UserError(supervisor.explain(log, 3, tmp_path / "server.log"))
    assert "\n" not in str(caught.value)


def test_a_server_without_a_key_does_not_start(tmp_path):
    pytest.importorskip("vllm")
    words = [sys.executable, "-m", "lumen_hpc.serving.server", str(tmp_path), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.run(words, env=os.environ | {guard.KEY: ""}, capture_output=True, text=True, timeout=300)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1] == (
        "VLLM_API_KEY is empty: a server without a key would answer everybody on its node"
    )


def test_vllms_own_words_about_memory_and_length_are_those_that_are_looked_for(tmp_path):
    pytest.importorskip("vllm")
    from vllm.v1.core import kv_cache_utils

    for available, hint in ((0, "lower serve.max_model_len, raise"), (1000, "lower it (512 fits)")):
        with pytest.raises(ValueError) as caught:
            kv_cache_utils._check_enough_kv_cache_memory(available, lambda: 2000, 4096, lambda free: 512)
        assert hint in supervisor.explain(f"ValueError: {caught.value}", 1, tmp_path / "server.log")
    package = Path(kv_cache_utils.__file__).parents[2]
    for words, file in (
        ("Free memory on device", "v1/worker/utils.py"),
        ("than the derived max_model_len", "config/model.py"),
        ("must be divisible by tensor parallel size", "config/model.py"),
    ):
        assert words in (package / file).read_text()


async def _status(path: str, headers: list, kind: str = "http") -> list[dict]:
    sent: list[dict] = []

    async def app(scope, receive, send):
        await send({"status": 200})

    async def send(message):
        sent.append(message)

    await guard.RequireKey(app)({"type": kind, "path": path, "headers": headers}, None, send)
    return sent


@pytest.mark.parametrize("path", ["/v1/models", "/v1/chat/completions", "/tokenize", "/invocations", "/metrics"])
def test_every_path_but_health_needs_the_key(monkeypatch, path):
    monkeypatch.setenv(guard.KEY, "right")

    def status(*headers):
        return asyncio.run(_status(path, list(headers)))[0]["status"]

    assert status() == status((b"authorization", b"Bearer wrong")) == status((b"authorization", b"right")) == 401
    assert status((b"authorization", b"Bearer right")) == 200
    assert asyncio.run(_status("/health", []))[0]["status"] == 200
    assert asyncio.run(_status(path, [], "websocket"))[0]["type"] == "websocket.close"
    refused = asyncio.run(_status(path, []))[0]["headers"]
    assert (b"www-authenticate", b"Bearer") in refused, "a client learns which key to send"
    monkeypatch.setenv(guard.KEY, "")
    assert asyncio.run(_status(path, [(b"authorization", b"Bearer ")]))[0]["status"] == 401


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_images_are_read_from_the_request_and_from_allowed_folders_only(tmp_path):
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    data = _png(pixels)
    inside, outside = tmp_path / "in" / "a b.png", tmp_path / "out.png"
    inside.parent.mkdir()
    for file in (inside, outside):
        file.write_bytes(data)
    (tmp_path / "in" / "link.png").symlink_to(outside)
    folders = [tmp_path / "in"]
    for head in ("data:image/png;base64", "DATA:IMAGE/PNG;BASE64", "data:image/png;name=a.png;base64"):
        assert media.read_image_url(f"{head},{base64.b64encode(data).decode()}", folders) == data
    assert media.read_image_url(f"file://{tmp_path}/in/a%20b.png", folders) == data
    for url, message in (
        (f"file://{outside}", "lies outside the folders of serve.images"),
        (f"file://{tmp_path}/in/link.png", "lies outside"),
        (f"file://{tmp_path}/in/../out.png", "lies outside"),
        (f"file://{tmp_path}/in/none.png", "No such file"),
        ("https://example.org/a.png", "fetches no addresses"),
        ("file://elsewhere/in/a.png", "fetches no addresses"),
        ("data:image/png,abc", "base64 data URL"),
        ("data:image/png;base64,***", "base64 is broken"),
        ("data:image/png;base64,\N{LATIN SMALL LETTER U WITH DIAERESIS}", "base64 is broken"),
        ("http://[::1", "the address of an image is none"),
        ("file://[x/a.png", "the address of an image is none"),
    ):
        with pytest.raises(UserError, match=message):
            media.read_image_url(url, folders)
    assert np.array_equal(media.decode_picture(data), pixels)


def test_a_radiograph_of_16_bits_is_refused_and_a_dicom_decoded_as_in_training():
    from pydicom.data import get_testdata_file

    deep = _png((np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8))
    with pytest.raises(UserError, match="a PNG of 16 bits"):
        media.decode_picture(deep)
    path = get_testdata_file("RG1_UNCR.dcm") or get_testdata_file("CT_small.dcm")
    with open(path, "rb") as file:
        assert np.array_equal(media.decode_picture(file.read()), grey_levels(path))


@pytest.mark.parametrize("data", [b"", b"no image", _png(np.zeros((40, 40), np.uint8))[:45]])
def test_what_is_no_image_is_said_in_one_line(data):
    with pytest.raises(UserError, match=r"the image (is truncated|cannot be read: give a whole JPG, PNG or DICOM)"):
        media.decode_picture(data)


def test_a_killed_server_takes_its_engine_along_and_says_what_may_have_killed_it(tmp_path, monkeypatch):
    """vLLM's engine is a process of its own, which would go on and hold the GPU."""
    import psutil

    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho 'WARNING can cause OSError: [Errno 24]'\nsleep 300 & echo $!\nkill -9 $$\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    server = supervisor.Server([], {}, log := tmp_path / "server.log")
    server._process.wait(timeout=30)
    with pytest.raises(UserError, match=r"the server was killed, as where memory runs out: raise .*mem_gb"):
        server.require_alive()
    engine = psutil.Process(int(log.read_text().split()[-1]))
    server.stop()
    engine.wait(timeout=30)
    assert supervisor.explain("WARNING can cause OSError", 1, log).startswith(
        "the server ended with code 1: it left no"
    )


def test_settings_reach_the_server(tmp_path):
    settings = Serve(max_images=2, max_model_len=512, tensor_parallel=4, gpu_memory=0.5)
    words = supervisor.server_arguments(settings, tmp_path, tmp_path / "t", "bfloat16", "127.0.0.1", 8000, gpu=True)
    assert "--cpu-offload-gb" not in words
    offloading = supervisor.server_arguments(
        replace(settings, cpu_offload_gb=4.0), tmp_path, tmp_path / "t", "bfloat16", "127.0.0.1", 8000, gpu=True
    )
    assert offloading[offloading.index("--cpu-offload-gb") + 1] == "4.0"
    options = dict(zip(words[1::2], words[2::2]))
    assert options["--mm-processor-cache-gb"] == "0", "else a refused request leaves vLLM's processes unlike"
    assert json.loads(options["--limit-mm-per-prompt"]) == {"image": 2}
    assert (options["--max-model-len"], options["--tensor-parallel-size"]) == ("512", "4")
    assert "--gpu-memory-utilization" in words and "0.5" in words
