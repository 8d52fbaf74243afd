"""Probes: the single-image questions that replace a difference question, for the composed baseline.

A model that knows one image at a time is asked about each image of a pair alone; `report/composed.py` compares
its answers by rule. The experts' sentences go with their images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lumen_hpc.data.diff_vqa import parse_question
from lumen_hpc.data.perturbations import IMAGE, Row, shown_images, without_sizes

CONTROL = "composed"
ABNORMALITIES = "what abnormalities are seen in this image?"
LEVEL = "what level is the {}?"
SIDES = ("reference", "main")
MAX_LEVELS = 12


def findings_with_levels(records: Iterable[Row]) -> tuple[str, ...]:
    """The `MAX_LEVELS` findings whose levels these records ask for most often, in order of frequency."""
    counts = Counter(
        str(parsed.finding)
        for record in records
        if record["meta"]["type"] == "level" and (parsed := parse_question("level", record["meta"]["question"]))
    )
    return tuple(name for name, _ in counts.most_common(MAX_LEVELS))


def probes(record: Row, names: Sequence[str]) -> Iterator[Row]:
    """Questions about each image of a difference record: its findings, and the level of each of `names`.

    Ids are `QUESTION/reference/abnormality`, `QUESTION/main/level/FINDING`; other records have no probes.
    """
    meta = record["meta"]
    if meta["type"] != "difference" or len(images := shown_images(record)) < 2:
        return
    questions = {"abnormality": ABNORMALITIES} | {f"level/{name}": LEVEL.format(name) for name in names}
    for side, image, study in zip(SIDES, images[-2:], (meta["ref_study_id"], meta["study_id"]), strict=True):
        for probe, question in questions.items():
            probe_id = f"{meta['question_id']}/{side}/{probe}"
            kind = probe.partition("/")[0]
            probe_meta = {"control": CONTROL, "question_id": probe_id, "type": kind, "question": question}
            yield {
                "id": probe_id,
                "images": [image.path],
                "conversations": [
                    {"from": "human", "value": "\n".join([IMAGE, *image.sentences, question])},
                    *record["conversations"][1:],
                ],
                "meta": {**without_sizes(meta), **probe_meta, "closed": False, "ref_study_id": None, "study_id": study},
            }
