"""The interface of every expert: studies in, one row of calibrated predictions a study out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from numbers import Real
from pathlib import Path
from typing import Any, Protocol

from lumen_hpc.config.schema import Experts
from lumen_hpc.errors import UserError
from lumen_hpc.registry import EXPERTS, implementation


class Expert(Protocol):
    """Anything that predicts from studies."""

    def predict(self, studies: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """A row for each study, in order: study_id, dicom_id, expert, pathologies, and age, race, view if run."""
        ...


def open_expert(settings: Experts, *, cache: str, pretrained: Path) -> Expert:
    """Loads the experts that `settings.model` names.

    `cache` is the profile's folder of staged weights, `pretrained` the folder of stage `pretrain`. Raises UserError
    for weights that are missing, unknown or differ from the fetched ones.
    """
    return implementation(EXPERTS[settings.model]).open(settings, cache=cache, pretrained=pretrained)


def predict(expert: Expert, studies: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """An expert's rows for these studies; UserError for one that later stages would misread, or that is missing."""
    names: set[str] | None = None
    for study, row in zip_longest(studies, expert.predict(studies)):
        if row is None or study is None:
            raise UserError(f"experts: the expert gave {'fewer' if row is None else 'more'} rows than studies")
        at = f"experts: {row.get('expert', 'the expert')} at study {study['study_id']}:"
        if str(row.get("study_id")) != str(study["study_id"]):
            raise UserError(f"{at} its row is of study {row.get('study_id')}; a row for each study, in order")
        probabilities = row.get("pathologies", {})
        for name, p in probabilities.items():
            if not isinstance(p, Real) or not 0 <= float(p) <= 1:
                raise UserError(f"{at} {name} is {p}, not a probability from 0 to 1")
        names = set(probabilities) if names is None else names
        if names != set(probabilities):
            raise UserError(f"{at} its pathologies are {sorted(probabilities)}; those of the first are {sorted(names)}")
        yield row
