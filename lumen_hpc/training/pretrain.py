"""Trains stand-in weights for the demo, on phantoms of another seed than the run's.

TorchXRayVision's experts and NVILA-8B cannot be downloaded without internet. Their stand-ins are trained here the same
way, in miniature: first the vision side (the phantom expert, a classifier), then a tiny NVILA that starts from its
tower and projector and learns to answer diagnostic questions for a few steps. That base is the demo's untuned row;
`ft` and `lumen` are fine-tuned from it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from lumen_hpc.config.data_schema import Pretrain
from lumen_hpc.config.schema import Experts, Instruct
from lumen_hpc.data.phantom import Study
from lumen_hpc.experts import phantom_expert as experts
from lumen_hpc.experts.confidence_words import sentence
from lumen_hpc.language.prediction_questions import fill_in, templates
from lumen_hpc.muon import Muon
from lumen_hpc.nvila import NVILA, Batch, pack, save
from lumen_hpc.nvila.prompt_form import PromptForm
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.progress import INTERVAL_S, spell
from lumen_hpc.replicas import PARTS, Replicas, one_core_threads
from lumen_hpc.schedule import rate_at
from lumen_hpc.training import phantom_records
from lumen_hpc.training.prefetcher import Prefetcher
from lumen_hpc.training.sampler import single_stream
from lumen_hpc.watchdog import Beat, unwatched

SEED_OFFSET = 1_000_003
"""Added to the run's seed, so that no patient of the run is used here."""
IMAGE_SIZE = 64
"""Side of the tower's input [px]; larger images are resized to it."""
PATIENTS_READ = 600
"""Patients whose texts the tokenizer is trained on."""
QUESTIONS, TOGETHER = 96, 6
"""Questions per step of the base, and at most per image in a step."""
MATRIX_RATE, LEARNING_RATE, WARMUP, CLIP = 0.01, 3e-3, 0.2, 1.0


def pretrain(
    settings: Pretrain, expert_settings: Experts, instruct: Instruct, seed: int, folder: Path,
    beat: Beat = unwatched, more_texts: Iterable[str] = (),
) -> list[Path]:  # fmt: skip
    """Writes `folder`/expert.safetensors and `folder`/nvila/ (official layout); returns the paths of their files.

    `metrics.jsonl` beside them has a row for each step of the two trainings. `expert_settings` and `instruct` define
    the form of the base's questions, as they do for stage `instruct`. The tokenizer is trained on `more_texts` too.
    """
    step_log = _StepLog(folder, settings)
    torch.manual_seed(seed)
    pixels, targets, timelines = experts.training_images(seed + SEED_OFFSET, settings.patients, IMAGE_SIZE)
    tokenizer_texts = chain(texts(timelines[:PATIENTS_READ], expert_settings, instruct, seed), more_texts)
    model = make_tiny(tokenizer_texts, seed=seed, image_size=IMAGE_SIZE, layers=settings.layers)
    expert = experts.PhantomExpert(model.vision_tower, model.mm_projector, model.config.vision_tower,
                                   model.config.hidden_size)  # fmt: skip
    steps = experts.train(expert, pixels, targets, steps=settings.expert_steps, seed=seed)
    step_log.write((step["loss"] for step in steps), "expert", settings.expert_steps, beat)
    experts.save_expert(expert, folder / "expert.safetensors")
    expert_sentences = sentences(expert, timelines, expert_settings) if instruct.expert_text else {}
    records = [r for r in phantom_records.records(timelines, instruct, seed, expert_sentences=expert_sentences)
               if r["meta"]["type"] not in ("difference", "prediction")]  # fmt: skip
    losses = train_base(model, records, steps=settings.base_steps, seed=seed)
    step_log.write(losses, "base", settings.base_steps, beat)
    model.config = model.config.with_prompt_form(PromptForm.trained(expert_text=instruct.expert_text))
    save(model, folder / "nvila")
    return [folder / "expert.safetensors", *sorted(path for path in (folder / "nvila").rglob("*") if path.is_file())]


