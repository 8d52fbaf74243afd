"""Section 2.5: fine-tunes NVILA on the records of one model (`ft` or `lumen`) by multi-node DeepSpeed.

Every rank runs this file. It writes checkpoints, metrics.jsonl and the final model in the official layout beside its
one shard, which has a row per file of the final model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from lumen_hpc.cluster import estimate
from lumen_hpc.cluster.stage import Interrupted, Shard, Stage, Task
from lumen_hpc.models import MODELS, compared_model, repeats, training_number
from lumen_hpc.training import speed
from lumen_hpc.weights import verify

STAGE = Stage(
    name="train",
    paper="2.5",
    about="fine-tune NVILA",
    resources="train",
    settings=("seed", "train"),
    after=("pretrain", "instruct"),
    models=lambda settings: [
        *(model for model in settings.predict.models if MODELS[model].trained),
        *repeats(settings.predict.models, settings.train.seeds),
    ],
    gpu_hours=estimate.train,
    progress=lambda settings, folder: speed.run_progress(folder, settings.train),
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Trains until done or until a stop is requested; yields one row per file of the final model."""
    from lumen_hpc.data.findings_line import read_line
    from lumen_hpc.nvila.prompt_form import PromptForm
    from lumen_hpc.training.train import Inputs, fine_tune

    instruct = task.settings.instruct

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        weights = verify(task.run.base_weights, task.run.profile.cache)  # before anything else reads the folder
        records = task.run.path("instruct") / f"{compared_model(task.model).name}-train.jsonl"
        form = PromptForm.trained(
            findings_line=instruct.findings_first,
            line=read_line(records) if instruct.findings_first else (),
            expert_text=instruct.expert_text,
            clinical=bool(instruct.clinical),
        )
        digests = {row["file"]: row["sha256"] for row in task.run.rows("instruct")}
        inputs = Inputs(
            records=records,
            records_hash=digests.get(records.name, ""),
            base=weights,
            form=form,
            held_out=records.with_name(records.name.replace("-train", "-val")),
        )
        outcome = fine_tune(
            task.settings.train,
            inputs,
            task.folder,
            seed=task.settings.seed + training_number(task.model),
            ranks=task.ranks,
            should_stop=task.should_stop,
            beat=task.beat,
        )
        if not outcome.finished:
            raise Interrupted(f"saved at step {outcome.step}")
        if task.ranks.first:
            for path in sorted((task.folder / "final").rglob("*")):
                if path.is_file():
                    yield task.artefact(path)

    return process
