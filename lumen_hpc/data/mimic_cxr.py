"""MIMIC-CXR(-JPG) as it lies on disk: which image stands for a study, when it was taken, and where its file is.

Reads `mimic-cxr-*-metadata.csv[.gz]` and `mimic-cxr-*-split.csv[.gz]` (2.0.0 and 2.1.0) and `mimic_all.csv` of
Medical-Diff-VQA. Memory: about 200 bytes a study, none an image beyond that.
"""

from __future__ import annotations

import math
import os
from array import array
from collections import Counter
from pathlib import Path
from sys import intern

from lumen_hpc.data.intervals import seconds_of_day, taken_at, taken_on
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.tables import Place, Table, find_table
from lumen_hpc.errors import UserError
from lumen_hpc.settings import Data

METADATA = "mimic-cxr-*-metadata"
SPLIT = "mimic-cxr-*-split"
_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime", "ViewCodeSequence_CodeMeaning",
)  # fmt: skip
_FRONTAL = {"postero-anterior": "PA", "antero-posterior": "AP"}
MIMIC_SPLITS = ("", "train", "validate", "test")


class Studies:
    """Every study of the metadata by position, in columns; `index` maps study_id to position.

    The image of a study is its first dicom whose ViewCodeSequence_CodeMeaning is PA or AP, else its first: the rule
    by which Medical-Diff-VQA itself chose. `day` is the date's ordinal, -1 where StudyDate is missing or no date.
    """

    def __init__(self) -> None:
        self.index: dict[int, int] = {}
        self.study = array("Q")
        self.subject = array("Q")
        self.dicom: list[str] = []
        self.view: list[str] = []
        self.frontal = bytearray()
        self.date: list[str] = []
        self.time: list[str] = []
        self.row = array("I")
        self.line = array("I")
        self.day = array("i")
        self.mimic_split = bytearray()
        self.images = 0
        self.file = ""

    def __len__(self) -> int:
        return len(self.dicom)

    def place(self, position: int) -> Place:
        """The metadata row of a study's image."""
        return Place(self.file, self.row[position], self.line[position])

    def seconds(self, position: int) -> float:
        """StudyTime as a number, for the order of studies on one day; NaN if missing."""
        return seconds_of_day(self.time[position])

    def taken_at(self, position: int) -> str:
        """ISO date and time; the date alone where StudyTime is missing or no clock time. Raises UserError undated."""
        return taken_at(self.date[position], self.time[position]).isoformat()


def read_studies(folder: str | Path, bad: Rejections) -> Studies:
    """Reads metadata and split of a MIMIC-CXR-JPG folder.

    Bad rows (ids that are no numbers, no dicom_id, a dicom_id seen before, a study of two patients) go to `bad` and
    are not used. A study without date is kept here: whether that matters depends on its being asked about.
    """
    studies = Studies()
    path = find_table(folder, METADATA)
    studies.file = path.name
    table = Table(path, _COLUMNS, bad)
    # Python's own 64-bit string hashes: a third of the memory of the names, and only ever compared in this process.
    seen: set[int] = set()
    for dicom, subject, study, position, date, time, code in table:
        try:
            subject_id, study_id = int(subject), int(study)
        except ValueError:
            bad(table.place, "bad id", "subject_id and study_id must be whole numbers")
            continue
        if not dicom:
            bad(table.place, "bad id", f"no dicom_id (study {study_id})", study_id=study_id)
            continue
        if (name := hash(dicom)) in seen:
            bad(table.place, "duplicate dicom_id", f"dicom_id {dicom} stands in an earlier row too", study_id=study_id)
            continue
        seen.add(name)
        studies.images += 1
        at = studies.index.get(study_id)
        frontal = _FRONTAL.get(code.strip().lower())
        if at is None:
            studies.index[study_id] = len(studies)
            studies.study.append(study_id)
            studies.subject.append(subject_id)
            studies.dicom.append(dicom)
            studies.view.append(intern(frontal or position.strip() or code.strip()))
            studies.frontal.append(frontal is not None)
            studies.date.append(intern(date))
            studies.time.append(time)
            studies.row.append(table.row)
            studies.line.append(table.line)
        elif studies.subject[at] != subject_id:
            reason = f"study {study_id} is subject {studies.subject[at]}'s above, subject {subject_id}'s here"
            bad(table.place, "study of two patients", reason, study_id=study_id)
        elif frontal and not studies.frontal[at]:
            studies.dicom[at], studies.view[at], studies.frontal[at] = dicom, frontal, True
            studies.date[at], studies.time[at] = intern(date), time
            studies.row[at], studies.line[at] = table.row, table.line
    if not studies.index:
        raise UserError(f"{path}: no rows below the header")
    studies.day = array("i", map(_day, studies.date))
    _read_split(folder, studies, bad)
    return studies