class _StepLog:
    """Writes the steps of both trainings to `metrics.jsonl`, from which `status` reads their progress (speed.py)."""

    def __init__(self, folder: Path, settings: Pretrain) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._done, self._total = folder / "metrics.jsonl", 0, settings.steps
        self._path.unlink(missing_ok=True)

    def write(self, losses: Iterator[float], part: str, steps: int, beat: Beat) -> None:
        """Runs the steps of a training, and prints a line at the last one and every INTERVAL_S seconds before."""
        start = previous = reported = time.monotonic()
        with self._path.open("a", buffering=1) as file:
            for step, loss in enumerate(losses, 1):
                beat()
                now = time.monotonic()
                self._done += 1
                timing = {"seconds": round(now - previous, 3), "gpus": 1, "steps": self._total}
                file.write(json.dumps({"step": self._done, "part": part, "loss": loss, "timing": timing}) + "\n")
                previous = now
                if step == steps or now - reported >= INTERVAL_S:
                    reported = now
                    eta = "" if step == steps else f", ETA {spell((now - start) / step * (steps - step))}"
                    print(f"{part} step {step}/{steps}: loss {loss:.3f}{eta}", flush=True)


def texts(timelines: Sequence[Sequence[Study]], settings: Experts, instruct: Instruct, seed: int) -> Iterator[str]:
    """Texts of every kind that the demo's models read or write, for the tokenizer."""
    all_forms = Instruct(findings_first=True, expert_text=False, max_images=instruct.max_images)
    for record in phantom_records.records(timelines, all_forms, seed):
        yield from (turn["value"] for turn in record["conversations"])
    yield from (fill_in(template, days) for template in templates() for days in range(1, 10))
    for p in (0.1, 0.3, 0.6, 0.9):
        probabilities = {key: [1 - p, p] for key in experts.ATTRIBUTES}
        yield sentence(experts.row(probabilities), settings.in_prompt, settings.thresholds)


def sentences(expert: experts.PhantomExpert, timelines: Sequence[Sequence[Study]], settings: Experts) -> dict[str, str]:
    """study_id → the expert's sentence, in the wording of stage `instruct`."""
    studies = [study for timeline in timelines for study in timeline]
    return {
        str(study.study_id): sentence(experts.row(probabilities), settings.in_prompt, settings.thresholds)
        for study, probabilities in zip(
            studies, expert.probabilities(np.stack([study.pixels for study in studies])), strict=True
        )
    }


def train_base(model: NVILA, records: Sequence[dict], *, steps: int, seed: int) -> Iterator[float]:
    """Trains on diagnostic questions with the tower frozen; yields the loss of every step."""
    model.vision_tower.requires_grad_(False)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = Muon(model, MATRIX_RATE, LEARNING_RATE)
    groups = image_groups(records)
    sampler = single_stream(groups, global_batch=QUESTIONS, epochs=0, steps=steps, max_run_length=TOGETHER, seed=seed)
    model.train()

    def part_loss(replica: NVILA, part: tuple[Batch, int]) -> torch.Tensor:
        batch, supervised = part
        return replica(batch, loss_denominator=supervised).loss

    def layouts() -> Iterator[tuple[list[int], list[list[list[dict]]]]]:
        for step in range(sampler.steps):
            ids = sampler.batch(step)
            by_group: dict[int, list[dict]] = {}
            for index in ids:
                by_group.setdefault(int(groups[index]), []).append(records[index])
            yield ids, [list(by_group.values())[number::PARTS] for number in range(PARTS)]

    with one_core_threads() as pool, Prefetcher(layouts(), Packer(model), workers=1) as prefetcher:
        replicas = Replicas(model, pool)
        for step, (_, batches) in enumerate(prefetcher):
            supervised = sum(batch.supervised for batch in batches)
            loss = replicas.backward(part_loss, [(batch, supervised) for batch in batches])
            torch.nn.utils.clip_grad_norm_(trainable, CLIP)
            optimizer.step(rate_at(step, sampler.steps, 1.0, WARMUP))
            yield loss
    model.requires_grad_(True).eval()


@dataclass(frozen=True)
class Packer:
    """Builds batches for the prefetcher; the records of a group share their pictures."""

    model: NVILA

    def build(self, groups: Sequence[Sequence[dict]]) -> Batch:
        return pack([self.model.preprocess(group, inline=True).samples for group in groups])


def image_groups(records: Sequence[dict]) -> np.ndarray:
    """int [n], equal where the records' pictures are the same arrays."""
    numbers: dict[tuple[int, ...], int] = {}
    return np.array([numbers.setdefault(tuple(map(id, r["images"])), len(numbers)) for r in records])
