"""What a run is, as its tables and page name it: data, models, judge, and where it departs from the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lumen_hpc.config.schema import PARTS, EngineSettings, Settings
from lumen_hpc.data.counts import MIMIC_CXR
from lumen_hpc.models import MODELS
from lumen_hpc.weights import own_name

COMPOSED = "+rule"
"""Suffix of a composed baseline: `ft+rule` compares FT's answers about each image by rule."""
OFFICIAL_BASE = "NVILA-8B"
PAPER_JUDGE = "Llama-3.1-405B"
PAPER_REWRITER = "Llama-3.2-11B-Vision-Instruct"


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The parts of a run that decide how its numbers may be read; the defaults are those of a phantom demo."""

    data: str = "phantom"
    """`phantom` or `mimic`."""
    studies: int = MIMIC_CXR["studies"]
    """Studies of the data's metadata."""
    base: str = "tiny"
    """`train.base`."""
    judge: str = "grammar"
    """The first judge's engine and model; `grammar` is a rule, not a language model."""
    shows_patients: bool = False
    """The page shows images and texts of credentialed data."""
    patients_in_two_splits: int = 0
    """Patients whose questions are in more than one split, where `prepare.patient_overlap=allow` lets them be."""
    deviations: tuple[str, ...] = ()
    """Where the run departs from the paper, a sentence each."""

    @property
    def mimic(self) -> bool:
        """True for data in MIMIC-CXR's layout, not generated here."""
        return self.data == "mimic"

    @property
    def comparable(self) -> bool:
        """True where the published numbers are about the same dataset: all of MIMIC-CXR, or most of it."""
        return self.mimic and 2 * self.studies >= MIMIC_CXR["studies"]

    def label(self, model: str) -> str:
        """A model's own name: the paper's only for a model fine-tuned from the paper's base."""
        if model.endswith(COMPOSED):
            base = model.removesuffix(COMPOSED)
            return f"{'FT' if base == 'ft' else self.label(base)} + rule"
        if model not in MODELS:
            return model
        name = own_name(self.base)
        if name == OFFICIAL_BASE:
            return MODELS[model].label
        own_base = "tiny NVILA" if name == "tiny" else name
        label = MODELS[model].label
        return label.replace(OFFICIAL_BASE, own_base) if OFFICIAL_BASE in label else f"{label} ({own_base})"

    @property
    def judge_label(self) -> str:
        """The heading of the judge's column."""
        return "Grammar rule (1–10)" if self.judge == "grammar" else f"Judge {self.judge} (1–10)"

    @property
    def banner(self) -> tuple[str, ...]:
        """What a reader must know before any number; empty for the paper's models on the paper's data."""
        lines = []
        if self.shows_patients:
            lines.append("This page shows images and texts of credentialed patients: keep it where the data may lie, "
                         "and pass it to nobody outside the data-use agreement.")  # fmt: skip
        if not self.mimic:
            lines.append("The data are phantoms: generated images, not radiographs. No number here says anything about "
                         "patients, and none compares with a published one.")  # fmt: skip
        elif not self.comparable:
            lines.append(f"The data are {self.studies:,} studies in MIMIC-CXR's layout, which has "
                         f"{MIMIC_CXR['studies']:,}: no published number stands beside these.")  # fmt: skip
        if self.patients_in_two_splits:
            lines.append(f"{self.patients_in_two_splits:,} patients have questions in more than one split "
                         "(prepare.patient_overlap=allow): the models may have learned from patients on whom they are "
                         "tested, so that their scores may be too high.")  # fmt: skip
        if self.base == "tiny":
            lines.append("The models are tiny stand-ins with the architecture of NVILA, trained in minutes; no "
                         "NVILA-8B was run.")  # fmt: skip
        if self.judge == "grammar":
            lines.append("The judge is a grammar rule, not a language model: its scores are not Llama scores.")
        elif PAPER_JUDGE not in self.judge:
            lines.append(f"The judge is {self.judge}, not the paper's {PAPER_JUDGE}: its scores are not comparable.")
        return tuple(lines)


def identify(settings: Settings, counts: Mapping[str, Any] | None = None) -> Identity:
    """The identity of a run with these `Settings`; `counts`: of its stage prepare (counts.json)."""
    counts = counts or {}
    studies = counts.get("studies", {}).get("in_metadata", {}).get("ours")
    overlap = counts.get("patients_in_two_splits", 0) if settings.prepare.patient_overlap == "allow" else 0
    return Identity(
        data=settings.data.source,
        studies=MIMIC_CXR["studies"] if studies is None else studies,
        base=settings.train.base,
        judge=_engine(settings.judge.engine),
        patients_in_two_splits=overlap,
        deviations=tuple(_deviations(settings)),
    )


def _engine(engine: EngineSettings) -> str:
    return engine.kind if engine.kind == "grammar" else own_name(engine.model) or engine.kind


