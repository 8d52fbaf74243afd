"""Timeline questions: what a finding did over three and more visits, from the dataset's own entities.

    since when     Since when is pleural effusion seen?                     21 days before
    getting worse  Has pleural effusion got worse over the last three images?   yes
    worst          Which image shows pleural effusion at its worst?         taken now

Images are named by their distance from the current one, as the prompt names them. A short answer and its sentence have
one reading (`read`), by which sentences are checked and answers scored. A question is asked only where its answer is
known and unique: not about levels without severity, a finding that has a level on some images alone, ties for the
worst, two images of one day, or an image whose findings are not recorded.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from lumen_hpc.config.schema import Instruct
from lumen_hpc.data.diff_vqa import severity
from lumen_hpc.data.findings_line import Findings
from lumen_hpc.data.instructions import Sources, image_sizes, prompt

Row = dict[str, Any]
MIN_IMAGES = 3
"""Fewest images of a timeline."""


class Timeline(NamedTuple):
    """One question about a finding over a patient's images."""

    kind: str
    """since when, getting worse, or worst."""
    finding: str
    question: str
    short_answer: str


QUESTIONS = {
    "since when": (
        "Since when is {f} seen?",
        "Since which image is {f} present?",
        "When did the present {f} first appear?",
        "How long has {f} been seen?",
    ),
    "getting worse": (
        "Has {f} got worse over the last three images?",
        "Has {f} been getting worse over the last three images?",
        "Over the last three images, did {f} get worse?",
        "Is {f} worsening over the last three images?",
    ),
    "worst": (
        "Which image shows {f} at its worst?",
        "On which image is {f} at its worst?",
        "Where in the timeline is {f} worst?",
        "At which image was {f} most severe?",
    ),
}
_SENTENCES = {
    "since when": "{f} has been seen since the image {at}.",
    "worst": "{f} is at its worst on the image {at}.",
    "yes": "Yes, {f} has got worse over the last three images.",
    "no": "No, {f} has not got worse over the last three images.",
}
_IMAGE_TIME = re.compile(r"(?:(?P<number>\d+) days? before|(?P<now>current image|taken now))", re.IGNORECASE)


def timelines(findings: Sequence[Findings], days: Sequence[int]) -> Iterator[Timeline]:
    """Every question that these images, oldest first, answer; `days`: of each image before the last, whose value is 0.

    No question for fewer than three images, or if two images are of one day.
    """
    if len(findings) < MIN_IMAGES or len(set(days)) < len(days):
        return
    for finding in sorted({name for study_findings in findings for name in study_findings}):
        ranks = _ranks(findings, finding)
        present = [rank != 0 for rank in ranks]
        if present[-1]:
            first = len(present) - 1
            while first and present[first - 1]:
                first -= 1
            yield _timeline("since when", finding, _image_time(days[first]))
        known_ranks = [rank for rank in ranks if rank is not None]
        if len(known_ranks) < len(ranks):
            continue
        oldest, middle, current = known_ranks[-MIN_IMAGES:]
        if any(present[-MIN_IMAGES:]):
            yield _timeline(
                "getting worse", finding, "yes" if oldest <= middle <= current and oldest < current else "no"
            )
        if known_ranks.count(max(known_ranks)) == 1:
            yield _timeline("worst", finding, _image_time(days[known_ranks.index(max(known_ranks))]))


def sentence(timeline: Timeline) -> str:
    """The long answer."""
    form = timeline.short_answer if timeline.kind == "getting worse" else timeline.kind
    text = _SENTENCES[form].format(f=timeline.finding, at=timeline.short_answer)
    return text[0].upper() + text[1:]


def read(answer: str) -> str | None:
    """The one claim of an answer: yes, no, a number of days before, or 0 for the current image; else None."""
    opening = re.match(r"\s*(yes|no)\b", answer, re.IGNORECASE)
    times = {match["number"] or "0" for match in _IMAGE_TIME.finditer(answer)}
    if opening and not times:
        return opening[1].lower()
    return times.pop() if len(times) == 1 and not opening else None


