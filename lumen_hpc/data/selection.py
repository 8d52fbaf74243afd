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
    """Each value once, in order: np.unique, faster where equal values are adjacent, as a study's rows are."""
    first: np.ndarray = np.ones(len(values), bool)
    first[1:] = values[1:] != values[:-1]
    return np.unique(values[first])


def usable(
    questions: Questions, columns: Columns, unusable_studies: np.ndarray, studies: Studies, rejections: Rejections
) -> np.ndarray:
    """True for questions whose studies are all usable; the others go to `rejections`.

    `unusable_studies`: bool [studies].
    """
    is_lost = unusable_studies[columns.main] | (columns.difference & unusable_studies[columns.reference])
    for row in np.flatnonzero(is_lost).tolist():
        study = next(study for study in (questions.main[row], questions.reference[row]) if unusable_studies[study])
        rejections.question(
            questions.place(row),
            "question about a rejected study",
            f"study {studies.study[study]} was rejected ({studies.place(study)})",
            question_id=f"{questions.id[row]:016x}",
        )
    return ~is_lost


REPEAT = "repeat of a question"
WHOLE_IMAGE = "answer about the whole image to a question about an area"
OTHER_FINDING = "another finding of the same area"


def repeats(
    questions: Questions,
    columns: Columns,
    usable_rows: np.ndarray,
    read_question: Callable[[int], dict],
    rejections: Rejections,
) -> dict[str, np.ndarray]:
    """Rows that repeat a question, by rule: bool [n]. A contradictory row is rejected, and no longer a usable one.

    Release 1.0.1 exchanged the studies of reversed pairs, so a pair that 1.0.0 held in both orders is there twice,
    with equal facts in any order. The question about an area was kept, while its answer was written anew about the
    whole image: then the answer with fewer facts is the area's own. An answer about an area tells one of the findings
    that changed there, so two can be true; the first counts. `read_question` gives the row at a position.
    """
    rules: dict[str, np.ndarray] = {
        rule: np.zeros(len(usable_rows), bool) for rule in (REPEAT, WHOLE_IMAGE, OTHER_FINDING)
    }
    for rows in _repeated_rows(columns.id, usable_rows):
        # Of copies in two splits, the most held-out one counts: a rule about patients may take the others away.
        first_row, *later_rows = sorted(rows, key=lambda index: (-columns.split[index], index))
        question = read_question(first_row)
        kept_row, kept_facts = first_row, facts(question["type"], question["short_answer"])
        for row in later_rows:
            row_facts = facts(question["type"], read_question(row)["short_answer"])
            if row_facts == kept_facts:
                rules[REPEAT][row] = True
            elif is_about_area(question) and (row_facts < kept_facts or kept_facts < row_facts):
                rules[WHOLE_IMAGE][kept_row if row_facts < kept_facts else row] = True
                kept_row, kept_facts = (row, row_facts) if row_facts < kept_facts else (kept_row, kept_facts)
            elif is_about_area(question) and {item[1] for item in row_facts}.isdisjoint(item[1] for item in kept_facts):
                rules[OTHER_FINDING][row] = True
            else:
                usable_rows[row] = False
                rejections.question(
                    questions.place(row),
                    "contradictory answer",
                    f"row {questions.row[kept_row]} answers the same question about the same study otherwise",
                    question_id=f"{questions.id[row]:016x}",
                )
    return rules


def is_about_area(question: dict) -> bool:
    """True for a difference question about one area of the image."""
    text = " ".join(question["question"].split()).lower()
    return question["type"] == "difference" and text != TEMPLATES["difference"][0]


def _repeated_rows(ids: np.ndarray, usable_rows: np.ndarray) -> list[list[int]]:
    """The positions of each id that occurs more than once among the usable rows, in order."""
    sorted_ids = np.sort(ids[usable_rows])
    repeated_ids = sorted_ids[1:][sorted_ids[1:] == sorted_ids[:-1]]
    rows_by_id: dict[int, list[int]] = {}
    for row in np.flatnonzero(usable_rows & np.isin(ids, repeated_ids)).tolist() if len(repeated_ids) else ():
        rows_by_id.setdefault(int(ids[row]), []).append(row)
    return list(rows_by_id.values())


