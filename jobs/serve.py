"""On request: a run's model as an OpenAI-compatible server, with a page beside it if `page=true`.

Reads the model's final weights, or those in `weights=FOLDER`. Writes no shards: it runs until its time limit, and
`serve/server.json`, readable by the user alone, says meanwhile where it listens (`python launch.py status`).
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lumen_hpc.cluster import run_model
from lumen_hpc.cluster.stage import Interrupted, Run, Shard, Stage, Task
from lumen_hpc.errors import UserError

if TYPE_CHECKING:
    from lumen_hpc.serving.supervisor import Address


def weights(run: Run) -> Path:
    """The folder that is served. Raises UserError if it is not there, or the model is not trained yet."""
    return run_model.weights_folder(run, run.settings.serve.model, run.settings.serve.weights)


def require(run: Run) -> None:
    """What would stop a server, before it is submitted."""
    folder = weights(run)
    settings, gpus = run.settings.serve, run.profile.resources["gpu"].gpus
    if settings.tensor_parallel > max(gpus, 1):
        raise UserError(
            f"serve.tensor_parallel={settings.tensor_parallel}, and profile.resources.gpu.gpus={gpus}: ask for as many"
        )
    longest = run_model.max_tokens(folder)
    if longest and settings.max_model_len > longest:
        raise UserError(
            f"serve.max_model_len={settings.max_model_len}: the language model in {folder} reads at most {longest} "
            "tokens; lower it"
        )
    if settings.page and settings.port == settings.page_port != 0:
        raise UserError(f"serve.page_port={settings.page_port} is serve.port too; 0 takes a free one")
    if missing_folders := [folder for folder in settings.images if not Path(folder).is_dir()]:
        raise UserError(f"serve.images: {missing_folders[0]} is not a folder")


STAGE = Stage(
    name="serve",
    paper="",
    about="OpenAI-compatible server",
    resources="gpu",
    settings=("serve",),
    on_request=True,
    require=require,
    successors=lambda settings: settings.serve.successor,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Serves until asked to stop; yields no row, so that the stage is never done."""

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        serve(task)
        raise Interrupted("the server was asked to stop")
        yield {}

    return process


def serve(task: Task) -> None:
    """Starts the server on this node, publishes its address, and watches it until it is asked to stop."""
    import torch

    from lumen_hpc.nvila.config_files import read_config
    from lumen_hpc.serving import supervisor
    from lumen_hpc.serving.hf_checkpoint import chat_template

    settings, folder = task.settings.serve, weights(task.run)
    (task.folder / supervisor.ADDRESS_FILE).unlink(missing_ok=True)  # of a server that was killed
    config = read_config(folder)
    host = supervisor.host_address(task.run.profile.data_use.listen)
    port = supervisor.free_port(host, settings.port)
    if settings.page:  # refused before the model is loaded
        supervisor.free_port(host, settings.page_port, "serve.page_port")
    key, gpu = supervisor.new_key(), torch.cuda.is_available()
    log = task.folder / "logs" / f"server-{os.environ.get('SLURM_JOB_ID', 'local')}.log"
    with tempfile.TemporaryDirectory() as scratch:
        template = Path(scratch) / "chat_template.jinja"
        template.write_text(chat_template(config))
        words = supervisor.server_arguments(
            settings, folder, template, "bfloat16" if gpu else config.dtype, host, port, gpu
        )
        server = supervisor.Server(words, supervisor.server_environment(settings, key), log)
        try:
            print(f"loading {folder} (log: {log})", flush=True)
            if not server.wait_until_ready(host, port, task.should_stop, task.beat):
                return
            address = supervisor.Address(
                host=host, port=port, key=key, node=socket.gethostname(), process=server.pid, model=settings.model,
                login=os.environ.get("SLURM_SUBMIT_HOST", ""), job=os.environ.get("SLURM_JOB_ID", ""),
                ends=_ends(task),
            )  # fmt: skip
            with _page(task, address, config.prompt_form.line) as address, supervisor.publish(task.folder, address):
                command = f"python launch.py status {task.run.arguments}"
                print(f"ready at {address.url}; {command} shows the key", flush=True)
                while not task.should_stop():
                    server.require_alive()
                    task.beat("serving")
                    time.sleep(0.5)
            print("asked to stop: the time limit is near, or the job was cancelled; answers may end", flush=True)
        finally:
            server.stop()


def _ends(task: Task) -> float:
    """When the job's time limit ends it [s since 1970]; 0 outside Slurm.

    Slurm before 23.02 does not tell its jobs: the profile's limit is then counted from the start of this process.
    """
    import psutil

    if "SLURM_JOB_ID" not in os.environ:
        return 0.0
    limit = 60 * task.run.profile.resources[STAGE.resources].time_min
    return float(os.environ.get("SLURM_JOB_END_TIME") or psutil.Process().create_time() + limit)


def _experts(task: Task) -> Callable[[bytes], str] | None:
    """What fills the experts' words of the page, for a model of this run that was trained with them."""
    settings = task.settings
    if not settings.instruct.expert_text or settings.serve.weights:
        return None
    from lumen_hpc.serving.expert_words import ExpertWords

    return ExpertWords(settings.experts, cache=task.run.profile.cache, pretrained=task.run.path("pretrain"))


@contextmanager
def _page(task: Task, address: Address, line: tuple[str, ...]) -> Iterator[Address]:
    """The page beside the server, if it is asked for; yields the address with the page's own.

    `line`: the findings of the model's line, as its checkpoint notes them.
    """
    from dataclasses import replace

    from lumen_hpc.serving import page, supervisor

    settings = task.settings.serve
    if not settings.page:
        yield address
        return
    key = supervisor.new_key()
    longest = task.settings.predict.max_new_tokens
    app = page.application(
        address.url, address.key, key, address.model,
        answer_tokens=longest, line=line, experts=_experts(task),
    )  # fmt: skip
    with supervisor.listen(address.host, settings.page_port, "serve.page_port") as listener, page.serve(app, listener):
        yield replace(address, page=f"http://{address.host}:{listener.getsockname()[1]}/{key}/")
