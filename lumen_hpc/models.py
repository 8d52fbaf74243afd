"""The models that a run compares: each is declared here, and nowhere else.

A stage asks this registry which models train and on which records; settings offer the names, estimates take the
workload, and the report takes the label. To compare another model, add an entry:

    "lumen-short": ComparedModel(
        name="lumen-short", label="LUMEN (one prior)", trains_on=("diagnostic", "difference"),
        workload=Workload(samples=515_757, image_sets=172_612),
    ),
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """What is trained on; the defaults are the paper's LUMEN (section 2.1, one prediction a difference pair)."""

    samples: int = 428_995 + 2 * 43_381
    image_sets: int = 129_231 + 43_381
    """Sequences if all questions about the same images share them."""
    pairs: int = 43_381
    """Samples of two images, each pair with its own sequence; the others have one image."""
    tiles: int = 17
    """Tiles the tower sees an image (dynamic_s2 on a 2544 × 3056 radiograph)."""
    image_tokens: int = 3073
    """Language-model tokens an image."""
    text_tokens: int = 160
    """Text tokens a sample, experts' words included."""
    answer_tokens: int = 30
    """Supervised tokens a sample."""

    @property
    def images(self) -> float:
        """Images a sample."""
        return 1 + self.pairs / self.samples


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    name: str
    """In settings, folder names and rows."""
    label: str
    """In tables and figures."""
    trains_on: tuple[str, ...] = ()
    """Kinds of question whose training records it sees (diagnostic, difference, prediction, outcome,
    timeline); empty: not trained. A model that trains on outcomes is compared only where `predict.models` names it."""
    workload: Workload | None = None
    """What its training reads in the paper; None where it is not trained."""

    @property
    def trained(self) -> bool:
        return bool(self.trains_on)


AGAIN = "@"
"""Between a model's name and the number of a further training of it."""

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


def compared(model: str) -> ComparedModel:
    """The entry of a model or of one of its further trainings (`lumen@1`); KeyError for a name of neither."""
    return MODELS[model.partition(AGAIN)[0]]


def training_number(model: str) -> int:
    """0 for a model's own training, 1 for `lumen@1`; a training's seed is the run's plus this number."""
    return int(model.partition(AGAIN)[2] or 0)


def repeats(names: Iterable[str], seeds: int) -> list[str]:
    """The further trainings of those of the models `names` that train, where each has `seeds` of them."""
    trained = [name for name in names if MODELS[name].trained]
    return [f"{name}{AGAIN}{number}" for number in range(1, seeds) for name in trained]


def trained_on(kind: str, names: Iterable[str]) -> list[str]:
    """Those of the models `names` that train on a kind of question."""
    return [name for name in names if kind in MODELS[name].trains_on]
