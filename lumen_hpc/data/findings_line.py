"""The findings line: each finding's state in a fixed order, written before the sentence of an answer.

`pleural effusion moderate no resolved consolidation yes yes same … ; the main image is missing …`

For a small model comparing is harder than seeing: writing the states of both images side by side, finding
by finding, before the sentence turns one hard comparison into several easy ones. The line is not in the paper;
`instruct.findings_first` switches it on, and `strip` removes it before any text is scored. A prediction's line
also gives the texture of the reference finding, the cue that its future depends on. `names` are the findings and
their order: the phantoms' five by default, a dataset's most frequent ones otherwise; a record's `meta.line` has them.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc.data.diff_vqa import LevelChange, severity
from lumen_hpc.data.phantom_states import FINDINGS
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.data.short_answers import is_missing
from lumen_hpc.data.table_files import ENTITIES
from lumen_hpc.errors import UserError

Findings = Mapping[str, Mapping[str, str]]
"""Present findings of one study: name → {"level": …, "type": …}, each only where it is known."""

LOOKS_FILE = "looks.jsonl"
"""Beside all_diseases.json of phantoms: what each image shows of the findings that one image cannot tell."""
OUTCOMES = ("same", "new", "resolved", "worse", "better")
SEPARATOR = " ; "
MAX_WORDS = 12
"""Words about one finding in a line, before its last outcome."""


@dataclass(frozen=True)
class StudyState:
    """The state of one study, as a line gives it."""

    findings: Findings = field(default_factory=dict)
    looks: Mapping[str, str] = field(default_factory=dict)
    """Finding → what the image shows of it, where the image alone cannot tell whether it is present."""

    def state(self, name: str) -> str:
        """The look; else the level of a present finding, or `yes` without a level; `no` for an absent one."""
        return self.looks.get(name) or (self.findings[name].get("level", "yes") if name in self.findings else "no")


def difference_line(before: StudyState, after: StudyState, names: Sequence[str] = FINDINGS) -> str:
    """The line of a difference answer."""
    return " ".join(_entry(name, before, after, cue=False) for name in names)


def prediction_line(before: StudyState, after: StudyState, names: Sequence[str] = FINDINGS) -> str:
    """The line of a prediction answer, with the reference's textures."""
    return " ".join(_entry(name, before, after, cue=True) for name in names)


def history_line(images: Sequence[StudyState], names: Sequence[str] = FINDINGS) -> str:
    """The line of an outcome's answer: each finding's states, oldest first, then its outcome since each earlier image.

    A finding of one image alone is the `same`, so that every entry ends alike; a state is one word.
    """
    *earlier, current = images
    return " ".join(
        " ".join([
            name,
            *(state.state(name).replace(" ", "-") for state in images),
            *([_outcome(name, state.findings, current.findings) for state in earlier] or [OUTCOMES[0]]),
        ])
        for name in names
    )  # fmt: skip


def without_oldest(line: str, names: Sequence[str] = FINDINGS) -> str:
    """A history line of two or more images without the oldest."""
    any_name = "|".join(map(re.escape, names))
    entries = re.compile(rf"\b({any_name}) ((?:\S+ )*?)(?=(?:{any_name}) |$)")
    return entries.sub(lambda entry: f"{entry[1]} {_without_first(entry[2].split())} ", line + " ").strip()


def _without_first(words: list[str]) -> str:
    """An entry's states and outcomes without those of the oldest image."""
    images = (len(words) + 1) // 2
    states, outcomes = words[1:images], words[images + 1 :]
    return " ".join([*states, *(outcomes or [OUTCOMES[0]])])


def join(line: str, sentence: str) -> str:
    """A line and its sentence as one answer."""
    return line + SEPARATOR + sentence


def strip(answer: str, names: Sequence[str] = ()) -> str:
    """The answer without its findings line; an answer without one is returned unchanged.

    `names`: the findings of the line; empty where a model notes none, which means the phantoms'.
    Only a line that a model was trained to write is taken off: every one of `names` in its order, each with a few words
    and an outcome. A word too many is forgiven; `the edema is worse; the effusion is new` is an answer and stays.
    """
    line, separator, sentence = answer.partition(";")
    return sentence.lstrip() if separator and _line_pattern(tuple(names or FINDINGS)).fullmatch(line) else answer


