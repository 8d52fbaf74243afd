"""Fine-tuning NVILA on instruction records, from the base's folder to the final model's (paper, section 2.5)."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lumen_hpc import nvila
from lumen_hpc.config import schema
from lumen_hpc.data.records import Records
from lumen_hpc.distributed import Ranks, broadcast_json, gather_json, join, leave, on_any_rank
from lumen_hpc.errors import UserError
from lumen_hpc.files import sha256, write_json
from lumen_hpc.nvila import layers
from lumen_hpc.nvila.checkpoint import read_files
from lumen_hpc.nvila.prompt_form import PromptForm
from lumen_hpc.scratch import use_private_cache
from lumen_hpc.training import (
    adapters,
    loop,
    occupancy,
    quantisation,
    record_index,
    sequence_parallel,
    sizing,
    validation,
)
from lumen_hpc.training.checkpointing import FOLDER, newest
from lumen_hpc.training.deepspeed_engine import Engine
from lumen_hpc.training.flops import matrix_flops
from lumen_hpc.training.health import check_devices
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.record_index import RecordIndex, describe
from lumen_hpc.training.samples import Batcher, Pictures

log = logging.getLogger(__name__)
LENGTHS = 32
"""Lengths of a micro-batch that compiled layers meet: each compiles once, at its first appearance (10 s on an H200). Of
a budget of 16,384 tokens, 8 lengths would leave 7 % of the work to padding, 32 leave 2 %."""
RESULTS = (
    "training.json", record_index.PARTS, record_index.FILE, "rejected.jsonl", FOLDER, "metrics.jsonl", "consumed.jsonl",
    "images_left_out.jsonl", "restarts.jsonl", "tensorboard", "final", "finished.json",
)  # fmt: skip
"""Files that belong to one training and are moved with it; the rest of its folder belongs to the current job."""


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
    records: Path,
    base: Path,
    out: Path,
    *,
    seed: int,
    ranks: Ranks,
    should_stop: Callable[[], bool],
    progress: Callable[..., None] = lambda doing="", within=0.0, waits=False: None,
    form: PromptForm | None = None,
    records_hash: str = "",
    held_out: Path | None = None,
) -> Outcome:
    """Trains, or continues training, until the end or until `should_stop`; every rank calls it.

    `records`: an instruction file (JSONL); where its hash is known, `records_hash`, no rank reads all of it for that.
    `base`: folder of the pretrained NVILA. `out` receives `checkpoints/`,
    `metrics.jsonl`, `consumed.jsonl` and, at the end, `final/` in the official layout. A training that is already
    finished returns at once; one with other settings is moved to `out/earlier/` and training starts from the base.
    `held_out`: an instruction file whose loss is measured at checkpoints (`train.validate`), into metrics.jsonl.
    `form` is the records' and is noted in `final/`; None: what every training here has.
    `progress(doing, within, waits)` is called with this rank's next action, the seconds until its next call at the
    latest, and whether the action is to wait for other ranks.
    Raises UserError for invalid settings and records, and for a folder in which another job trains;
    loop.Diverged for a loss that diverges.
    """
    started = time.monotonic()
    _check_folder(out, ranks)
    asked = train
    train = _resolved(train, base, out, ranks)
    fingerprint = {
        **_results(train),
        "seed": seed,
        "records": records_hash or _records_hash(records),
        "base": _identity(base),
    }
    if done := _finished(out, fingerprint):
        return Outcome(True, done)
    progress("waiting for the other ranks", waits=True)
    join(ranks, out)
    with _alone(out, ranks):
        if ranks.first:
            _set_aside(out, fingerprint)
        dist.barrier()
        progress("checking GPUs and interconnect")
        reports = check_devices(ranks)
        if ranks.first:
            write_json(out / "health.json", reports)
        work = None
        if not on_any_rank(should_stop()):
            form = form or PromptForm.trained()
            train = _compiling(train, ranks, progress)
            rows, preprocessor = Records(records), nvila.Preprocessor.open(base)
            found = _indexed(train, rows, preprocessor, out, fingerprint, ranks, should_stop, progress)
            if found is not None:
                train = _together(train, asked, found, base, out, ranks, seed)
                work = _work(train, rows, preprocessor, base, out, fingerprint, ranks, found, progress, form, held_out)
        if work is None:
            leave()
            kept = newest(out / FOLDER)
            return Outcome(False, int(kept.name.removeprefix("step-")) if kept else 0)
        engine, done, finished = loop.run(
            work, train, ranks, seed=seed, should_stop=should_stop, progress=progress, started=started
        )
        if finished:
            progress("writing the final model")
            _export(engine, work, out, done)
        engine.close()
        leave()
    return Outcome(finished, done)


def _resolved(train: schema.Train, base: Path, out: Path, ranks: Ranks) -> schema.Train:
    """The settings with every `auto` decided by this GPU's memory; the ZeRO stage of a begun training stays."""
    if train.zero == "auto" and (out / "training.json").is_file():
        begun = json.loads((out / "training.json").read_text()).get("train.zero")
        train = dataclasses.replace(train, zero=begun if isinstance(begun, int) else "auto")
    memory = torch.cuda.get_device_properties(ranks.local_rank).total_memory / 1e9 if torch.cuda.is_available() else 0.0
    resolved = sizing.resolve(train, ranks.world_size, memory, nodes=ranks.nodes, sizes=Sizes.read(base))
    if resolved != train and ranks.first:
        names = ("zero", "checkpointing", "node_shards")
        log.info(", ".join(f"train.{name}={getattr(resolved, name)}" for name in names))
    return resolved


