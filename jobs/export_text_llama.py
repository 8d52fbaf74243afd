"""Before section 2.2: writes the text model of Llama-3.2-11B-Vision as a plain Llama, since vLLM dropped Mllama.

A model named `…-text` in `rewrite.engine.model` or `judge` is exported from the official folder next to it in the
profile's cache, once for all runs; if it exists already, the stage only records the digests of its files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.config.schema import Settings
from lumen_hpc.language.export_text_llama import SUFFIX
from lumen_hpc.weights import locate


def text_models(settings: Settings) -> list[str]:
    """Names of the text models that the settings' engines run in process, each once."""
    names = [engine.model for engine in settings.engines().values() if engine.in_task]
    return list(dict.fromkeys(name for name in names if name.endswith(SUFFIX)))


STAGE = Stage(
    name="export_text_llama",
    paper="",
    about="text Llama out of Llama-Vision",
    resources="cpu",
    settings=("rewrite.engine.model", "judge.engine.model", "judge.second.model"),
    enabled=lambda settings: bool(text_models(settings)),
    needs="a model named …-text, such as rewrite.engine.model=meta-llama/Llama-3.2-11B-Vision-Instruct-text",
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row with the digest of each file of each text model."""
    from lumen_hpc.language.export_text_llama import export, original

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        for name in text_models(task.settings):
            target = locate(name, task.run.profile.cache)
            if not target.exists():
                export(Path(original(str(target))), target)
            for path in sorted(target.iterdir()):
                yield task.artefact(path)

    return process
