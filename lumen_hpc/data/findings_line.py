"""The findings line: each finding's state in a fixed order, written before the sentence of an answer.

`pleural effusion moderate no resolved consolidation yes yes same … ; the main image is missing …`

Comparing is what a small model finds hard, not seeing: writing the states of both images side by side, finding
by finding, before the sentence turns one hard comparison into several easy ones. The line is not in the paper;
`instruct.findings_first` switches it on, and `strip` removes it before any text is scored. A prediction's line
also gives the texture of the reference finding, the cue that its future depends on. `names` are the findings and
their order: the phantoms' five by default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import orjson

from lumen_hpc.data.diff_vqa import severity
from lumen_hpc.data.phantom_states import FINDINGS
from lumen_hpc.errors import UserError

Findings = Mapping[str, Mapping[str, str]]
"""Present findings of one study: name → {"level": …, "type": …}, each only where it is known."""

OUTCOMES = ("same", "new", "resolved", "worse", "better")
SEPARATOR = " ; "


class Entry(NamedTuple):
    """One finding of a line."""

    finding: str
    before: str
    """Level on the reference image, `yes` for a finding without level, `no` for none."""
    cue: str
    """Texture on the reference image; empty in a difference line, `none` where there is no texture."""
    after: str
    outcome: str


def difference_line(before: Findings, after: Findings, names: Sequence[str] = FINDINGS) -> str:
    """The line of a difference answer."""
    return " ".join(_entry(name, before, after, cue=False) for name in names)


def prediction_line(before: Findings, after: Findings, names: Sequence[str] = FINDINGS) -> str:
    """The line of a prediction answer, with the reference's textures."""
    return " ".join(_entry(name, before, after, cue=True) for name in names)


def join(line: str, sentence: str) -> str:
    """A line and its sentence as one answer."""
    return line + SEPARATOR + sentence


def strip(answer: str, names: Sequence[str] = FINDINGS) -> str:
    """The answer without its findings line; an answer without one is returned unchanged.

    Only a line that a model was trained to write is taken off: every one of `names` in its order, each with a few words
    and an outcome. A word too many is forgiven; `the edema is worse; the effusion is new` is an answer and stays.
    """
    line, separator, sentence = answer.partition(";")
    return sentence.lstrip() if separator and _line(tuple(names)).fullmatch(line) else answer


def parse(answer: str, names: Sequence[str] = FINDINGS) -> tuple[Entry, ...] | None:
    """The entries of an answer's line, in the order of `names`; None if there is no complete line."""
    line, separator, _ = answer.partition(";")
    entries, at = [], 0
    for name in names if separator else ():
        match = _pattern(name).match(line, at)
        if match is None:
            return None
        entries.append(Entry(name, match["before"], match["cue"] or "", match["after"], match["outcome"]))
        at = match.end()
    return tuple(entries) if separator and not line[at:].strip() else None


def read_findings(diff_vqa: str | Path) -> dict[str, Findings]:
    """study_id → its present findings, from all_diseases.json of a Medical-Diff-VQA folder.

    The first of several levels or types counts. Raises UserError if the file is missing or is not of that form.
    """
    path = Path(diff_vqa) / "all_diseases.json"
    try:
        return {row["study_id"]: {name: _known(e) for name, e in row["entity"].items()}
                for row in orjson.loads(path.read_bytes())}  # fmt: skip
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; instruct.findings_first needs it, or set instruct.findings_first=false"
        ) from None
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as defect:
        raise UserError(f"{path} is not Medical-Diff-VQA's list of studies with entities: {defect}") from None


def _known(entity: Mapping[str, list[str]]) -> dict[str, str]:
    return {key: entity[key][0] for key in ("level", "type") if entity.get(key)}


def _entry(name: str, before: Findings, after: Findings, cue: bool) -> str:
    words = [name, _state(name, before)]
    if cue:
        words.append(before.get(name, {}).get("type", "none"))
    return " ".join([*words, _state(name, after), _outcome(name, before, after)])


def _state(name: str, findings: Findings) -> str:
    return findings[name].get("level", "yes") if name in findings else "no"


def _outcome(name: str, before: Findings, after: Findings) -> str:
    if (name in before) != (name in after):
        return "new" if name in after else "resolved"
    if name not in before:
        return "same"
    earlier, later = (severity(findings[name].get("level", "")) for findings in (before, after))
    if earlier is None or later is None or earlier == later:
        return "same"
    return "worse" if later > earlier else "better"


@cache
def _line(names: tuple[str, ...]) -> re.Pattern:
    """The form of a line: each finding, one to five words about its states, its outcome."""
    others = "|".join(map(re.escape, names))
    words = rf"(?: (?!(?:{others})\b)[a-z-]+){{1,5}}?"
    entries = (rf"{re.escape(name)}{words} (?:{'|'.join(OUTCOMES)})" for name in names)
    return re.compile(r"\s*" + " ".join(entries) + r"\s*")


def _pattern(name: str) -> re.Pattern:
    return re.compile(
        rf"\s*{re.escape(name)} (?P<before>[a-z]+(?: to [a-z]+)?)(?: (?P<cue>striped|smooth|none))? "
        rf"(?P<after>[a-z]+(?: to [a-z]+)?) (?P<outcome>{'|'.join(OUTCOMES)})(?: |$)"
    )
