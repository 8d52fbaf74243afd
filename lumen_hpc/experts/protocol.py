"""The interface of every expert: studies in, one row of calibrated predictions a study out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lumen_hpc.config.schema import Experts
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
