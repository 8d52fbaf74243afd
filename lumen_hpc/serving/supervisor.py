"""Starts the server, publishes its address, watches it, and stops it.

Where it listens, its key and the ssh line are in `serve/server.json` of the run, readable by the user alone, as long
as the server runs; `status` prints them. The key is new for every job and reaches the server by its environment.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import IO

from lumen_hpc.config.schema import Serve
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign
from lumen_hpc.watchdog import Beat

from . import guard

ADDRESS_FILE = "server.json"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens, and how to reach it from elsewhere."""

    host: str
    """Address it is bound to: loopback, or the node's own."""
    port: int
    key: str
    node: str
    process: int = 0
    """Id of the server's process on its node."""
    job: str = ""
    """Slurm's id of the job; empty on this machine."""
    login: str = ""
    """Host the job was submitted from; empty where no tunnel is needed."""
    model: str = ""
    page: str = ""
    """Address of the page in a browser, its key included; empty without one."""
    ends: float = 0.0
    """When the job's time limit ends it, in seconds since 1970; 0 where there is none."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/v1"

    @property
    def ssh(self) -> str:
        """The command that makes the server's ports local ones; empty where they are."""
        if not self.login:
            return ""
        ports = [self.port, *([int(self.page.split(":")[2].split("/")[0])] if self.page else [])]
        tunnels = [word for port in ports for word in ("-L", f"{port}:{self.host}:{port}")]
        # A loopback address is reached on its node alone.
        ends = ["-J", self.login, self.node] if self.host.startswith("127.") else [self.login]
        return shlex.join(["ssh", "-N", *tunnels, *ends])

    def lines(self) -> list[str]:
        """What a user needs, one fact per line."""
        lines = [f"server   {self.url}  (model {self.model}, on {self.node})", f"key      {self.key}"]
        if self.ends:
            hours, minutes = divmod(max(int(self.ends - time.time()), 0) // 60, 60)
            lines.append(f"until    {datetime.fromtimestamp(self.ends):%Y-%m-%d %H:%M}, in {hours} h {minutes} min")
        if self.page:
            lines.append(f"page     {self.page}")
        if self.ssh:
            lines.append(f"tunnel   {self.ssh}")
            lines.append(f"         then http://127.0.0.1:{self.port}/v1")
            if self.page:
                lines.append(f"         and {self.page.replace(self.host, '127.0.0.1', 1)}")
        return lines


def read_address(folder: Path) -> Address | None:
    """The address in a step's folder; None where no server runs, or another user wrote it: `status` would call it."""
    try:
        return None if foreign(folder / ADDRESS_FILE) else Address(**json.loads((folder / ADDRESS_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return None


def is_listening(process: int, port: int) -> bool:
    """Whether this process of this machine listens at the port; another user may have taken it."""
    import psutil

    try:
        connections = psutil.Process(process).net_connections("tcp")
    except psutil.Error:  # it is gone, or another user's
        return False
    return any(connection.status == psutil.CONN_LISTEN and connection.laddr.port == port for connection in connections)


def is_healthy(host: str, port: int) -> bool:
    """Whether a healthy server answers, asked on its own node and without the environment's proxies."""
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


@contextmanager
def publish(folder: Path, address: Address) -> Iterator[None]:
    """Keeps the address in a file of mode 600 for the time of the block."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / ADDRESS_FILE
    file.unlink(missing_ok=True)
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as out:
        json.dump(asdict(address), out)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def new_key() -> str:
    return secrets.token_urlsafe(32)


def host_address(listen: str) -> str:
    """The address that `profile.data_use.listen` means on this machine: `loopback` or `node`; never all interfaces.

    Of the addresses of a node's name, one that other nodes reach; a loopback one where it has no other.
    """
    if listen == "loopback":
        return "127.0.0.1"
    addresses = socket.gethostbyname_ex(socket.gethostname())[2]
    return min(addresses, key=lambda address: address.startswith("127."))


def listen(host: str, requested: int, setting: str) -> socket.socket:
    """A socket that listens at port `requested`, or a free one if it is 0. Raises UserError if it is taken."""
    try:
        return socket.create_server((host, requested))
    except OSError as error:
        raise UserError(
            f"{setting}={requested} cannot be used on {host}: {error.strerror}; 0 takes a free one"
        ) from None


def free_port(host: str, requested: int, setting: str = "serve.port") -> int:
    """`requested`, or a free port if it is 0, for a server that opens it itself. Raises UserError if it is taken."""
    with listen(host, requested, setting) as probe:
        return probe.getsockname()[1]


def server_arguments(
    settings: Serve, folder: Path, template: Path, dtype: str, host: str, port: int, gpu: bool
) -> list[str]:
    """The arguments of `python -m lumen_hpc.serving.server`; answers are greedy unless a request asks otherwise."""
    words = [
        str(folder), "--host", host, "--port", str(port),
        "--served-model-name", settings.model,
        "--dtype", dtype,
        "--max-model-len", str(settings.max_model_len),
        "--limit-mm-per-prompt", json.dumps({"image": settings.max_images}),
        # A request refused after its image was read leaves the caches of vLLM's two processes unlike: 500 from then on.
        "--mm-processor-cache-gb", "0",
        "--tensor-parallel-size", str(settings.tensor_parallel),
        "--generation-config", "vllm",
        "--override-generation-config", json.dumps({"temperature": 0.0}),
        "--chat-template", str(template),
        "--chat-template-content-format", "openai",
        "--middleware", "lumen_hpc.serving.guard.RequireKey",
        "--disable-uvicorn-access-log",
        "--disable-log-stats",
    ]  # fmt: skip
    if gpu:
        words += ["--gpu-memory-utilization", str(settings.gpu_memory)]
        words += ["--cpu-offload-gb", str(settings.cpu_offload_gb)] if settings.cpu_offload_gb else []
    if importlib.util.find_spec("triton") is None:
        words.append("--enforce-eager")
    return words


def server_environment(settings: Serve, key: str) -> dict[str, str]:
    """What the server's process gets beside the job's own environment."""
    from . import media  # torch: `status` reads addresses without it

    return {
        guard.KEY: key,
        "VLLM_MEDIA_CONNECTOR": media.CONNECTOR,
        media.FOLDERS: json.dumps(settings.images),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "HF_HUB_OFFLINE": "1",
    }


class Server:
    """A running server process; its output goes to a log that holds no texts of requests."""

    def __init__(self, words: list[str], variables: dict[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        self._out: IO[bytes] = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lumen_hpc.serving.server", *words],
            env={**os.environ, **variables}, stdin=subprocess.DEVNULL, stdout=self._out, stderr=subprocess.STDOUT,
            process_group=0,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_until_ready(self, host: str, port: int, should_stop: Callable[[], bool], beat: Beat) -> bool:
        """True once it answers; False if it should stop first. Raises UserError if it ends before."""
        while not should_stop():
            self.require_alive()
            if is_listening(self.pid, port) and is_healthy(host, port):
                return True
            beat("loading the model")
            time.sleep(0.5)
        return False

    def require_alive(self) -> None:
        """Raises UserError with what the server's log says, and the setting that would help."""
        if self._process.poll() is not None:
            raise UserError(explain(self._log.read_text(errors="replace"), self._process.returncode, self._log))

    def stop(self) -> None:
        """Gives running answers 20 s to end, then ends the process."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with suppress(ProcessLookupError):  # vLLM's engine outlives a server that was killed, and holds the GPU
            os.killpg(self._process.pid, signal.SIGKILL)
        self._out.close()


_CAUSES = (  # vLLM's own messages; tests/serving/test_supervisor.py finds them in the installed version
    ("Free memory on device", "serve.gpu_memory asks for more GPU memory than is free: lower it, or take a free GPU"),
    ("No available memory for the cache blocks", "the GPU's memory is too small for this model and "
     "serve.max_model_len: lower serve.max_model_len, raise serve.gpu_memory or serve.tensor_parallel"),
    ("cache is needed, which is larger", "serve.max_model_len does not fit into the GPU's memory: lower it{fitting}, "
     "or raise serve.gpu_memory or serve.tensor_parallel"),
    ("out of memory", "the GPU's memory is too small: lower serve.max_model_len, or raise serve.tensor_parallel "
     "or serve.cpu_offload_gb"),
    ("address already in use", "serve.port is taken: 0 takes a free one"),
    ("must be divisible by tensor parallel size", "serve.tensor_parallel does not divide the model's attention heads: "
     "take one that does"),
    ("is greater than the derived max_model_len", "serve.max_model_len is longer than the model can read: lower it"),
)  # fmt: skip


def explain(log: str, code: int, path: Path) -> str:
    """One line on why a server ended: the setting that would help, or its last error."""
    model_length = re.search(r"estimated maximum model length is (\d+)", log)
    fitting = f" ({model_length[1]} fits)" if model_length else ""
    for words, hint in _CAUSES:
        if words.lower() in log.lower():
            return f"the server ended: {hint.format(fitting=fitting)} (log: {path})"
    if user_errors := re.findall(r"\bUserError: (.+)", log):  # of a process whose end vLLM then reports
        return f"the server ended: {user_errors[-1].strip()} (log: {path})"
    if code == -signal.SIGKILL:
        return f"the server was killed, as where memory runs out: raise profile.resources.gpu.mem_gb (log: {path})"
    noise = ("See root cause above", "WARNING")
    errors = [line.strip() for line in log.splitlines() if "Error" in line and not any(map(line.__contains__, noise))]
    return f"the server ended with code {code}: {errors[-1] if errors else 'it left no error'} (log: {path})"
