"""Answers test questions: greedy, batched, each image encoded once for all its questions (paper, section 2.5)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from lumen_hpc import nvila
from lumen_hpc.config.schema import Predict
from lumen_hpc.data import leaks, perturbations, probes
from lumen_hpc.data.findings_line import strip
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign
from lumen_hpc.nvila.checkpoint import read_files
from lumen_hpc.nvila.generate import Answer
from lumen_hpc.nvila.placement import device_for
from lumen_hpc.nvila.prompt_form import PromptForm
from lumen_hpc.training import adapters
from lumen_hpc.training.fitting import FittedRecord, fit
from lumen_hpc.training.folder import MARKER
from lumen_hpc.training.lengths import measure
from lumen_hpc.training.samples import Pictures

log = logging.getLogger(__name__)
Row = dict[str, Any]


def open_model(folder: Path, *, run: Path | None = None) -> nvila.NVILA:
    """NVILA from a folder in the official layout, or from a training checkpoint (`…/checkpoints/step-000400`).

    A checkpoint holds only weights; its configuration and tokenizer come from the base that it records. The dtype is
    bfloat16 on a GPU, elsewhere the stored one. Weights that the first GPU cannot hold are spread over all GPUs, main
    memory and disk (nvila/placement.py). Checkpoints are pickles: they are read only below the folder `run`, from files
    of this user that match their hashes, and only weights and plain values are unpickled. Raises UserError for others.
    """
    on_gpu = torch.cuda.is_available()
    dtype, device = (torch.bfloat16, "cuda") if on_gpu else (None, "cpu")
    if not (folder / MARKER).is_file():
        return nvila.load(folder, dtype=dtype, device=_choose_device(folder))
    _require_own(folder, run)
    from lumen_hpc.training.accelerator import weights_only, zero_to_fp32
    from lumen_hpc.training.checkpointing import verified_state

    state = verified_state(folder)
    base = Path(state["base"])
    if not base.is_dir():
        raise UserError(f"{folder} was trained from {base}, which does not exist: put that model back there")
    model = nvila.load(base, dtype=dtype, device=device)
    model.config = model.config.with_prompt_form(PromptForm.trained())
    with weights_only():
        weights = zero_to_fp32.get_fp32_state_dict_from_zero_checkpoint(
            str(folder), tag="deepspeed", exclude_frozen_parameters="train.adapter" in state["fingerprint"]
        )
    # Parameters that the checkpoint lacks were frozen and equal the base's.
    learned_weights, factors = adapters.split({name.removeprefix("model."): tensor for name, tensor in weights.items()})
    if factors:
        adapter = state["fingerprint"]["train.adapter"]
        learned_weights = adapters.merge(
            model.state_dict(), factors, adapters.scale(adapter), adapter.get("base_bits", 16)
        )
    _, unknown_names = model.load_state_dict(learned_weights, strict=False)
    if unknown_names:
        raise UserError(f"{folder} does not belong to {base}, which has no {unknown_names[0]}")
    return model


def _choose_device(folder: Path) -> str:
    """The device for a model's weights, by their size on disk, where an 8B model has bfloat16."""
    weight_bytes = sum(file.stat().st_size for file in read_files(folder) if file.suffix == ".safetensors")
    free_bytes = [torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count())]
    device = device_for(weight_bytes, free_bytes)
    if device == "auto":
        log.warning("%.1f GB of weights, %.1f GB free on GPU 0: layers are spread, which is slower", weight_bytes / 1e9,
                    free_bytes[0] / 1e9)  # fmt: skip
    return device


def _require_own(checkpoint: Path, run: Path | None) -> None:
    """Raises UserError unless a checkpoint lies below the folder `run` and its files are this user's."""
    if run is None or not checkpoint.resolve().is_relative_to(run.resolve()):
        raise UserError(
            f"{checkpoint} is a training checkpoint, which is read only within the run that wrote it; give a folder in "
            "the official layout, such as the run's train-MODEL/final"
        )
    for path in [checkpoint, *checkpoint.rglob("*")]:
        if reason := foreign(path):
            raise UserError(
                f"{checkpoint} is not read: {reason}; give its files to this user alone (cp -rL, chmod -R o-w)"
            )


class Answerer(Protocol):
    """The engine behind a `Predictor`: `NativeAnswerer`, or `serving.vllm_answerer.VLLMModel`."""

    @property
    def preprocessor(self) -> nvila.Preprocessor: ...
    def generate(self, records: Sequence[Row], *, max_new_tokens: int) -> list[Answer]: ...


