"""Fine-tuning NVILA on instruction records, from the base's folder to the final model's (paper, section 2.5)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from lumen_hpc import nvila
from lumen_hpc.config import schema
from lumen_hpc.data.records import Records
from lumen_hpc.distributed import Ranks, broadcast_json, join, leave, on_any_rank, raise_on_all_ranks
from lumen_hpc.errors import UserError
from lumen_hpc.files import write_json
from lumen_hpc.nvila.prompt_form import PromptForm
from lumen_hpc.training import adapters, folder, loop, quantisation, record_index, sequence_parallel, validation
from lumen_hpc.training.auto import Auto
from lumen_hpc.training.checkpointing import newest_checkpoint, write_error
from lumen_hpc.training.deepspeed_engine import Engine
from lumen_hpc.training.flops import matrix_flops
from lumen_hpc.training.health import check_devices
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.record_index import RecordIndex
from lumen_hpc.training.samples import Batcher, Pictures
from lumen_hpc.watchdog import Beat, unwatched

log = logging.getLogger(__name__)
PADDED_LENGTHS = 32
"""Micro-batch lengths that compiled layers meet: each compiles once, at its first appearance (10 s on an H200). With a
budget of 16,384 tokens, padding takes 7 % of the work with 8 lengths, and 2 % with 32."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a training reads."""

    records: Path
    """Instruction file (JSONL)."""
    records_hash: str = ""
    """Its SHA-256 if known, which saves every rank reading the file for it."""
    base: Path
    """Folder of the pretrained NVILA."""
    form: PromptForm = PromptForm.trained()
    """Form of the records' prompts, which `final/` notes."""
    held_out: Path | None = None
    """Instruction file whose loss is measured at checkpoints (`train.validate`), for metrics.jsonl."""


@dataclass(frozen=True)
class Outcome:
    """How a training ended."""

    finished: bool
    step: int
    """Optimizer steps done."""

    def __str__(self) -> str:
        return "finished" if self.finished else f"interrupted at step {self.step}"


def fine_tune(
    train: schema.Train,
    inputs: Inputs,
    out: Path,
    *,
    seed: int,
    ranks: Ranks,
    should_stop: Callable[[], bool],
    beat: Beat = unwatched,
) -> Outcome:
    """Trains, or continues training, until the end or until `should_stop`; every rank calls it.

    `out` receives `checkpoints/`, `metrics.jsonl`, `consumed.jsonl` and, at the end, `final/` in the official layout. A
    training that is already finished returns at once. One with other settings is moved to `out/earlier/`, and training
    starts from the base, or goes on with what these settings left there. Raises UserError for invalid settings and
    records, and for a folder in which another job trains; loop.Diverged for a loss that diverges.
    """
    started = time.monotonic()
    folder.require_writable(out, ranks)
    auto = Auto(train, inputs.base, out, ranks)
    train = auto.resolve_memory()
    records_hash = inputs.records_hash or folder.records_hash(inputs.records)
    fingerprint = folder.fingerprint_of(train, records_hash, inputs.base, seed)
    if steps := folder.finished_steps(out, fingerprint):
        return Outcome(True, steps)
    beat("waiting for the other ranks", waits=True)
    join(ranks, out)
    with folder.training_lock(out, ranks):
        if ranks.first:
            folder.set_aside(out, fingerprint)
        if steps := broadcast_json(folder.finished_steps(out, fingerprint) if ranks.first else 0):  # back from earlier/
            leave()
            return Outcome(True, steps)
        beat("checking GPUs and interconnect")
        reports = check_devices(ranks)
        if ranks.first:
            write_json(out / "health.json", reports)
        index = None
        if not on_any_rank(should_stop()):
            train = auto.resolve_compiled(train, beat)
            sources = _Sources(inputs, out, fingerprint, ranks, beat)
            index = sources.index(train, should_stop)
        if index is None:  # asked to stop before anything was loaded
            leave()
            checkpoint = newest_checkpoint(out / folder.FOLDER)
            return Outcome(False, int(checkpoint.name.removeprefix("step-")) if checkpoint else 0)
        train = auto.resolve_sequence_parallel(train, index, seed)
        auto.require_fit(train)
        work = sources.work(train, index)
        engine, steps, finished = loop.run(
            work, train, ranks, seed=seed, should_stop=should_stop, beat=beat, started=started
        )
        if finished:
            beat("writing the final model")
            _export(engine, work, out, steps)
        engine.close()
        leave()
    return Outcome(finished, steps)