def _day(date: str) -> int:
    try:
        return taken_on(date).toordinal()
    except UserError:
        return -1


def _read_split(folder: str | Path, studies: Studies, bad: Rejections) -> None:
    """MIMIC-CXR's own split, which is not the questions': kept to say how far the two disagree."""
    studies.mimic_split = bytearray(len(studies))
    table = Table(find_table(folder, SPLIT), ("dicom_id", "study_id", "split"), bad)
    for dicom, study, split in table:
        at = studies.index.get(int(study)) if study.isdecimal() else None
        if at is None or studies.dicom[at] != dicom:
            continue
        if split not in MIMIC_SPLITS[1:]:
            bad(table.place, "unknown split", f"split is none of {', '.join(MIMIC_SPLITS[1:])}", dicom_id=dicom)
            continue
        studies.mimic_split[at] = MIMIC_SPLITS.index(split)


def compare_mimic_all(folder: str | Path, studies: Studies, bad: Rejections) -> dict[str, int]:
    """How far Medical-Diff-VQA's own list of studies agrees with the metadata: counts of rows and disagreements.

    The metadata's rule and dates stand in any case; a doubled study goes to `bad`.
    """
    table = Table(find_table(folder, "mimic_all"), ("subject_id", "study_id", "dicom_id", "study_date"), bad)
    seen = bytearray(len(studies))
    counts = Counter(rows=0, not_in_metadata=0, another_image=0, another_date=0, another_patient=0)
    for subject, study, dicom, date in table:
        counts["rows"] += 1
        at = studies.index.get(int(study)) if study.isdecimal() else None
        if at is None:
            counts["not_in_metadata"] += 1
            continue
        if seen[at]:
            bad(table.place, "duplicate study_id", f"study {study} stands in an earlier row too", study_id=int(study))
            continue
        seen[at] = 1
        counts["another_image"] += dicom != studies.dicom[at]
        counts["another_date"] += date.removesuffix(".0") != studies.date[at].removesuffix(".0")
        counts["another_patient"] += subject != str(studies.subject[at])
    return dict(counts)


class ImageFiles:
    """Where the files of images are: `files/p10/p10000032/s50414267/<dicom_id>.jpg` or `.dcm`.

    Where both trees are given, `data.prefer` says which is looked at first; the other serves where it has no file.
    """

    def __init__(self, data: Data):
        trees = {"jpg": data.mimic_cxr, "dicom": data.mimic_cxr_dicom}
        if data.prefer == "dicom" and not data.mimic_cxr_dicom:
            raise UserError("data.prefer=dicom needs data.mimic_cxr_dicom=FOLDER, which holds files/ with the DICOMs")
        order = ("dicom", "jpg") if data.prefer == "dicom" else ("jpg", "dicom")
        self._roots = [(kind, os.path.join(os.path.abspath(trees[kind]), "files")) for kind in order if trees[kind]]
        for kind, root in self._roots:
            # A DICOM-only site need not have an empty files/ beside its csv files.
            if not os.path.isdir(root) and (kind == data.prefer or kind == "dicom"):
                setting = "data.mimic_cxr" if kind == "jpg" else "data.mimic_cxr_dicom"
                raise UserError(f"{root} is not a folder: {setting} names the folder that holds files/")

    def candidates(self, subject_id: int, study_id: int, dicom_id: str) -> list[tuple[str, str]]:
        """(kind, absolute path) of each place where the image may be, the preferred one first."""
        patient = f"p{subject_id}"
        stem = os.path.join(patient[:3], patient, f"s{study_id}", dicom_id)
        return [
            (kind, os.path.join(root, stem) + (".jpg" if kind == "jpg" else ".dcm")) for kind, root in self._roots
        ]

    def find(self, subject_id: int, study_id: int, dicom_id: str) -> tuple[str, str]:
        """(kind, path) of the image that is there; raises UserError naming every path tried."""
        candidates = self.candidates(subject_id, study_id, dicom_id)
        for kind, path in candidates:
            if os.path.isfile(path):
                return kind, path
        raise UserError(f"image missing: {' and '.join(path for _, path in candidates)}")


def same_day_order(studies: Studies, main: int, reference: int) -> int:
    """+1 if the main study of a same-day pair came later by StudyTime, -1 if earlier, 0 if that cannot be told."""
    later = studies.seconds(main) - studies.seconds(reference)
    return 0 if math.isnan(later) else (later > 0) - (later < 0)
