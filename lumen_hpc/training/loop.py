"""The training loop: the same samples in the same order, despite any interruption (paper, section 2.5)."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks, broadcast_json, on_any_rank
from lumen_hpc.errors import UserError
from lumen_hpc.progress import spell
from lumen_hpc.schedule import rate_at
from lumen_hpc.training import sampler as sampling
from lumen_hpc.training import validation
from lumen_hpc.training.checkpointing import TAG, Checkpoint, Checkpoints, newest_checkpoint, write_error
from lumen_hpc.training.deepspeed_engine import Engine
from lumen_hpc.training.fingerprint import differences
from lumen_hpc.training.folder import FOLDER
from lumen_hpc.training.generators import seed_generator
from lumen_hpc.training.journal import Journal, recent_losses
from lumen_hpc.training.layout import SharedSequence, lay_out
from lumen_hpc.training.prefetcher import Prefetcher
from lumen_hpc.training.record_index import RecordIndex
from lumen_hpc.training.sizing import check_batch
from lumen_hpc.training.speed import peak_flops
from lumen_hpc.training.token_kinds import TokenKinds
from lumen_hpc.watchdog import Beat, unwatched

REPORT_S = 15.0
"""Shortest time between two lines of progress in the log."""


class Diverged(UserError):
    """The loss is not finite, or far above its recent median; the same steps would give it again."""


class MicroBatch(Protocol):
    """A micro-batch on its way to the model."""

    tokens: int
    """Tokens of the sequences, without padding."""
    samples: torch.Tensor
    """[supervised tokens] int64: the sample id that each supervised token belongs to."""
    verdicts: torch.Tensor
    """[supervised tokens] bool: the yes or no of an outcome's answer, which is a kind of token of its own."""

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""


class Batcher(Protocol):
    """Turns sequences into micro-batches."""

    def build(self, sequences: list[SharedSequence]) -> MicroBatch:
        """A micro-batch of these sequences; without any, one that computes something and supervises nothing."""


@dataclass(frozen=True)
class Work:
    """A training's model, data and output folder."""

    model: torch.nn.Module
    """Maps a micro-batch to the negative log-likelihood of each supervised token, float32 [tokens]."""
    batcher: Batcher
    index: RecordIndex
    out: Path
    """Folder of this training: checkpoints, metrics, final weights."""
    fingerprint: dict[str, Any]
    """A checkpoint must have the same one for training to continue from it."""
    base: str = ""
    """Folder of the model that training started from, from which a checkpoint's reader takes the configuration."""
    flops: Callable[[MicroBatch], float] = lambda micro: 0.0
    """Model FLOPs of a micro-batch's forward and backward passes, for the MFU."""
    held_out: validation.HeldOut | None = None
    """Records whose loss is measured at checkpoints."""


def run(
    work: Work,
    train: schema.Train,
    ranks: Ranks,
    *,
    seed: int,
    should_stop: Callable[[], bool],
    beat: Beat = unwatched,
    started: float | None = None,
) -> tuple[Engine, int, bool]:
    """Trains from the last valid checkpoint to the end, or until `should_stop`.

    Returns the engine, the steps done, and whether these are all. Raises Diverged, naming the last good checkpoint, and
    UserError for settings that do not fit each other or the checkpoint.
    """
    started = started or time.monotonic()
    order = sampling.make_sampler(work.index.groups, work.index.kinds, train, seed)
    check_batch(train, ranks.world_size)
    checkpoints = Checkpoints(work.out / FOLDER, ranks, keep=train.keep_checkpoints)
    checkpoint = checkpoints.latest()
    if checkpoint is not None:
        _same_run(checkpoint, work.fingerprint)
    needs_conversion = checkpoint is not None and checkpoint.world_size != ranks.world_size
    engine = Engine(work.model, train, ranks, checkpoints.writer, universal=needs_conversion)
    steps_done = 0
    if checkpoint is not None:
        with (
            checkpoints.universal(checkpoint, beat)
            if needs_conversion
            else nullcontext(checkpoint.folder / TAG) as folder
        ):
            engine.load(folder.parent, folder.name)
        steps_done = checkpoint.step
    if checkpoint is None or needs_conversion:
        seed_generator(seed, ranks.rank, steps_done)
    else:
        checkpoints.rng(checkpoint)
    if on_any_rank(should_stop()):  # requested during the start, before there is anything to save
        return engine, steps_done, steps_done == order.steps
    loop = Loop(work, train, ranks, order, engine, checkpoints, steps_done, should_stop, beat)
    try:
        finished = loop.run(started=started, resumed=checkpoint)
    except BaseException:
        checkpoints.abandon()
        raise
    return engine, loop.steps_done, finished