class _Sources:
    """The records and the base of one training, from which its index and then its work are made."""

    def __init__(self, inputs: Inputs, out: Path, fingerprint: dict[str, Any], ranks: Ranks, beat: Beat) -> None:
        """The arguments are those of `fine_tune`."""
        self._inputs, self._base = inputs, inputs.base
        self._records, self._preprocessor = Records(inputs.records), nvila.Preprocessor.open(inputs.base)
        self._out, self._fingerprint, self._ranks, self._beat = out, fingerprint, ranks, beat

    def index(self, train: schema.Train, should_stop: Callable[[], bool]) -> RecordIndex | None:
        """The index of the records; None if a stop was requested meanwhile."""
        index = record_index.build(
            self._records,
            self._preprocessor,
            self._ranks,
            max_tokens=train.max_tokens,
            on_bad=train.on_bad,
            folder=self._out,
            version=f"{self._fingerprint['records']} {self._fingerprint['base']}",
            should_stop=should_stop,
            beat=self._beat,
        )
        if index is not None and self._ranks.first:
            log.info("records: %s", record_index.describe(index))
        return index

    def work(self, train: schema.Train, index: RecordIndex) -> loop.Work:
        """Everything that the loop works on; `train` has no `auto`."""
        group = sequence_parallel.make_group(train.ranks_a_micro_batch, self._ranks)
        multiple = -(-train.token_budget // (PADDED_LENGTHS * 128)) * 128 if train.compiled else 1
        batcher = partial(Batcher, preprocessor=self._preprocessor, multiple=multiple, group=group)
        held_out = self._held_out(train, batcher)
        self._beat("loading the model")
        model = self._model(train)
        model.config = model.config.with_prompt_form(self._inputs.form)  # saved with the final model
        sizes = Sizes.read(self._base)

        def flops(micro: Any) -> float:
            return matrix_flops(train, sizes, micro.tokens, len(micro.batch.tiles) / group.size)

        return loop.Work(
            model=Learner(model, train, seed=self._fingerprint["seed"], group=group),
            batcher=batcher(self._records, index, pictures=Pictures(train.cache_images_gb)),
            index=index,
            out=self._out,
            fingerprint=self._fingerprint,
            base=str(self._base.resolve()),
            flops=flops,
            held_out=held_out,
        )

    def _held_out(self, train: schema.Train, batcher: Callable[..., Batcher]) -> validation.HeldOut | None:
        """The records whose loss is measured at checkpoints; None if there are none."""
        file = self._inputs.held_out
        if file is None or not file.is_file() or not train.validate:
            return None
        return validation.hold_out(
            validation.evenly_spaced(Records(file), train.validate),
            self._preprocessor,
            lambda records, index: batcher(records, index, pictures=Pictures()),
            self._ranks,
            max_tokens=train.max_tokens,
            folder=self._out / "validation",
            version=f"{folder.records_hash(file)} {self._fingerprint['base']}",
        )

    def _model(self, train: schema.Train) -> nvila.NVILA:
        """The base. Raises UserError if it takes fewer tokens than a sample may have."""
        dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        model = nvila.load(self._base, dtype=dtype, attention=train.attention)
        if train.max_tokens > model.config.max_length:
            raise UserError(
                f"train.max_tokens={train.max_tokens}: {self._base} takes {model.config.max_length} tokens; "
                f"use at most train.max_tokens={model.config.max_length}"
            )
        return model


def _export(engine: Engine, work: loop.Work, out: Path, step: int) -> None:
    """Writes the final model in the official layout, and `finished.json`; every rank calls it.

    Raises UserError on all ranks if rank 0 cannot write.
    """
    weights = engine.weights()
    with raise_on_all_ranks():
        if weights is not None:
            try:
                _write_final(weights, work, out, step)
            except (OSError, SafetensorError) as error:
                raise write_error(out / folder.FOLDER, error) from error


def _write_final(weights: dict[str, torch.Tensor], work: loop.Work, out: Path, step: int) -> None:
    learner = work.model
    state = learner.renamed_for_export(quantisation.plain_state(weights, learner) if learner.quantised else weights)
    base, factors = adapters.split(state)
    if factors:
        state = adapters.merge(base, factors, adapters.scale(work.fingerprint["train.adapter"]))
    final = nvila.save(learner.model, out / "final", state)
    if factors:
        adapters.save_peft(factors, schema.Adapter(**work.fingerprint["train.adapter"]), final / adapters.FOLDER)
    summary = {"step": step, "samples": len(work.index), "fingerprint": work.fingerprint}
    write_json(out / "finished.json", summary)
