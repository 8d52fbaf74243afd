"""A record without its oldest images, for a sequence that cannot hold all of them."""

from __future__ import annotations

from typing import Any

from lumen_hpc.data import findings_line
from lumen_hpc.data.instructions import EARLIER
from lumen_hpc.data.perturbations import IMAGE

Row = dict[str, Any]


def without_oldest(record: Row) -> Row | None:
    """The record without its oldest image; None where it needs every image that it has.

    The first image goes, with the words about it, if the prompt calls it earlier. A main, current or reference image
    stays, and so do the last `meta.needed_images`, without which a timeline question has another answer.
    """
    human, answer, *rest = record["conversations"]
    opening, *lines = human["value"].split("\n")
    images, meta = record["images"][1:], record["meta"]
    removable = opening.startswith(EARLIER) and opening.count(IMAGE) == 1
    if not removable or len(images) < max(1, meta.get("needed_images", 1)):
        return None
    while IMAGE not in lines[0]:
        del lines[0]
    if len(images) == 1:  # a single image has no name
        lines[0] = IMAGE
    if "sizes" in meta:
        meta = {**meta, "sizes": meta["sizes"][1:]}
    if meta["type"] == "outcome" and "line" in meta:
        line, sentence = answer["value"].split(findings_line.SEPARATOR, 1)
        shorter = findings_line.without_oldest(line, meta["line"])
        answer = {**answer, "value": findings_line.join(shorter, sentence)}
    turns = [{**human, "value": "\n".join(lines)}, answer, *rest]
    return {**record, "images": images, "conversations": turns, "meta": meta}


def without_images(record: Row, count: int) -> Row:
    """The record without its `count` oldest images, which `without_oldest` has left out before."""
    for _ in range(count):
        shortened = without_oldest(record)
        assert shortened is not None, record["id"]
        record = shortened
    return record
