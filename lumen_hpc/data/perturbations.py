"""Control questions: the test records with their images perturbed, which shows whether a model uses them.

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
class ShownImage:
    """One image of a record and its text in the prompt."""

    path: str
    name: str
    """The text before `<image>` in its line."""
    sentences: tuple[str, ...]
    """The lines after it: the experts' sentence, if there is one."""


def perturb(control: str, questions: Sequence[Row], index: int) -> Row | None:
    """The record at `index` of all test records under `control`; None where the control does not apply.

    The comparisons apply to difference questions. `meta.control` names the control; `meta.ref_study_id` and
    `meta.study_id` name the studies now shown as reference and as main image.
    """
    record = questions[index]
    images = shown_images(record)
    meta = record["meta"]
    if control == "no_image":
        return _with_images(record, [], control)
    if control == "no_experts":
        bare_images = [ShownImage(image.path, image.name, ()) for image in images]
        return _with_images(record, bare_images, control) if bare_images != images else None
    if meta["type"] != "difference" or len(images) < 2:
        return None
    *older, reference, main = images
    original_studies = {"ref_study_id": meta["ref_study_id"], "study_id": meta["study_id"]}
    if control == "swapped":
        pair = [_move(main, reference), _move(reference, main)]
        return _with_images(
            record,
            [*older, *pair],
            control,
            ref_study_id=original_studies["study_id"],
            study_id=original_studies["ref_study_id"],
        )
    if control == "same":
        return _with_images(
            record,
            [*older, reference, _move(reference, main)],
            control,
            ref_study_id=original_studies["ref_study_id"],
            study_id=original_studies["ref_study_id"],
        )
    assert control == "other_patient", control
    other_record = _other_patient(questions, index)
    if other_record is None:
        return None
    other_reference = shown_images(other_record)[-2]
    return _with_images(
        record,
        [*older, _move(other_reference, reference), main],
        control,
        ref_study_id=other_record["meta"]["ref_study_id"],
        study_id=original_studies["study_id"],
    )


def _other_patient(questions: Sequence[Row], index: int) -> Row | None:
    """The next difference question about another patient, cyclically."""
    patient = questions[index]["meta"]["subject_id"]
    for step in range(1, len(questions)):
        other = questions[(index + step) % len(questions)]
        if other["meta"]["type"] == "difference" and other["meta"]["subject_id"] != patient:
            return other
    return None


def _move(image: ShownImage, target: ShownImage) -> ShownImage:
    """An image, with its experts' sentence, under the name of another image."""
    return ShownImage(image.path, target.name, image.sentences)


def shown_images(record: Row) -> list[ShownImage]:
    """The images of a record with their texts in the prompt (see `instructions.prompt`)."""
    question = record["meta"]["question"]
    images_text = record["conversations"][0]["value"].removesuffix(question)
    blocks: list[list[str]] = []
    for line in images_text.splitlines():
        if IMAGE in line:
            blocks.append([line])
        else:
            blocks[-1].append(line)
    return [
        ShownImage(path, block[0].removesuffix(IMAGE), tuple(block[1:]))
        for path, block in zip(record["images"], blocks, strict=True)
    ]


def without_sizes(meta: Row) -> Row:
    """A record's meta for other images than its own."""
    return {key: value for key, value in meta.items() if key != "sizes"}


def _with_images(record: Row, images: Sequence[ShownImage], control: str, **studies: Any) -> Row:
    lines = [line for image in images for line in (image.name + IMAGE, *image.sentences)]
    human, *rest = record["conversations"]
    return {
        **record,
        "images": [image.path for image in images],
        "conversations": [{**human, "value": "\n".join([*lines, record["meta"]["question"]])}, *rest],
        "meta": {**without_sizes(record["meta"]), "control": control, **studies},
    }
