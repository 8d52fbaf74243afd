"""MIMIC-CXR(-JPG) as it lies on disk: which image stands for a study, when it was taken, and where its file is.

Reads `mimic-cxr-*-metadata.csv[.gz]` and `mimic-cxr-*-split.csv[.gz]` (2.0.0 and 2.1.0) and `mimic_all.csv` of
Medical-Diff-VQA. Memory: about 200 bytes a study, none an image beyond that.
"""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from sys import intern

from lumen_hpc.data.intervals import study_time, taken_on
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
_ENDING = {"jpg": ".jpg", "dicom": ".dcm"}
MIMIC_SPLITS = ("", "train", "validate", "test")


class Studies:
    """Every study of the metadata by position, in columns; `index` maps study_id to position.

    The image of a study is its first dicom whose ViewCodeSequence_CodeMeaning is PA or AP, else its first: the rule
    by which Medical-Diff-VQA itself chose. `day` is the date's ordinal, 0 where StudyDate is missing or no date;
    `time` is StudyTime as the number it is, NaN where it is missing.
    """

    def __init__(self, file: str = "") -> None:
        self.file = file
        self.images = 0
        self.index: dict[int, int] = {}
        self.study = array("Q")
        self.subject = array("Q")
        self.dicom: list[str] = []
        self.view: list[str] = []
        self.frontal = array("b")
        self.day = array("i")
        self.time = array("d")
        self.row = array("I")
        self.line = array("I")
        self.mimic_split = array("b")

    def __len__(self) -> int:
        return len(self.dicom)

    def place(self, position: int) -> Place:
        """The metadata row of a study's image."""
        return Place(self.file, self.row[position], self.line[position])

    def same_day_order(self, main: int, reference: int) -> int:
        """+1 if the main study of a same-day pair was the later by StudyTime, -1 the earlier, 0 if not to be told."""
        return (self.time[main] > self.time[reference]) - (self.time[main] < self.time[reference])

    def add(self, subject_id: int, study_id: int) -> int:
        """A new study without an image yet; returns its position."""
        position = self.index[study_id] = len(self)
        self.study.append(study_id)
        self.subject.append(subject_id)
        self.dicom.append("")
        self.view.append("")
        for column in (self.frontal, self.day, self.time, self.row, self.line, self.mimic_split):
            column.append(0)
        return position


def read_studies(folder: str | Path, bad: Rejections) -> Studies:
    """Reads metadata and split of a MIMIC-CXR-JPG folder.

    Bad rows (ids that are no numbers, no dicom_id, a dicom_id seen before, a study of two patients) go to `bad` and
    are not used. A study without date is kept here: whether that matters depends on its being asked about.
    """
    path = find_table(folder, METADATA)
    studies = Studies(path.name)
    table = Table(path, _COLUMNS, bad)
    # Python's own 64-bit string hashes: a third of the memory of the names, and only ever compared in this process.
    seen: set[int] = set()
    for dicom, subject, study, position, date, time, code in table:
        if not (subject.isdecimal() and study.isdecimal() and dicom):
            bad(table.place, "bad id", "dicom_id is missing, or subject_id or study_id is no whole number")
            continue
        if (name := hash(dicom)) in seen:
            bad(table.place, "duplicate dicom_id", f"dicom_id {dicom} stands above too", study_id=int(study))
            continue
        seen.add(name)
        studies.images += 1
        at = studies.index.get(int(study))
        frontal = _FRONTAL.get(code.strip().lower())
        if at is None:
            at = studies.add(int(subject), int(study))
        elif studies.subject[at] != int(subject):
            reason = f"study {study} is subject {studies.subject[at]}'s above, subject {subject}'s here"
            bad(table.place, "study of two patients", reason, study_id=int(study))
            continue
        elif studies.frontal[at] or not frontal:
            continue
        studies.dicom[at] = dicom
        studies.view[at] = intern(frontal or position.strip() or code.strip())
        studies.frontal[at] = frontal is not None
        studies.day[at] = _day(date)
        studies.time[at] = study_time(time)
        studies.row[at], studies.line[at] = table.row, table.line
    if not studies.index:
        raise UserError(f"{path}: no rows below the header")
    _read_split(folder, studies, bad)
    return studies


def _day(date: str) -> int:
    try:
        return taken_on(date).toordinal()
    except UserError:
        return 0


def _read_split(folder: str | Path, studies: Studies, bad: Rejections) -> None:
    """MIMIC-CXR's own split, which is not the questions': kept to say how far the two disagree."""
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
    counts = dict.fromkeys(("rows", "not_in_metadata", "another_image", "another_date", "another_patient"), 0)
    for subject, study, dicom, date in table:
        at = studies.index.get(int(study)) if study.isdecimal() else None
        if at is None:
            counts["not_in_metadata"] += 1
            continue
        if seen[at]:
            bad(table.place, "duplicate study_id", f"study {study} stands above too", study_id=int(study))
            continue
        seen[at] = 1
        if dicom != studies.dicom[at]:
            counts["another_image"] += 1
        if _day(date) != studies.day[at]:
            counts["another_date"] += 1
        if subject != str(studies.subject[at]):
            counts["another_patient"] += 1
    return {**counts, "rows": table.row}


class ImageFiles:
    """Where the files of images are: `files/p10/p10000032/s50414267/<dicom_id>.jpg` or `.dcm`.

    Where both trees are given, `data.prefer` says which is looked at first; the other serves where it has no file.
    """

    def __init__(self, data: Data):
        trees = {"jpg": data.mimic_cxr, "dicom": data.mimic_cxr_dicom}
        if data.prefer == "dicom" and not data.mimic_cxr_dicom:
            raise UserError("data.prefer=dicom needs data.mimic_cxr_dicom=FOLDER, which holds files/ with the DICOMs")
        order = ("dicom", "jpg") if data.prefer == "dicom" else ("jpg", "dicom")
        self.kinds = [kind for kind in order if trees[kind]]
        self._roots = {kind: f"{os.path.abspath(os.path.expanduser(trees[kind]))}/files" for kind in self.kinds}
        for kind, root in self._roots.items():
            # A DICOM-only site need not have an empty files/ beside its csv files.
            if not os.path.isdir(root) and (kind == data.prefer or kind == "dicom"):
                setting = "data.mimic_cxr" if kind == "jpg" else "data.mimic_cxr_dicom"
                raise UserError(f"{root} is not a folder: {setting} names the folder that holds files/")

    def path(self, kind: str, subject_id: int, study_id: int, dicom_id: str) -> str:
        """Absolute path of an image, there or not."""
        patient = f"p{subject_id}"
        return f"{self._roots[kind]}/{patient[:3]}/{patient}/s{study_id}/{dicom_id}{_ENDING[kind]}"

    def find(self, subject_id: int, study_id: int, dicom_id: str) -> str:
        """The kind of the file that is there; raises UserError naming every path tried."""
        paths = {kind: self.path(kind, subject_id, study_id, dicom_id) for kind in self.kinds}
        for kind, path in paths.items():
            if os.path.isfile(path):
                return kind
        raise UserError(f"image missing: {' and '.join(paths.values())}")
