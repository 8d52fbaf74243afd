"""The experts' sentence about an image of the page, as in the run's training (section 2.3)."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

from lumen_hpc.config.schema import Experts
from lumen_hpc.experts.confidence_words import sentence
from lumen_hpc.experts.protocol import open_expert
from lumen_hpc.serving.image_files import in_memory


class ExpertWords:
    """The experts of a run, loaded once; called with an image file's bytes."""

    def __init__(self, settings: Experts, *, cache: str, pretrained: Path) -> None:
        """As `experts.protocol.open_expert`; raises UserError for weights that are missing."""
        self._settings = replace(settings, workers=0, batch_size=1)
        self._expert = open_expert(self._settings, cache=cache, pretrained=pretrained)
        self._one_at_a_time = threading.Lock()

    def __call__(self, data: bytes) -> str:
        with in_memory(data) as name, self._one_at_a_time:
            (row,) = self._expert.predict([{"study_id": "", "dicom_id": "", "image": name}])
        return sentence(row, self._settings.in_prompt, self._settings.thresholds)
