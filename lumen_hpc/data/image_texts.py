"""What follows each image in a prompt: the experts' sentence, then the lines of the patient's state at its time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class ImageTexts:
    """The texts by study_id; a study that a mapping lacks has none of that kind."""

    experts: Mapping[str, str] = field(default_factory=dict)
    """The experts' sentence; empty where `instruct.expert_text` is off."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Lines of the clinical state (`instruct.clinical`)."""
    states_without_labs: Mapping[str, str] = field(default_factory=dict)
    last_only: bool = False
    """The last image of a prompt alone has lines of its state (`instruct.clinical_images=last`)."""

    def of(self, studies: Sequence[Row], *, labs: bool = True, images_of: Sequence[Row] = ()) -> dict[str, str]:
        """study_id → text of each study shown, oldest first.

        `images_of`: the studies whose images are shown instead; the experts' sentences are about these.
        """
        states = self.states if labs else self.states_without_labs
        texts = {}
        for study, image in zip(studies, images_of or studies):
            study_id = str(study["study_id"])
            state = "" if self.last_only and study is not studies[-1] else states.get(study_id, "")
            texts[study_id] = "\n".join(text for text in (self.experts.get(str(image["study_id"]), ""), state) if text)
        return texts
