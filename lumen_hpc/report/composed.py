"""The composed baseline: a model that sees one image at a time, and a rule that compares its answers.

It is asked about each image of a pair alone, and code compares its answers in the difference grammar. A model
that never saw that grammar scores near zero on difference questions for its form; this is what it knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lumen_hpc.data.diff_vqa import Change, LevelChange, render_difference
from lumen_hpc.data.probes import CONTROL, SIDES
from lumen_hpc.metrics.change import Reader, reader_name
from lumen_hpc.metrics.closed import listed_findings
from lumen_hpc.metrics.join import answer_text

Findings = Mapping[str, str]
"""The findings of one image and the level of each; empty where it has none."""


def answers(probe_rows: Iterable[dict], reader: Reader) -> dict[str, str]:
    """Difference answers by question id, composed of a model's answers to `data.probes`.

    `probe_rows` may hold any answer rows. Only pairs of which both images were asked are answered; an answer that
    cannot be read is no reading of an image, so that nothing is said of its pair.
    """
    by_question: dict[str, dict[str, str]] = {}
    for row in probe_rows:
        if row.get("control") != CONTROL:
            continue
        question_id, _, probe = row["question_id"].partition("/")
        by_question.setdefault(question_id, {})[probe] = answer_text(row)
    texts = {}
    for question_id, probe_answers in by_question.items():
        if all(f"{side}/abnormality" in probe_answers for side in SIDES):
            before, after = (_image_findings(probe_answers, side, reader) for side in SIDES)
            unread = before is None or after is None
            texts[question_id] = "" if unread else render_difference(difference(before or {}, after or {}))
    return texts


def difference(before: Findings, after: Findings) -> Change:
    """What changed from one image's findings to another's; a level counts where both images have one."""
    level_changes = [
        LevelChange(name, before[name], after[name])
        for name in before
        if before[name] and after.get(name) and before[name] != after[name]
    ]
    new = tuple(name for name in after if name not in before)
    return Change(new, tuple(name for name in before if name not in after), tuple(level_changes))


def _image_findings(probe: dict[str, str], side: str, reader: Reader) -> dict[str, str] | None:
    """The findings of one image of a pair, and their levels, by what was answered about it; None if it was not read."""
    finding_names = listed_findings(reader, probe[f"{side}/abnormality"])
    if finding_names is None:
        return None
    start = f"{side}/level/"
    answers = {reader_name(key.removeprefix(start)): text for key, text in probe.items() if key.startswith(start)}
    return {name: reader.level(answers.get(name, "")) for name in sorted(finding_names)}