def read_findings(diff_vqa: str | Path) -> dict[str, Findings]:
    """study_id → its present findings, from all_diseases.json of a Medical-Diff-VQA folder.

    Of several levels the first that has a severity counts, as `moderate` of an increasing moderate effusion, and the
    first of several types. Raises UserError if the file is missing or is not of that form.
    """
    path = Path(diff_vqa) / ENTITIES
    try:
        findings_by_study: dict[str, Findings] = {}
        for row in orjson.loads(path.read_bytes().removeprefix(codecs.BOM_UTF8)):
            study = _study_key(row["study_id"])
            findings = {name: _level_and_type(name, entity) for name, entity in row["entity"].items()}
            if findings_by_study.setdefault(study, findings) != findings:
                raise TypeError(f"study {study} appears twice, with different findings")
        return findings_by_study
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; instruct.findings_first needs it, or set instruct.findings_first=false"
        ) from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as defect:
        raise UserError(f"{path} is not Medical-Diff-VQA's list of studies with entities: {defect}") from None


def read_line(records: Path) -> tuple[str, ...]:
    """The findings of the line that the answers in a file of records begin with; empty where none does."""
    with records.open("rb") as lines:
        metas = (orjson.loads(line)["meta"] for line in lines if b'"line":' in line)
        return next((tuple(meta["line"]) for meta in metas if "line" in meta), ())


MIN_SHARE, MAX_FINDINGS = 0.01, 24
"""A dataset's line names the findings of at least this share of its studies, up to this number of findings."""


def names(findings: Mapping[str, Findings]) -> tuple[str, ...]:
    """The findings of a dataset's line: its most frequent ones, in that order; the phantoms' where it is theirs."""
    counts = Counter(name for study in findings.values() for name in study)
    if counts.keys() <= set(FINDINGS):
        return FINDINGS
    frequent_names = [name for name, count in counts.most_common(MAX_FINDINGS) if count >= MIN_SHARE * len(findings)]
    return tuple(name for name in frequent_names if re.fullmatch(r"[a-z]+(?:[ -][a-z]+)*", name))


def line_findings(line: Sequence[str], findings: Mapping[str, Findings]) -> tuple[str, ...]:
    """`instruct.line` as a tuple. Raises UserError for a finding that no study has."""
    names = {name for study in findings.values() for name in study}
    if findings and (unknown_names := [name for name in line if name not in names]):
        examples = ", ".join(sorted(names)[:20])
        raise UserError(f"instruct.line={list(line)}: no study has {unknown_names[0]!r}; there are {examples}")
    return tuple(line)


def _study_key(study_id: Any) -> str:
    """The id as text, also where pandas has turned it into a number. Raises TypeError for any other value."""
    text = str(study_id).removesuffix(".0")
    if not text.isascii() or not text.isdigit() or text.startswith("0"):
        raise TypeError("a study_id is not a whole number")
    return text


def _level_and_type(name: str, entity: Mapping[str, list[str]]) -> dict[str, str]:
    """The level and type of a finding. Raises TypeError for a value that is no list of texts, or a missing value."""
    attributes = {}
    for key in ("level", "type"):
        if texts := entity.get(key):
            if not isinstance(texts, list) or not isinstance(texts[0], str) or is_missing(texts[0]):
                raise TypeError(f"the {key} of a finding is no list of texts")
            levels_with_severity = (text for text in texts if isinstance(text, str) and severity(text) is not None)
            attributes[key] = next(levels_with_severity, texts[0]) if key == "level" else texts[0]
    if not name or is_missing(name):
        raise TypeError("a finding has no name")
    return attributes


def read_looks(diff_vqa: str | Path) -> dict[str, Mapping[str, str]]:
    """study_id → its looks, from the file of a generated dataset; empty for the real one, which has no such file."""
    path = Path(diff_vqa) / LOOKS_FILE
    return {row["study_id"]: row["looks"] for row in read_jsonl(path)} if path.exists() else {}


def _entry(name: str, before: StudyState, after: StudyState, cue: bool) -> str:
    words = [name, before.state(name)]
    if cue:
        words.append(before.findings.get(name, {}).get("type", "none"))
    return " ".join([*words, after.state(name), _outcome(name, before.findings, after.findings)])


def _outcome(name: str, before: Findings, after: Findings) -> str:
    if (name in before) != (name in after):
        return "new" if name in after else "resolved"
    if name not in before:
        return "same"
    levels = (findings[name].get("level", "") for findings in (before, after))
    return {0: "same", 1: "worse", -1: "better"}[LevelChange(name, *levels).direction]


@cache
def _line_pattern(names: tuple[str, ...]) -> re.Pattern:
    """The form of a line: each finding, some words about its states (few unless it has many images), its outcome."""
    others = "|".join(map(re.escape, names))
    words = rf"(?: (?!(?:{others})\b)[a-z-]+){{1,{MAX_WORDS}}}?"
    entries = (rf"{re.escape(name)}{words} (?:{'|'.join(OUTCOMES)})" for name in names)
    return re.compile(r"\s*" + " ".join(entries) + r"\s*")
