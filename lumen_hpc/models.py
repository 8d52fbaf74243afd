"""Declares the models that a run compares, for all stages.

From this registry stages take which models train on which records, settings take the names, estimates the workload and
the report the labels. To compare another training, add an entry, before stage instruct runs:

    "lumen-short": ComparedModel(
        name="lumen-short", label="LUMEN (one prior)", trains_on=("diagnostic", "difference"),
        workload=Workload(samples=515_757, image_sets=172_612),
    ),

Answers of a model that is no NVILA are scored beside a run's by `python -m lumen_hpc.metrics` (docs/evaluation.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lumen_hpc.errors import UserError


@dataclass(frozen=True)
class Workload:
    """The data of a training; the defaults are those of the paper's LUMEN (section 2.1, one prediction per pair)."""

    samples: int = 428_995 + 2 * 43_381
    image_sets: int = 129_231 + 43_381
    """Sequences if all questions about the same images share them."""
    pairs: int = 43_381
    """Samples of two images, each pair with its own sequence; the others have one image."""
    tiles: int = 17
    """Tiles per image (dynamic_s2 on a 2544 × 3056 radiograph)."""
    image_tokens: int = 3073
    """Language-model tokens per image."""
    text_tokens: int = 160
    """Text tokens per sample, with the experts' words."""
    answer_tokens: int = 30
    """Supervised tokens per sample."""

    @property
    def images(self) -> float:
        """Images per sample."""
        return 1 + self.pairs / self.samples


KINDS = ("diagnostic", "difference", "prediction", "outcome", "timeline")
"""Kinds of question."""


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    name: str
    """In settings, folder names and rows."""
    label: str
    """In tables and figures."""
    trains_on: tuple[str, ...] = ()
    """KINDS of question on which it trains; empty: NVILA as it is. A model that trains on outcomes is compared only
    where `predict.models` names it."""
    workload: Workload | None = None
    """The data of its training in the paper; None if it is not trained."""

    def __post_init__(self) -> None:
        if unknown := set(self.trains_on) - set(KINDS):
            raise UserError(
                f"lumen_hpc/models.py: {self.name} trains on {sorted(unknown)}; the kinds are {', '.join(KINDS)}"
            )
        if self.trained != (self.workload is not None):
            raise UserError(f"lumen_hpc/models.py: {self.name} needs trains_on and workload, or neither")

    @property
    def trained(self) -> bool:
        return bool(self.trains_on)


REPEAT_MARK = "@"
"""Separates a model's name and the number of a repeated training."""

MODELS: dict[str, ComparedModel] = {
    model.name: model
    for model in (
        ComparedModel(name="nvila", label="NVILA-8B"),
        ComparedModel(
            name="ft",
            label="NVILA-8B-FT",
            trains_on=("diagnostic",),
            workload=Workload(samples=428_995, image_sets=129_231, pairs=0),
        ),
        ComparedModel(
            name="lumen", label="LUMEN", trains_on=("diagnostic", "difference", "prediction"), workload=Workload()
        ),
        ComparedModel(
            name="lumen-outcomes",
            label="LUMEN + outcomes",
            trains_on=("diagnostic", "difference", "prediction", "outcome", "timeline"),
            workload=Workload(
                samples=428_995 + 4 * 43_381, image_sets=129_231 + 3 * 43_381, pairs=2 * 43_381, text_tokens=300
            ),
        ),
    )
}
if len(_same := [model.name for model in MODELS.values() if not model.trained]) > 1:
    raise UserError(
        f"lumen_hpc/models.py: {' and '.join(_same)} train on nothing, so each of them would be NVILA as it is"
    )


def compared_model(model: str) -> ComparedModel:
    """The entry of a model or of a repeated training (`lumen@1`). Raises KeyError for other names."""
    return MODELS[model.partition(REPEAT_MARK)[0]]


def training_number(model: str) -> int:
    """0 for a model's first training, 1 for `lumen@1`; a training's seed is the run's plus this number."""
    return int(model.partition(REPEAT_MARK)[2] or 0)


def repeats(names: Iterable[str], seeds: int) -> list[str]:
    """The repeated trainings of the models `names` that train, with `seeds` trainings of each."""
    trained = [name for name in names if MODELS[name].trained]
    return [f"{name}{REPEAT_MARK}{number}" for number in range(1, seeds) for name in trained]


def models_trained_on(kind: str, names: Iterable[str]) -> list[str]:
    """The models among `names` that train on a kind of question."""
    return [name for name in names if kind in MODELS[name].trains_on]