class NativeAnswerer:
    """The reference engine: `NVILA.generate` on records whose images stand where their text has `<image>`."""

    def __init__(self, model: nvila.NVILA, batch_tokens: int) -> None:
        self._model, self._batch_tokens = model.eval(), batch_tokens
        self.preprocessor = model.preprocessor

    def generate(self, records: Sequence[Row], *, max_new_tokens: int) -> list[Answer]:
        inputs = self._model.preprocess(records, generation=True, inline=True)
        return self._model.generate(inputs, max_new_tokens=max_new_tokens, batch_tokens=self._batch_tokens)


class Predictor:
    """Answers instruction records with one model."""

    def __init__(self, model: Answerer, settings: Predict, name: str, max_tokens: int | None = None) -> None:
        """`name`: the `model` of the rows, such as nvila, ft or lumen.

        `max_tokens`: `train.max_tokens`, beyond which records lose their oldest images, as in training (`fitting.fit`);
        None is no limit.
        """
        self._model, self._settings, self._name, self._max_tokens = model, settings, name, max_tokens
        self._pictures = Pictures()

    def answer(self, questions: Sequence[Row], span: Iterable[int]) -> Iterator[Row]:
        """Answer rows of the records at the positions `span` of all test records, each followed by its controls.

        Rows: {question_id, model, answer, tokens, seconds}; a findings line before the answer is in `findings`.
        `images_left_out` is the number of images that a record was too long for, if any. A control's row has `control`,
        and `ref_study_id` and `study_id` of the images that it shows. `seconds` is a question's share of its batch.
        Rows come in the order of the records, one window at a time, so that progress is visible and memory holds the
        images of one window.
        """
        composed = probes.CONTROL in self._settings.controls
        self._levelled = probes.findings_with_levels(questions) if composed else ()
        for window in self._windows(self._with_controls(questions, span)):
            start = time.perf_counter()
            answers = self._generate([fitted.record for fitted in window])
            share = (time.perf_counter() - start) / len(window)
            for fitted, generated in zip(window, answers):
                yield self._row(fitted, generated, share)

    def _with_controls(self, questions: Sequence[Row], span: Iterable[int]) -> Iterator[Row]:
        for index in span:
            yield questions[index]
            for control in self._settings.controls:
                if control == probes.CONTROL:
                    yield from probes.probes(questions[index], self._levelled)
                elif (record := perturbations.perturb(control, questions, index)) is not None:
                    yield record

    def _windows(self, records: Iterable[Row]) -> Iterator[list[FittedRecord]]:
        """Consecutive records for a few generation batches: enough to sort by length and to share images."""
        measure_records = partial(measure, preprocessor=self._model.preprocessor)
        window: list[FittedRecord] = []
        window_tokens = 0
        for record in records:
            leaks.refuse(record)
            (fitted,) = fit([record], measure_records, self._max_tokens or sys.maxsize)
            if fitted.measure.fault:
                raise UserError(f"record {record['id']}: {fitted.measure.fault}")
            if window and window_tokens + fitted.measure.prefix > 4 * self._settings.batch_tokens:
                yield window
                window, window_tokens = [], 0
            window.append(fitted)
            window_tokens += fitted.measure.prefix
        if window:
            yield window

    def _generate(self, records: list[Row]) -> list[Answer]:
        pictures = {path: self._pictures.open(path) for path in dict.fromkeys(p for r in records for p in r["images"])}
        inputs = [{**record, "images": [pictures[path] for path in record["images"]]} for record in records]
        return self._model.generate(inputs, max_new_tokens=self._settings.max_new_tokens)

    def _row(self, fitted: FittedRecord, generation: Answer, seconds: float) -> Row:
        meta = fitted.record["meta"]
        answer = strip(generation.text, meta.get("line", ()))
        row = {
            "question_id": meta["question_id"],
            "model": self._name,
            "answer": answer,
            "tokens": len(generation.ids),
            "seconds": round(seconds, 4),
        }
        if meta["type"] == "outcome":
            row["yes"] = None if generation.yes is None else round(generation.yes, 6)
        if answer != generation.text:
            row["findings"] = generation.text[: len(generation.text) - len(answer)].rstrip(" ;")
        if fitted.images_left_out:
            row["images_left_out"] = fitted.images_left_out
        if "control" in meta:
            row |= {key: meta[key] for key in ("control", "ref_study_id", "study_id")}
        return row


def open_predictor(
    weights: Path, settings: Predict, *, model: str, run: Path | None = None, max_tokens: int | None = None
) -> Predictor:
    """A native predictor with the weights in a folder: a final model, a pretrained NVILA, or a checkpoint of `run`.

    `max_tokens`: as of `Predictor`.
    """
    return Predictor(NativeAnswerer(open_model(weights, run=run), settings.batch_tokens), settings, model, max_tokens)
