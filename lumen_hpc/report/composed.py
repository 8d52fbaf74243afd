"""The composed baseline: a model that knows one image at a time, made longitudinal by a rule.

It is asked about each image of a pair alone, and code compares its answers in the difference grammar. A model
that never saw that grammar scores near zero on difference questions for its form; this is what it knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from lumen_hpc.data.diff_vqa import Change, LevelChange, render_difference
from lumen_hpc.metrics.change import Reader

CONTROL = "composed"
ABNORMALITIES = "what abnormalities are seen in this image?"
LEVEL = "what level is the {}?"
_SIDES = ("reference", "main")

Findings = Mapping[str, str]
"""The findings of one image and the level of each; empty where it has none."""


def probes(record: dict, levelled: Iterable[str]) -> Iterator[dict]:
    """The single-image questions that stand in for one difference record: its findings and their levels.

    Each is an instruction record about one image, with what the experts say of it. Ids are
    `QUESTION/reference/…` and `QUESTION/main/…`. `levelled` names the findings that can have a level.
    """
    *_, reference, main = re.split(r"^[^\n]*<image>", record["conversations"][0]["value"], flags=re.MULTILINE)
    main = main.rpartition("\n")[0]  # the last line is the difference question
    for side, told, image in zip(_SIDES, (reference, main), record["images"][-2:], strict=True):
        asked = {"abnormality": ABNORMALITIES} | {f"level/{name}": LEVEL.format(name) for name in levelled}
        for suffix, question in asked.items():
            id = f"{record['meta']['question_id']}/{side}/{suffix}"
            yield {
                "id": id,
                "images": [image],
                "conversations": [{"from": "human", "value": f"<image>{told.rstrip()}\n{question}"}],
                "meta": {"question_id": id, "type": suffix.partition("/")[0], "closed": False},
            }


def answers(probed: Iterable[dict], reader: Reader) -> dict[str, str]:
    """Difference answers by question id, composed of a model's answers to `probes` ({question_id, answer}).

    Only pairs of which both images were asked are answered.
    """
    told: dict[str, dict[str, str]] = {}
    for row in probed:
        id, _, probe = row["question_id"].partition("/")
        told.setdefault(id, {})[probe] = row["answer"]
    return {
        id: render_difference(difference(*(_image(probe, side, reader) for side in _SIDES)))
        for id, probe in told.items()
        if all(f"{side}/abnormality" in probe for side in _SIDES)
    }


def difference(before: Findings, after: Findings) -> Change:
    """What changed from one image's findings to another's; a level counts where both images have one."""
    moved = [
        LevelChange(name, before[name], after[name])
        for name in before
        if before[name] and after.get(name) and before[name] != after[name]
    ]
    new = tuple(name for name in after if name not in before)
    return Change(new, tuple(name for name in before if name not in after), tuple(moved))


def _image(probe: dict[str, str], side: str, reader: Reader) -> dict[str, str]:
    found = sorted(reader.findings(probe[f"{side}/abnormality"]))
    return {name: reader.level(probe.get(f"{side}/level/{name}", "")) for name in found}