def patient_splits(columns: Columns, usable_rows: np.ndarray) -> tuple[dict[int, int], list[int]]:
    """Each patient's most held-out split (its number), and the patients with questions in more than one split."""
    # In ascending order, so the last split of a patient is its most held-out one.
    pairs = distinct(columns.patient[usable_rows] * len(SPLITS) + columns.split[usable_rows])
    ids, counts = np.unique(pairs // len(SPLITS), return_counts=True)
    splits = dict(zip((pairs // len(SPLITS)).tolist(), (pairs % len(SPLITS)).tolist(), strict=True))
    return splits, ids[counts > 1].tolist()


def select(
    columns: Columns,
    studies: Studies,
    usable_rows: np.ndarray,
    settings: Prepare,
    seed: int,
    splits: dict[int, int],
    shared_patients: list[int],
    repeats_by_rule: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, dict[str, int]]:
    """The questions to keep, and how many each rule left out.

    Rules, in order: repeated questions (see `repeats`), a patient in two splits (`patient_overlap`), one study a test
    patient, the share of difference questions. Every draw is a hash of the seed and an id, so it depends neither on
    the order of the file nor on its other rows. Raises UserError for patients in two splits, if that is refused.
    """
    kept, left_out = usable_rows.copy(), {}

    def leave_out(rule: str, rows: np.ndarray) -> None:
        left_out[rule] = int((kept & rows).sum())
        kept[rows] = False

    for rule, rows in repeats_by_rule.items():
        if rows.any():
            leave_out(rule, rows)
    if shared_patients and settings.patient_overlap == "refuse":
        first, count = shared_patients[0], len(shared_patients)
        raise UserError(
            f"mimic_pair_questions.csv: {count} patient{'s' * (count > 1)} in more than one split (the first: subject "
            f"{first}, in {SPLITS[splits[first]]} and another); prepare.patient_overlap=drop keeps each in its most "
            "held-out split alone, =allow keeps all of its questions"
        )
    if shared_patients and settings.patient_overlap == "drop":
        rows = np.isin(columns.patient, shared_patients)
        rows[rows] = columns.split[rows] != [splits[patient] for patient in columns.patient[rows].tolist()]
        leave_out("patient in a more held-out split", rows)
    if settings.one_study_per_test_subject:
        leave_out("another study of a test patient", _other_test_studies(columns, studies, kept, seed))
    if settings.difference_fraction < 1:
        rows = np.zeros(len(usable_rows), bool)
        for row in np.flatnonzero(kept & columns.difference).tolist():
            rows[row] = _draw(seed, "difference", int(columns.id[row])) >= settings.difference_fraction
        leave_out("difference_fraction", rows)
    return kept, left_out


def _other_test_studies(columns: Columns, studies: Studies, kept: np.ndarray, seed: int) -> np.ndarray:
    """True for test questions whose main study is not its patient's drawn one.

    The draw is among the studies that carry a difference question, if the patient has one: in the published file
    every study asked about does, and the paper counts its differences per test image. The reference of the drawn
    study is kept too; it is an image of the question, not a second study asked about.
    """
    test = kept & (columns.split == TEST)
    paired_studies = set(columns.main[test & columns.difference].tolist())
    drawn_studies: dict[int, tuple] = {}
    for main in distinct(columns.main[test]).tolist():
        patient, study = int(studies.subject[main]), int(studies.study[main])
        rank = (main not in paired_studies, _draw(seed, "test study", study), study, main)
        drawn_studies[patient] = min(drawn_studies.get(patient, rank), rank)
    return test & ~np.isin(columns.main, [main for *_, main in drawn_studies.values()])


def _draw(seed: int, *key: object) -> float:
    """A number in [0, 1) that depends on the seed and the ids alone."""
    return int.from_bytes(blake2b(repr((seed, *key)).encode(), digest_size=7).digest(), "big") / 2**56
