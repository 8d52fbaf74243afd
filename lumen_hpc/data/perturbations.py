"""Control questions: the test records with their images tampered with, to see whether a model looks at them.

`swapped`: reference and main image change places, so that new and resolved must too. `same`: the reference twice, so
that nothing has changed. `other_patient`: another patient's reference. `no_image`: the text alone. The experts'
sentences go with their images. `no_experts`: the images without the experts' sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
IMAGE = "<image>"


@dataclass(frozen=True)
class Shown:
    """One image of a record and the text that belongs to it."""

    path: str
    name: str
    """What stands before the image in its line."""
    told: tuple[str, ...]
    """The lines that follow it."""


def perturb(control: str, questions: Sequence[Row], index: int) -> Row | None:
    """The record at `index` of all test records as `control` has it; None where the control does not apply.

    The comparisons apply to difference questions. `meta.control` names the control, and `meta.ref_study_id` and
    `meta.study_id` the studies that are now shown as reference and as main image.
    """
    record = questions[index]
    shown, question = split_prompt(record)
    meta = record["meta"]
    if control == "no_image":
        return _joined(record, [], question, control) if shown else None
    if control == "no_experts":
        untold = [Shown(image.path, image.name, ()) for image in shown]
        return _joined(record, untold, question, control) if untold != shown else None
    if meta["type"] != "difference" or len(shown) < 2:
        return None
    *older, reference, main = shown
    own = {"ref_study_id": meta["ref_study_id"], "study_id": meta["study_id"]}
    if control == "swapped":
        pair = [_move(main, reference), _move(reference, main)]
        return _joined(
            record, [*older, *pair], question, control, ref_study_id=own["study_id"], study_id=own["ref_study_id"]
        )
    if control == "same":
        return _joined(
            record,
            [*older, reference, _move(reference, main)],
            question,
            control,
            ref_study_id=own["ref_study_id"],
            study_id=own["ref_study_id"],
        )
    assert control == "other_patient", control
    other = _other_patient(questions, index)
    if other is None:
        return None
    prior = split_prompt(other)[0][-2]
    return _joined(
        record,
        [*older, _move(prior, reference), main],
        question,
        control,
        ref_study_id=other["meta"]["ref_study_id"],
        study_id=own["study_id"],
    )


def _other_patient(questions: Sequence[Row], index: int) -> Row | None:
    """The next difference question about another patient, from the start again after the end."""
    patient = questions[index]["meta"]["subject_id"]
    for step in range(1, len(questions)):
        other = questions[(index + step) % len(questions)]
        if other["meta"]["type"] == "difference" and other["meta"]["subject_id"] != patient:
            return other
    return None


def _move(image: Shown, place: Shown) -> Shown:
    """An image, with its experts' words, under the name of another place."""
    return Shown(image.path, place.name, image.told)


def split_prompt(record: Row) -> tuple[list[Shown], str]:
    """The images of a record with their texts, and its question (see `instructions.prompt`)."""
    *lines, question = record["conversations"][0]["value"].split("\n")
    parts: list[list[str]] = []
    for line in lines:
        if IMAGE in line:
            parts.append([line])
        else:
            parts[-1].append(line)
    return [
        Shown(path, part[0].removesuffix(IMAGE), tuple(part[1:]))
        for path, part in zip(record["images"], parts, strict=True)
    ], question


def _joined(record: Row, shown: Sequence[Shown], question: str, control: str, **studies: Any) -> Row:
    lines = [line for image in shown for line in (image.name + IMAGE, *image.told)]
    human, *rest = record["conversations"]
    return {
        **record,
        "images": [image.path for image in shown],
        "conversations": [{**human, "value": "\n".join([*lines, question])}, *rest],
        "meta": {**record["meta"], "control": control, **studies},
    }