def _deviations(settings: Settings) -> Sequence[str]:
    """One sentence for each setting that departs from what the paper states (facts: sections 2.1 to 2.5)."""
    train, instruct, rewrite, experts = settings.train, settings.instruct, settings.rewrite, settings.experts
    unused_parts = [part for part in ("pathologies", "age", "race", "view")
              if part not in experts.in_prompt or part not in ("pathologies", *experts.extra)]  # fmt: skip
    mimic, base = settings.data.source == "mimic", own_name(train.base)
    frozen = [part.replace("_", " ") for part in PARTS if part not in train.tune]
    sentences = [
        (not mimic, "Data: generated phantoms in place of MIMIC-CXR and Medical-Diff-VQA (2.1)."),
        (mimic and settings.prepare.difference_fraction == 1,
         "Data: every difference question is kept. The paper trains on 43,381 of them by a filter that it does not "
         "state, about a third; `prepare.difference_fraction` keeps a seeded share (2.1)."),
        (not settings.prepare.one_study_per_test_subject,
         "Data: every study of a test patient is asked about, not one per patient (2.1)."),
        (settings.prepare.patient_overlap == "allow",
         "Data: a patient may be in more than one split (2.1)."),
        (rewrite.predictions_per_pair == 1,
         "Data: one prediction question per difference pair. The paper's test set has 3,936 on 2,451 images, about "
         "2.9 per test difference question; `rewrite.predictions_per_pair=3` asks three (2.1)."),
        (experts.model == "phantom", "Experts: a classifier trained on phantoms, not TorchXRayVision (2.3)."),
        (experts.model not in ("xrv", "phantom"), f"Experts: {experts.model}, not TorchXRayVision (2.3)."),
        (experts.model == "xrv" and experts.thresholds != [0.25, 0.5, 0.75],
         f"Experts: words at probabilities {experts.thresholds}, not [0.25, 0.5, 0.75] (2.3)."),
        (not instruct.expert_text, "Instructions: without the experts' predictions (2.3)."),
        (instruct.expert_text and experts.model == "xrv" and bool(unused_parts),
         f"Instructions: without the experts' {' and '.join(unused_parts)}, which the paper joins (2.3)."),
        (bool(instruct.clinical), "Instructions: with lines of the patient's state, of "
                                  f"{' and '.join(instruct.clinical)}; the paper has none (2.3)."),
        (instruct.findings_first, "Instructions: change answers open with a line of each finding's state, which is "
                                  "removed before scoring; the paper has none (2.4)."),
        (instruct.max_images == 2, "Instructions: a prediction question shows the reference image only. The paper "
                                   "speaks of two-image input, but the later image holds the answer; "
                                   "`instruct.max_images=3` adds the image before the reference (2.4)."),
        (instruct.max_images > 2, "Instructions: a prediction question shows the reference image and up to "
                                  f"{instruct.max_images - 2} before it, never the later one, which holds the "
                                  "answer; a difference question shows these and the main image, the paper two (2.4)."),
        (_engine(rewrite.engine) == "grammar", "Long answers: templates of a grammar, not sentences of "
                                               f"{PAPER_REWRITER} (2.2)."),
        (_engine(rewrite.engine) != "grammar" and PAPER_REWRITER not in rewrite.engine.model,
         f"Long answers: by {_engine(rewrite.engine)}, not {PAPER_REWRITER} (2.2)."),
        (base == "tiny", "Base: a tiny NVILA whose tower was trained as a classifier of phantoms, not NVILA-8B (2.5)."),
        (base not in ("tiny", OFFICIAL_BASE), f"Base: {base}, not NVILA-8B (2.5)."),
        (bool(frozen), f"Training: {' and '.join(frozen)} frozen; the paper updates all parts (2.5)."),
        (train.learning_rate != 1.5e-5, f"Training: learning rate {train.learning_rate:g}, not 1.5e-5 (2.5)."),
        (train.adapter.kind == "lora", f"Training: low-rank updates of rank {train.adapter.rank} learn on weights of "
                                       f"{train.adapter.base_bits} bits; the paper updates the weights (2.5)."),
        (bool(train.mixture), f"Training: {sum(train.mixture.values())} questions a step in a fixed mixture of kinds, "
                              "not one random pass in batches of 128 (2.5)."),
        (train.loss != "tokens", "Training: the loss is the sum of each kind's mean, not the mean over tokens (2.5)."),
        (not train.mixture and train.global_batch != 128,
         f"Training: global batch {train.global_batch}, not 128 (2.5)."),
        (bool(train.steps), f"Training: {train.steps:,} steps, not one epoch (2.5)."),
        (not train.steps and train.epochs != 1, f"Training: {train.epochs:g} epochs, not 1 (2.5)."),
        (PAPER_JUDGE not in _engine(settings.judge.engine),
         f"Judge: {_engine(settings.judge.engine)}, not {PAPER_JUDGE} (2.5)."),
        (True, "Judge: the rubric is this project's own, since the paper prints none, so absolute scores do not "
               "compare with the published ones (2.5)."),
    ]  # fmt: skip
    return [sentence for applies, sentence in sentences if applies]


def exposure(settings: Settings) -> str:
    """What the experts have seen of the test images before; empty where nothing is known."""
    if settings.experts.model not in ("xrv", "phantom"):
        return ""
    if settings.experts.model == "phantom":
        return "The phantom expert is trained on phantoms of another seed and has seen no image of this run."
    mimic_models = [name for name in settings.experts.pathologies if "all" in name or "mimic" in name]
    parts = [f"{' and '.join(mimic_models)} (pathologies)"] if mimic_models else []
    parts += ["the race model"] if "race" in settings.experts.extra else []
    if not parts or settings.data.source != "mimic":
        return ""
    return (f"Expert models trained on MIMIC-CXR: {', '.join(parts)}. Their training images include studies of this "
            "test set, so what they say of it is better than of unseen patients.")  # fmt: skip
