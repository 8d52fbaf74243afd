"""The cases of the page's browser: a question, its images, and what every model answered."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.metrics.change import facts
from lumen_hpc.report.results import Results

SIDES = (2048, 1024, 640, 320)
"""Longest side of the page's images [px]: the largest with which all fit; at 320 an effusion still shows."""
SAMPLE_SIZE = 12
"""Images from which the size of all is judged."""
BUDGET = 24 << 20  # bytes of images in one page, so that it opens from disk at once
_MEASURES = ("judge", "rouge_l", "bleu4", "change_f1_macro", "finding_f1_macro", "accuracy_polarity", "recall_clipped")


@dataclass
class Cases:
    """Rows for the browser, and images by name as data URIs."""

    rows: list[dict]
    images: dict[str, str] = field(default_factory=dict)
    total: int = 0
    """Questions that the rows were drawn from."""
    without_image: int = 0
    """Images left out, missing or past the budget."""
    side: int = SIDES[-1]
    """Longest side of the images [px]; larger ones are reduced to it."""


def cases(
    results: Results,
    image: Callable[[str], np.ndarray | None],
    settings: Evaluate,
    seed: int,
    studies: Iterable[dict] = (),
) -> Cases:
    """A seeded draw of `settings.cases` questions, evenly over the types; ids and scores alone if images are off.

    `studies` say when and in which view an image was taken.
    """
    result = Cases([], total=len(results.questions))
    positions = _sample_positions(results.types, settings.cases, seed)
    paths = [path for i in positions for path in results.questions[i].get("images", [])[-2:]] if settings.images else []
    result.side = _side(list(dict.fromkeys(paths)), image)
    studies_by_image = {row["image"]: row for row in studies if "image" in row} if settings.images else {}
    image_bytes = 0
    for i in positions:
        question = results.questions[i]
        row = {
            "id": question["question_id"],
            "type": question["type"],
            "days": question.get("interval_days"),
            "findings": sorted(_findings(results, i)) if settings.images else [],
            "answers": [_answer(results, i, model, bool(settings.images)) for model in results.run_models()],
        }
        if settings.images:
            row |= {"question": question["question"], "short": question["short_answer"].strip(),
                    "reference": question.get("long_answer") or "", "images": [], "taken": []}  # fmt: skip
            for path in question.get("images", [])[-2:]:
                if path not in result.images and image_bytes < BUDGET and (pixels := image(path)) is not None:
                    result.images[path] = jpeg_uri(pixels, result.side)
                    image_bytes += len(result.images[path])
                result.without_image += path not in result.images
                row["images"].append(path if path in result.images else None)
                row["taken"].append(_view_and_time(studies_by_image.get(path, {})))
        row["answers"] = [answer for answer in row["answers"] if answer]
        result.rows.append(row)
    names = {path: f"i{k}" for k, path in enumerate(result.images)}
    result.images = {names[path]: uri for path, uri in result.images.items()}
    for row in result.rows:
        row["images"] = [names.get(path) for path in row.get("images", [])]
    return result


def _side(paths: Sequence[str], image: Callable[[str], np.ndarray | None]) -> int:
    """The largest side with which the images of these files fit into the page's budget, judged from a few of them."""
    sample = [pixels for path in paths[:: max(1, len(paths) // SAMPLE_SIZE)] if (pixels := image(path)) is not None]
    for side in SIDES[:-1] if sample else ():
        if sum(len(jpeg_uri(pixels, side)) for pixels in sample) / len(sample) * len(paths) <= BUDGET:
            return side
    return SIDES[-1]


def _view_and_time(study: Mapping[str, Any]) -> str:
    """When and in which view an image was taken, as far as it is known."""
    taken_at = str(study.get("taken_at") or "")[:16].replace("T", " ")
    return ", ".join(part for part in (study.get("view"), taken_at) if part)


def jpeg_uri(pixels: np.ndarray, side: int = SIDES[-1]) -> str:
    """Grey levels, uint8 [H, W], as a JPEG data URI of at most `side` px."""
    from PIL import Image

    small = Image.fromarray(pixels)
    small.thumbnail((side, side))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=82)
    return "data:image/jpeg;base64," + b64encode(stream.getvalue()).decode()


def _sample_positions(types: np.ndarray, count: int, seed: int) -> list[int]:
    """Positions of at most `count` questions: in turn one of each type, in a seeded order."""
    rng = np.random.default_rng(seed)
    queues = [list(rng.permutation(np.flatnonzero(types == kind))) for kind in sorted(set(types))]
    positions: list[int] = []
    while len(positions) < min(count, len(types)):
        positions += [int(queue.pop()) for queue in queues if queue]
    return sorted(positions[:count])


def _findings(results: Results, i: int) -> set[str]:
    question = results.questions[i]
    truth = results.truth(i)
    changed_findings = {fact[1] for fact in facts(truth)} if truth else set()
    return changed_findings | results.reader.findings(f"{question['short_answer']}. {question['question']}")


def _answer(results: Results, i: int, model: str, show_text: bool) -> dict | None:
    """What a model answered, its scores and whether it is right; None where it was not asked."""
    columns = {m: results.column(m, model) for m in _MEASURES}
    scores = {m: round(float(c.part[i] / c.whole[i]), 3) for m, c in columns.items() if c.whole[i]}
    if not scores:
        return None
    row = {"model": model, "scores": scores, "outcome": _outcome(scores)}
    return row | {"text": results.joined.answers[model][i]} if show_text else row


def _outcome(scores: dict[str, float]) -> str:
    """Right, partly or wrong by the facts; words alone decide nothing where facts can be read."""
    for measure in ("change_f1_macro", "finding_f1_macro", "accuracy_polarity", "recall_clipped"):
        if measure in scores:
            return "right" if scores[measure] == 1 else "wrong" if scores[measure] == 0 else "partly"
    return "wrong"