def _same_run(checkpoint: Checkpoint, fingerprint: dict[str, Any]) -> None:
    if changed := differences(checkpoint.state["fingerprint"], fingerprint):
        changes = "; ".join(f"{key} was {before!r} and is {after!r}" for key, (before, after) in changed.items())
        raise UserError(f"{checkpoint.folder} belongs to another training ({changes}): set it back, or use another run")


@dataclass
class Loop:
    """One process's steps."""

    work: Work
    train: schema.Train
    ranks: Ranks
    order: sampling.Sampler
    engine: Engine
    checkpoints: Checkpoints
    steps_done: int
    """Optimizer steps done."""
    should_stop: Callable[[], bool] = lambda: False
    beat: Beat = unwatched

    def __post_init__(self) -> None:
        self.device = self.engine.ds.device
        self.kinds = TokenKinds(self.work.index.kinds, self.device)
        self.recent_losses: deque[float] = deque(maxlen=100)
        """Losses of the last steps, whose median is the usual one."""
        self.step_seconds: deque[float] = deque(maxlen=20)
        """Durations of the last steps, for the ETA."""
        self.stall_s = 0.0
        """Pause of the last checkpoint [s], until a step's timing includes it."""
        self.validation_s = 0.0
        """Duration of the last validation [s], likewise."""
        self.untimed = True
        """Whether no step has been timed yet."""
        self.flops = 0.0
        """Model FLOPs of the last step, on all ranks."""
        self.last_report = -math.inf
        """Time of the last line in the log (`time.monotonic`)."""

    def run(self, *, started: float, resumed: Checkpoint | None) -> bool:
        """Steps until the end, or until a rank should stop; True at the end."""
        journal = self._open_journal(resumed)
        stop = False
        start = time.perf_counter()
        with Prefetcher(self._layouts(), self.work.batcher, workers=self.train.workers) as prefetcher:
            for ids, micro_batches in prefetcher:
                data_wait = time.perf_counter() - start
                metrics, stop = self._step(ids, micro_batches)
                self.steps_done += 1
                is_due = self._is_due()
                # A stop does not wait for it: the next start measures it. After the last step there is no next start.
                validation_losses = (
                    self._validate() if is_due and (not stop or self.steps_done == self.order.steps) else {}
                )
                if journal is not None:
                    seconds = time.perf_counter() - start - self.validation_s
                    timing = self._timing(seconds, data_wait, micro_batches, metrics, started)
                    self._record(journal, ids, metrics | validation_losses, timing)
                if stop or is_due:
                    self.beat(f"saves after step {self.steps_done}")
                    self._save(journal)
                if stop:
                    break
                start = time.perf_counter()
        self.checkpoints.finish()
        if journal is not None:
            journal.close()
        dist.barrier()
        return self.steps_done == self.order.steps

    def _open_journal(self, resumed: Checkpoint | None) -> Journal | None:
        """Rank 0's journal, truncated to the steps done; None elsewhere.

        Every rank calls it. It measures a validation loss that a stop has skipped, and reads the recent losses.
        """
        journal = Journal(self.work.out, step=self.steps_done) if self.ranks.first else None
        if journal is not None and (resumed is not None or journal.lost_steps):
            journal.write_restart(
                step=self.steps_done,
                world_size=self.ranks.world_size,
                checkpoint=resumed.folder.name if resumed else "none",
            )
        if (
            self.work.held_out is not None
            and self._is_due()
            and broadcast_json(journal is not None and journal.lacks(validation.LOSS))
        ):  # the stop came at a checkpoint and skipped it
            validation_losses = self._validate()
            if journal is not None:
                journal.amend(validation_losses)
        losses = recent_losses(self.work.out, self.recent_losses.maxlen or 0) if self.ranks.first else None
        self.recent_losses.extend(broadcast_json(losses) or [])
        return journal

    def _record(self, journal: Journal, ids: list[int], metrics: dict[str, Any], timing: dict[str, Any]) -> None:
        """Rank 0: writes a step to the log and to the journal."""
        self._report(metrics, timing)
        try:
            journal.write_step(self.steps_done, self.work.index.ids[ids].tolist(), metrics, timing)
        except OSError as error:
            raise write_error(self.work.out / FOLDER, error) from error

    def _is_due(self) -> bool:
        """Whether the last step is followed by a validation and a checkpoint."""
        return self.steps_done == self.order.steps or (
            self.steps_done > 0 and self.steps_done % self.train.checkpoint_every == 0
        )

    def _validate(self) -> dict[str, Any]:
        """The losses on held-out records, as in a row of metrics.jsonl; every rank calls it."""
        if self.work.held_out is None:
            return {}
        activity = f"measures the validation loss after step {self.steps_done}"
        start = time.perf_counter()
        beat = partial(self.beat, activity, self.train.stuck_after)
        beat()
        measures = validation.measure_losses(self.work.held_out, self.engine, self.train, self.ranks, beat)
        self.validation_s = time.perf_counter() - start
        return measures

    def _report(self, metrics: dict[str, Any], timing: dict[str, Any]) -> None:
        """A line for the log: at the first and last step, at every validation loss, and every few seconds."""
        last, held_out = self.steps_done == self.order.steps, metrics.get(validation.LOSS)
        if not (last or held_out or time.monotonic() - self.last_report >= REPORT_S):
            return
        self.last_report = time.monotonic()
        loss_text = f", validation loss {held_out:.4g}" if held_out else ""
        print(
            f"step {self.steps_done}/{self.order.steps}: loss {metrics['loss']:.4g}{loss_text}, "
            f"lr {metrics['lr']:.3g}, {timing['tokens_per_s']:.0f} tokens/s"
            + ("" if last else f", ETA {spell(timing['eta_s'])}"),
            flush=True,
        )

    def _layouts(self) -> Any:
        """(sample ids, this rank's micro-batches) of every remaining step."""
        index, train = self.work.index, self.train
        group_size = train.ranks_a_micro_batch
        for step in range(self.steps_done, self.order.steps):
            ids = self.order.batch(step)
            layout = lay_out(
                ids,
                index.groups,
                index.prefix,
                index.suffix,
                world_size=self.ranks.world_size // group_size,
                budget=train.token_budget,
                shared=train.shared_prefix,
            )
            yield ids, layout[self.ranks.rank // group_size]

    def _weights(self, ids: list[int]) -> list[float]:
        """[kinds]: the weight of a supervised token of each kind in this step's loss, rounded to float32."""
        counts = self.kinds.counts(ids, self.work.index.supervised)
        if self.train.loss == "kinds":
            return (1 / counts.clamp(min=1)).float().tolist()
        return torch.full_like(counts, 1 / float(counts.sum())).float().tolist()

    def _step(self, ids: list[int], micro_batches: list[MicroBatch]) -> tuple[dict, bool]:
        """Forward, backward, one collective over sums and flags, and the update.

        Only two values are read back from a GPU: the collective's sums, and the gradient norm after the update.
        """
        self.beat(f"computes step {self.steps_done + 1}", self.train.stuck_after)
        weights = self._weights(ids)
        weights_on_device = torch.tensor(weights, dtype=torch.float32, device=self.device)
        names = self.kinds.names
        sums = torch.zeros(2 * len(names) + 4, dtype=torch.float64, device=self.device)
        per_kind, counts = sums[: len(names)], sums[len(names) : -4]
        for number, micro_batch in enumerate(micro_batches, 1):
            micro_batch = micro_batch.to(self.device)
            nll = self.engine(micro_batch)
            kinds = self.kinds.of(micro_batch)
            self.engine.backward((nll * weights_on_device[kinds]).sum(), last=number == len(micro_batches))
            per_kind.index_add_(0, kinds, nll.detach().double())
            counts.index_add_(0, kinds, torch.ones_like(nll, dtype=torch.float64))
        self.beat(f"waits for the others in step {self.steps_done + 1}", self.train.stuck_after, waits=True)
        flags = [float(self.should_stop()), float(self.checkpoints.failed)]
        own_values = [
            *flags,
            sum(micro_batch.tokens for micro_batch in micro_batches),
            sum(map(self.work.flops, micro_batches)),
        ]
        sums[-4:] = torch.tensor(own_values, dtype=torch.float64)
        dist.all_reduce(sums)
        *values, stop, failed, tokens, self.flops = sums.tolist()
        if failed:
            self.checkpoints.finish()
        per_kind, counts = values[: len(names)], values[len(names) :]
        loss = sum(total * weight for total, weight in zip(per_kind, weights))
        self._check(loss)
        rate = rate_at(self.steps_done, self.order.steps, self.train.learning_rate, self.train.warmup)
        norm = self.engine.step(rate)
        self._check(norm, "gradient norm")
        self.recent_losses.append(loss)
        kind_losses = {f"loss_{kind}": total / count for kind, total, count in zip(names, per_kind, counts) if count}
        return {
            "loss": loss,
            **kind_losses,
            "lr": rate,
            "grad_norm": norm,
            "samples": self.order.consumed(self.steps_done + 1),
            "tokens": int(tokens),
            "supervised": int(sum(counts)),
        }, stop > 0

    def _check(self, value: float, what: str = "loss") -> None:
        limit = self.train.loss_limit
        median_loss = (
            statistics.median(self.recent_losses) if len(self.recent_losses) == self.recent_losses.maxlen else math.inf
        )
        if math.isfinite(value) and (what != "loss" or not limit or value <= limit * median_loss):
            return
        self.checkpoints.finish()  # the newest one may still be in writing
        excess, alternative = "", ""
        if math.isfinite(value):
            excess = f", more than {limit:g} times the recent {median_loss:.4g}"
            alternative = f"; with train.loss_limit above {limit:g}, or 0 for none, it goes on from there"
        raise Diverged(
            f"the {what} of step {self.steps_done + 1} is {value:.4g}{excess}; the last good checkpoint is "
            f"{newest_checkpoint(self.work.out / FOLDER) or 'none'}{alternative}. A lower train.learning_rate or "
            "train.clip often helps: the training then starts from the base, and this one is kept in earlier/"
        )

    def _save(self, journal: Journal | None) -> None:
        state = {
            "fingerprint": self.work.fingerprint,
            "base": self.work.base,
            "samples": self.order.consumed(self.steps_done),
        }
        try:
            if journal is not None:
                journal.sync()
            self.stall_s = self.checkpoints.save(self.steps_done, state, self.engine.stage)
        except OSError as error:
            raise write_error(self.work.out / FOLDER, error) from error

    def _timing(
        self, seconds: float, waited: float, micro_batches: list[MicroBatch], metrics: dict[str, Any], started: float
    ) -> dict[str, Any]:
        """Times of a step: `seconds` since the end of the previous one, plus the last checkpoint's pause."""
        self.step_seconds.append(seconds)
        total, stall, self.stall_s = seconds + self.stall_s, self.stall_s, 0.0
        timing = {
            "seconds": round(total, 6),
            "data_wait": round(waited, 6),
            "checkpoint_stall": round(stall, 6),
            "tokens_per_s": round(metrics["tokens"] / total, 1),
            "micro_batches": len(micro_batches),
            "gpus": self.ranks.world_size,
            "steps": self.order.steps,
            "eta_s": round((self.order.steps - self.steps_done) * statistics.mean(self.step_seconds), 1),
            "time": round(time.time(), 3),
        }
        if torch.cuda.is_available():
            timing["memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
            if peak := peak_flops(torch.cuda.get_device_name()):
                timing["mfu"] = round(self.flops / total / peak / self.ranks.world_size, 4)
        if self.validation_s:
            timing["validation"], self.validation_s = round(self.validation_s, 3), 0.0
        if self.untimed:
            timing["start_to_first_step"] = round(time.monotonic() - started, 3)
            self.untimed = False
        return timing