def _together(
    train: schema.Train, asked: schema.Train, found: RecordIndex, base: Path, out: Path, ranks: Ranks, seed: int
) -> schema.Train:
    """The settings with `train.sequence_parallel=auto` decided by the layout of the records, so alike at every start.

    Activations then take less memory, so an `auto` of `asked` about recomputation is decided again.
    """
    sizes, size = Sizes.read(base), train.ranks_a_micro_batch
    if train.sequence_parallel == "auto" and torch.cuda.is_available():
        steps = occupancy.sampled(vars(found), train, seed)
        size = occupancy.parallel(steps, train, ranks.world_size, nodes=ranks.nodes, heads=sizes.heads)
    if size > 1 and (reason := sequence_parallel.apart(size)):
        fix = "number the ranks node by node (srun --distribution=block)"
        if train.sequence_parallel != "auto":
            raise UserError(f"train.sequence_parallel={size}: {reason}; {fix}, or use train.sequence_parallel=1")
        log.warning("train.sequence_parallel=auto stays 1, where %d would be faster: %s; %s", size, reason, fix)
        size = 1
    train = dataclasses.replace(train, sequence_parallel=size)
    sizing.check_parallel(train, ranks.world_size, ranks.nodes, sizes)
    if size > 1:
        again = _resolved(dataclasses.replace(asked, zero=train.zero, sequence_parallel=size), base, out, ranks)
        train = dataclasses.replace(train, checkpointing=again.checkpointing, node_shards=again.node_shards)
        if ranks.first:
            log.info("train.sequence_parallel=%d: so many ranks compute each micro-batch together", size)
    return train


def _compiling(train: schema.Train, ranks: Ranks, progress: Callable[..., None]) -> schema.Train:
    """The settings with `train.compiled=auto` decided alike on all ranks: plain layers where one cannot compile."""
    if train.compiled == "auto":
        progress("trying the compiler")
        reason = "there is no GPU"
        if train.adapter.base_bits < 16:
            reason = f"train.adapter.base_bits={train.adapter.base_bits}"
        elif train.adapter.kind != "none" and train.zero == 3:
            reason = "adapters under train.zero=3"
        elif torch.cuda.is_available():
            flexible = train.attention in ("auto", "flex")
            reason = layers.try_compiling(torch.bfloat16) if flexible else f"train.attention={train.attention}"
        reasons = [reason for reason in gather_json(reason) if reason]
        if reasons and ranks.first:
            log.info("plain layers: %s", reasons[0])
        train = dataclasses.replace(train, compiled=not reasons)
    if train.compiled and train.attention == "auto" and torch.cuda.is_available():
        train = dataclasses.replace(train, attention="flex")
    if train.compiled:
        use_private_cache()
    return train


@contextmanager
def _alone(out: Path, ranks: Ranks) -> Iterator[None]:
    """Keeps other jobs from training in the same folder; all ranks call it and raise UserError if one does."""
    with (out / "training.lock").open("a+") if ranks.first else nullcontext() as lock:
        holder = ""
        if lock is not None:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}, job {ranks.job or 'none'}")
                lock.flush()
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read()
            except OSError as error:  # a file system without locks
                log.warning("%s cannot be locked (%s): make sure that no other job trains there", out, error)
        if holder := broadcast_json(holder):
            raise UserError(f"another training is running in {out} ({holder}): wait for its end, or cancel it")
        yield


def _indexed(
    train: schema.Train,
    rows: Records,
    preprocessor: nvila.Preprocessor,
    out: Path,
    fingerprint: dict[str, Any],
    ranks: Ranks,
    should_stop: Callable[[], bool],
    progress: Callable[..., None],
) -> RecordIndex | None:
    """The index of the records; None if a stop was requested while it was made."""
    found = record_index.build(
        rows,
        preprocessor,
        ranks,
        max_tokens=train.max_tokens,
        on_bad=train.on_bad,
        folder=out,
        version=f"{fingerprint['records']} {fingerprint['base']}",
        should_stop=should_stop,
        progress=progress,
    )
    if found is not None and ranks.first:
        log.info("records: %s", describe(found))
    return found