def check(timeline: Timeline, long_answer: str) -> list[str]:
    """Reasons why a long answer is not faithful to its short one; empty if it is."""
    long_reading, short_reading = read(long_answer), read(timeline.short_answer)
    reasons = []
    if long_reading is None or long_reading != short_reading:
        reasons.append(f"says {long_reading or 'nothing clear'}, not {short_reading}")
    if timeline.finding.lower() not in long_answer.lower():
        reasons.append(f"does not name {timeline.finding}")
    negated = bool(re.search(r"\b(?:not|never|no longer|without)\b", long_answer, re.IGNORECASE))
    if negated != (short_reading == "no"):
        reasons.append("denies what the short answer says" if negated else "does not deny")
    return reasons


def records(
    studies: Sequence[Row], findings: Mapping[str, Findings], sources: Sources, settings: Instruct, seed: int
) -> Iterator[tuple[str, Row]]:
    """(split, record) of every timeline question of every study with at least two priors among those shown.

    Shown are up to `settings.max_images` images, oldest first, the oldest left out first. Each question takes one of
    its wordings by a hash of its name. A test question is also asked with the current image alone (`variant`).
    `meta.needed_images`: the fewest of the last images that have the same answer.
    """
    for study in studies:
        images = [*sources.priors(study, settings.max_images - 1), study]
        days = [(_day(study) - _day(image)).days for image in images]
        if not all(str(image["study_id"]) in findings for image in images):
            continue  # a study that the file lacks need not be a normal one
        findings_shown = [findings[str(image["study_id"])] for image in images]
        shorter_timelines = {
            count: set(timelines(findings_shown[-count:], days[-count:])) for count in range(MIN_IMAGES, len(images))
        }
        for timeline in timelines(findings_shown, days):
            needed_images = next(
                (count for count, questions in shorter_timelines.items() if timeline in questions), len(images)
            )
            split, record = study["split"], _record(study, images, timeline, "all", sources, seed)
            yield split, {**record, "meta": {**record["meta"], "needed_images": needed_images}}
            if study["split"] == "test":
                yield "test", _record(study, [study], timeline, "one image", sources, seed)


def _record(study: Row, images: list[Row], timeline: Timeline, variant: str, sources: Sources, seed: int) -> Row:
    name = f"timeline/{timeline.kind}/{timeline.finding}/{study['study_id']}"
    wordings = QUESTIONS[timeline.kind]
    draw = int(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=4).hexdigest(), 16)
    text = wordings[draw % len(wordings)].format(f=timeline.finding)
    question = {"type": "outcome", "question": text, "interval_days": None}  # named as outcome questions name images
    answer = sentence(timeline)
    meta = {
        "question_id": name if variant == "all" else f"{name}/{variant}", "type": "timeline", "kind": timeline.kind,
        "variant": variant, "closed": timeline.kind == "getting worse", "short_answer": timeline.short_answer,
        "interval_days": None, "subject_id": study["subject_id"], "study_id": study["study_id"], "ref_study_id": None,
        "long_answer": answer, "question": text, **image_sizes(images),
    }  # fmt: skip
    return {
        "id": meta["question_id"],
        "images": [image["image"] for image in images],
        "conversations": [
            {"from": "human", "value": prompt(images, question, sources.texts.of(images))},
            {"from": "gpt", "value": answer},
        ],
        "meta": meta,
    }


def _timeline(kind: str, finding: str, answer: str) -> Timeline:
    return Timeline(kind, finding, QUESTIONS[kind][0].format(f=finding), answer)


def _image_time(days: int) -> str:
    return "taken now" if days == 0 else f"{days} day{'s' * (days != 1)} before"


def _ranks(findings: Sequence[Findings], finding: str) -> list[float | None]:
    """Of each image: 0 for absent, the severity of its level; None where that is not known.

    So it is where the words of a level give no severity, and where an image has no level while another has one: the
    dataset's own difference answers state no change then. A finding that never has a level is 1 where it is present.
    """
    levels = [
        study_findings[finding].get("level", "") if finding in study_findings else None for study_findings in findings
    ]
    unknown = None if any(levels) else 1.0
    return [0.0 if level is None else severity(level) if level else unknown for level in levels]


def _day(study: Row) -> Any:
    return datetime.fromisoformat(study["taken_at"]).date()
