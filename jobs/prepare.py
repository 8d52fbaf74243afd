"""Section 2.1: the dataset's own files become studies and questions, counted beside the paper.

Reads MIMIC-CXR and Medical-Diff-VQA where they are (or writes phantoms in the same layout first) and writes
studies.jsonl, questions.jsonl, rejected.jsonl and counts.json. One CPU job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.settings import Config


def external(settings: Config) -> list[str]:
    """The dataset's tables; phantoms have none."""
    data = settings.data
    return [folder for folder in (data.mimic_cxr, data.diff_vqa) if folder] if data.source == "mimic" else []


STAGE = Stage(
    name="prepare",
    paper="2.1",
    about="dataset files to studies and questions",
    resources="cpu",
    settings=("seed", "data", "prepare"),
    external=external,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row that vouches for each file written."""
    from lumen_hpc.data import phantom, prepare

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        data = task.config.data
        if data.source == "phantom":
            data = phantom.write(task.folder / "phantom", data, task.config.seed)
        for path in prepare.prepare(data, task.config.prepare, task.config.seed, task.folder):
            yield task.artefact(path)

    return process
