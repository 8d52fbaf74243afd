"""Which readable questions a run keeps: usable studies, patients in one split, the paper's test set (section 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b

import numpy as np

from lumen_hpc.config.data_schema import Prepare
from lumen_hpc.data.diff_vqa import TEMPLATES, TYPES
from lumen_hpc.data.mimic_cxr import Studies
from lumen_hpc.data.questions import SPLITS, Questions
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.short_answers import facts
from lumen_hpc.errors import UserError

DIFFERENCE = TYPES.index("difference")
TEST = SPLITS.index("test")


class Columns:
    """The questions' columns as numpy arrays (views, no copies), with each question's patient."""

    def __init__(self, questions: Questions, studies: Studies):
        self.id = np.frombuffer(questions.id, np.uint64)
        self.main = np.frombuffer(questions.main, np.int32)
        self.reference = np.frombuffer(questions.reference, np.int32)
        self.days = np.frombuffer(questions.days, np.int32)
        self.type = np.frombuffer(questions.type, np.int8)
        self.split = np.frombuffer(questions.split, np.int8)
        self.closed = np.frombuffer(questions.closed, np.bool_)
        self.reordered = np.frombuffer(questions.reordered, np.bool_)
        self.bytes = np.frombuffer(questions.bytes, np.int32)
        self.patient = studies.subject[self.main]
        self.difference = self.type == DIFFERENCE


def distinct(values: np.ndarray) -> np.ndarray:
    """Each value once, in order: np.unique, but quick where equal values stand side by side, as a study's rows do."""
    first: np.ndarray = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    return np.unique(values[first])


def usable(
    questions: Questions, columns: Columns, unusable: np.ndarray, studies: Studies, bad: Rejections
) -> np.ndarray:
    """True for questions whose studies are all usable; the others go to `bad`. `unusable` is bool, one a study."""
    lost = unusable[columns.main] | (columns.difference & unusable[columns.reference])
    for this in np.flatnonzero(lost).tolist():
        rejected = next(at for at in (questions.main[this], questions.reference[this]) if unusable[at])
        bad.question(
            questions.place(this),
            "question about a rejected study",
            f"study {studies.study[rejected]} was rejected ({studies.place(rejected)})",
            question_id=f"{questions.id[this]:016x}",
        )
    return ~lost


REPEAT = "repeat of a question"
WHOLE_IMAGE = "answer about the whole image to a question about an area"
OTHER_FINDING = "another finding of the same area"


def repeats(
    questions: Questions, columns: Columns, ok: np.ndarray, question: Callable[[int], dict], bad: Rejections
) -> dict[str, np.ndarray]:
    """Rows that repeat a question, by rule: bool [n]. A contradicting row goes to `bad` and out of `ok`.

    Release 1.0.1 exchanged the studies of reversed pairs, so a pair that 1.0.0 held in both orders is there twice,
    with equal facts in any order. The question about an area was kept, while its answer was written anew about the
    whole image: then the answer with fewer facts is the area's own. An answer about an area tells one of the findings
    that changed there, so two can be true; the first counts. `question` gives the row at a position.
    """
    rules: dict[str, np.ndarray] = {rule: np.zeros(len(ok), bool) for rule in (REPEAT, WHOLE_IMAGE, OTHER_FINDING)}
    for together in _repeated(columns.id, ok):
        # Of copies in two splits, the most held-out one counts: a rule about patients may take the others away.
        first, *later = sorted(together, key=lambda at: (-columns.split[at], at))
        row = question(first)
        kept, known = first, facts(row["type"], row["short_answer"])
        for this in later:
            found = facts(row["type"], question(this)["short_answer"])
            if found == known:
                rules[REPEAT][this] = True
            elif about_an_area(row) and (found < known or known < found):
                rules[WHOLE_IMAGE][kept if found < known else this] = True
                kept, known = (this, found) if found < known else (kept, known)
            elif about_an_area(row) and {item[1] for item in found}.isdisjoint(item[1] for item in known):
                rules[OTHER_FINDING][this] = True
            else:
                ok[this] = False
                bad.question(
                    questions.place(this),
                    "contradictory answer",
                    f"row {questions.row[kept]} answers the same question about the same study otherwise",
                    question_id=f"{questions.id[this]:016x}",
                )
    return rules