def _work(
    train: schema.Train,
    rows: Records,
    preprocessor: nvila.Preprocessor,
    base: Path,
    out: Path,
    fingerprint: dict[str, Any],
    ranks: Ranks,
    found: RecordIndex,
    progress: Callable[..., None],
    form: PromptForm,
    held_out: Path | None,
) -> loop.Work:
    """Everything that the loop works on."""
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(ranks.local_rank).total_memory / 1e9
        sizing.check(train, ranks.world_size, memory, nodes=ranks.nodes, sizes=Sizes.read(base))
    group = sequence_parallel.form(train.ranks_a_micro_batch, ranks)
    multiple = -(-train.token_budget // (LENGTHS * 128)) * 128 if train.compiled else 1
    held = None
    if held_out is not None and held_out.is_file() and train.validate:
        held = validation.hold_out(
            validation.spread(Records(held_out), train.validate),
            preprocessor,
            lambda kept, index: Batcher(kept, index, preprocessor, Pictures(), multiple=multiple, group=group),
            ranks,
            max_tokens=train.max_tokens,
            folder=out / "validation",
            version=f"{_records_hash(held_out)} {fingerprint['base']}",
        )
    progress("loading the model")
    dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
    model = nvila.load(base, dtype=dtype, attention=train.attention)
    model.config = model.config.with_prompt_form(form)  # saved with the final model
    if train.max_tokens > model.config.max_length:
        raise UserError(
            f"train.max_tokens={train.max_tokens}: {base} takes {model.config.max_length} tokens; "
            f"use at most train.max_tokens={model.config.max_length}"
        )
    learner = Learner(model, train, seed=fingerprint["seed"], group=group)
    batcher = Batcher(rows, found, preprocessor, Pictures(train.cache_images_gb), multiple=multiple, group=group)
    sizes = Sizes.read(base)

    def flops(micro: Any) -> float:
        return matrix_flops(train, sizes, micro.tokens, len(micro.batch.tiles) / group.size)

    return loop.Work(learner, batcher, found, out, fingerprint, str(base.resolve()), flops, held)


def _export(engine: Engine, work: loop.Work, out: Path, step: int) -> None:
    """Writes the final model in the official layout, and `finished.json`."""
    weights = engine.weights()
    if weights is not None:
        learner = work.model
        state = learner.export_names(quantisation.plain_state(weights, learner) if learner.quantised else weights)
        base, factors = adapters.split(state)
        if factors:
            state = adapters.merge(base, factors, adapters.scale(work.fingerprint["train.adapter"]))
        final = nvila.save(learner.model, out / "final", state)
        if factors:
            adapters.save_peft(factors, schema.Adapter(**work.fingerprint["train.adapter"]), final / adapters.FOLDER)
        summary = {"step": step, "samples": len(work.index), "fingerprint": work.fingerprint}
        write_json(out / "finished.json", summary)
    dist.barrier()


def _results(train: schema.Train) -> dict[str, Any]:
    """The settings that determine the result; those of speed and location are excluded."""
    values = dataclasses.asdict(train)
    return {
        f"train.{field.name}": values[field.name]
        for field in dataclasses.fields(train)
        if not field.metadata.get("runtime_only")
        and field.name != "base"
        and (field.name != "adapter" or train.adapter.kind != "none")
    }


def _check_folder(out: Path, ranks: Ranks) -> None:
    """Raises UserError unless this rank can write where the results go."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".writable-{ranks.rank}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error}): training could not save") from None


def _records_hash(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"{path} does not exist: run stage=instruct first")
    return sha256(path)


def _identity(base: Path) -> str:
    """A hash of the small files that `load` reads and of the names and sizes of the weights (which may be 15 GB)."""
    if not (base / "config.json").is_file():
        raise UserError(f"{base} has no config.json: give the folder of a pretrained NVILA as train.base")
    digest = hashlib.sha256()
    for path in read_files(base):
        digest.update(f"{path.relative_to(base)} {path.stat().st_size}\n".encode())
        if path.suffix != ".safetensors":
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _finished(out: Path, fingerprint: dict[str, Any]) -> int:
    """Steps of a finished training of just these settings; 0 if there is none."""
    try:
        kept = json.loads((out / "finished.json").read_text())
    except (OSError, ValueError):
        return 0
    whole = (out / "final" / "complete.json").is_file()
    return kept["step"] if whole and kept["fingerprint"] == fingerprint else 0


def _set_aside(out: Path, fingerprint: dict[str, Any]) -> None:
    """Rank 0: moves another training's results to `earlier/`; nothing is deleted."""
    file = out / "training.json"
    if file.exists() and json.loads(file.read_text()) != fingerprint:
        earlier = out / "earlier"
        place = earlier / f"{len(list(earlier.glob('*'))) if earlier.exists() else 0:03d}"
        place.mkdir(parents=True)
        for name in RESULTS:
            if (out / name).exists():
                (out / name).rename(place / name)
        log.warning("%s has a training with other settings or records; it is kept in %s", out, place)
    write_json(file, fingerprint)
