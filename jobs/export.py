"""On request: a run's model in the flat layout of `NVILA-8B-hf`, with a model card, for the hub, SGLang and vLLM.

Reads the trained model's final weights, the report's tables and controls, and the training records (to prove that
none of their texts is exported). Writes `export-<model>/<run>-<model>/`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.stage import Run, Shard, Stage, Task
from lumen_hpc.errors import UserError
from lumen_hpc.files import read_json
from lumen_hpc.models import MODELS


def require(run: Run) -> None:
    """The model must have been trained here: a base is published by those who made it."""
    model = run.settings.serve.model
    if not MODELS[model].trained:
        raise UserError(f"model={model} is the base as it was published; export a model that this run trained")


STAGE = Stage(
    name="export",
    paper="",
    about="flat layout and model card",
    resources="cpu",
    settings=("serve.model",),
    after=("instruct", "train-{model}"),
    models=lambda settings: [settings.serve.model],
    on_request=True,
    require=require,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row with the digest of each file of the exported folder."""
    from lumen_hpc.data.records import Records
    from lumen_hpc.nvila.config_files import read_config
    from lumen_hpc.serving.export import export, require_clean
    from lumen_hpc.serving.model_card import model_card

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        run = task.run
        source = run.path("train", task.model) / "final"
        target = task.folder / f"{run.folder.name}-{task.model}"
        shutil.rmtree(target, ignore_errors=True)
        card = model_card(
            task.model,
            task.settings,
            read_config(source),
            counts=read_json(run.path("prepare") / "counts.json", {}),
            tables=_read_text(run.folder / "report" / "tables.md"),
            controls=_read_text(run.folder / "report" / "controls.md"),
            provenance=read_json(run.folder / "provenance.json", [{}])[-1],
        )
        files = export(source, target, card)
        try:
            records = Records(run.path("instruct") / f"{task.model}-train.jsonl")
            require_clean(files, (turn["value"] for record in records for turn in record["conversations"]))
        except BaseException:  # what could not be searched must not be published either
            shutil.rmtree(target)
            raise
        for path in files:
            yield task.artefact(path)

    return process


def _read_text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""