def about_an_area(row: dict) -> bool:
    """True for a difference question about one area of the image."""
    asked = " ".join(row["question"].split()).lower()
    return row["type"] == "difference" and asked != TEMPLATES["difference"][0]


def _repeated(ids: np.ndarray, ok: np.ndarray) -> list[list[int]]:
    """The positions of each id that occurs more than once among the `ok` rows, in order."""
    ordered = np.sort(ids[ok])
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    groups: dict[int, list[int]] = {}
    for at in np.flatnonzero(ok & np.isin(ids, twice)).tolist() if len(twice) else ():
        groups.setdefault(int(ids[at]), []).append(at)
    return list(groups.values())


def patients(columns: Columns, ok: np.ndarray) -> tuple[dict[int, int], list[int]]:
    """Each patient's most held-out split (its number), and the patients with questions in more than one split."""
    # They are in order, so the last split of a patient is its most held-out one.
    pairs = distinct(columns.patient[ok] * len(SPLITS) + columns.split[ok])
    names, counts = np.unique(pairs // len(SPLITS), return_counts=True)
    held_out = dict(zip((pairs // len(SPLITS)).tolist(), (pairs % len(SPLITS)).tolist(), strict=True))
    return held_out, names[counts > 1].tolist()


def select(
    columns: Columns,
    studies: Studies,
    ok: np.ndarray,
    settings: Prepare,
    seed: int,
    splits: dict[int, int],
    shared: list[int],
    repeated: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, dict[str, int]]:
    """The questions to keep, and how many each rule left out.

    Rules, in order: repeated questions (see `repeats`), a patient in two splits (`patient_overlap`), one study a test
    patient, the share of difference questions. Every draw is a hash of the seed and an id, so it depends neither on
    the order of the file nor on its other rows. Raises UserError for patients in two splits, if that is refused.
    """
    keep, left_out = ok.copy(), {}

    def leave_out(rule: str, rows: np.ndarray) -> None:
        left_out[rule] = int((keep & rows).sum())
        keep[rows] = False

    for rule, rows in repeated.items():
        if rows.any():
            leave_out(rule, rows)
    if shared and settings.patient_overlap == "refuse":
        raise UserError(
            f"mimic_pair_questions.csv: {len(shared)} patient{'s' * (len(shared) > 1)} in more than one split (the "
            f"first: subject {shared[0]}, in {SPLITS[splits[shared[0]]]} and another); prepare.patient_overlap=drop "
            "keeps each in its most held-out split alone, =allow keeps all of its questions"
        )
    if shared and settings.patient_overlap == "drop":
        rows = np.isin(columns.patient, shared)
        rows[rows] = columns.split[rows] != [splits[patient] for patient in columns.patient[rows].tolist()]
        leave_out("patient in a more held-out split", rows)
    if settings.one_study_per_test_subject:
        leave_out("another study of a test patient", _other_test_studies(columns, studies, keep, seed))
    if settings.difference_fraction < 1:
        rows = np.zeros(len(ok), bool)
        for at in np.flatnonzero(keep & columns.difference).tolist():
            rows[at] = _draw(seed, "difference", int(columns.id[at])) >= settings.difference_fraction
        leave_out("difference_fraction", rows)
    return keep, left_out


def _other_test_studies(columns: Columns, studies: Studies, keep: np.ndarray, seed: int) -> np.ndarray:
    """True for test questions whose main study is not its patient's drawn one.

    The draw is among the studies that carry a difference question, if the patient has one: in the published file
    every study asked about does, and the paper counts its differences per test image. The reference of the drawn
    study is kept too; it is an image of the question, not a second study asked about.
    """
    test = keep & (columns.split == TEST)
    paired = set(columns.main[test & columns.difference].tolist())
    drawn: dict[int, tuple] = {}
    for main in distinct(columns.main[test]).tolist():
        patient, study = int(studies.subject[main]), int(studies.study[main])
        rank = (main not in paired, _draw(seed, "test study", study), study, main)
        drawn[patient] = min(drawn.get(patient, rank), rank)
    return test & ~np.isin(columns.main, [main for *_, main in drawn.values()])


def _draw(seed: int, *what: object) -> float:
    """A number in [0, 1) that depends on the seed and the ids alone."""
    return int.from_bytes(blake2b(repr((seed, *what)).encode(), digest_size=7).digest(), "big") / 2**56
