"""MIMIC-CXR(-JPG) on disk: the image that represents each study, when it was taken, and the path of its file.

Reads `mimic-cxr-*-metadata.csv[.gz]` and `mimic-cxr-*-split.csv[.gz]` (2.0.0 and 2.1.0) and `mimic_all.csv` of
Medical-Diff-VQA. Memory: about 160 bytes a study, and the same for each image while the metadata is read.
"""

from __future__ import annotations

import os
import stat
import string
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np

from lumen_hpc.config.data_schema import Data
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.study_times import days, study_times
from lumen_hpc.data.table_files import METADATA, MIMIC_ALL, SPLIT, require
from lumen_hpc.data.tables import Block, CsvTable, Place, whole_numbers
from lumen_hpc.errors import UserError

_COLUMNS = (
    "dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime", "ViewCodeSequence_CodeMeaning",
)  # fmt: skip
_FRONTAL = {"postero-anterior": "PA", "antero-posterior": "AP"}
_VIEW_WORDS = frozenset({
    "pa", "ap", "ll", "rl", "lld", "rld", "lao", "rao", "lpo", "rpo", "lateral", "axial", "xtable", "swimmers",
    "oblique", "lordotic", "decubitus", "left", "right", "anterior", "posterior", "antero", "postero",
    "supine", "erect", "recumbent", "upright", "cross", "table", "chest", "view",
})  # fmt: skip
OTHER_VIEW = "other"
"""The view of an image whose text is none: the report has a row a view, and a text in a wrong column may be a name."""
_ENDING = {"jpg": ".jpg", "dicom": ".dcm"}
MIMIC_SPLITS = ("", "train", "validate", "test")
_ID_SIGNS, _LONGEST_ID = (string.ascii_letters + string.digits + "_-").encode(), 64
_SPLIT_NUMBER = {name: number for number, name in enumerate(MIMIC_SPLITS) if name}


@dataclass(eq=False)
class _Images:
    """Images in columns: good rows of the metadata, in the order of the file."""

    study: np.ndarray
    """int64 [n], as are the subjects."""
    subject: np.ndarray
    dicom: list[str]
    name: np.ndarray
    """int64 [n]: Python's hash of the dicom_id, for comparisons within this process."""
    view: list[str]
    frontal: np.ndarray
    """bool [n]"""
    day: np.ndarray
    """int32 [n], the date's ordinal; 0 where StudyDate is missing or not a date."""
    time: np.ndarray
    """float64 [n], StudyTime as a number; NaN where it is missing."""
    row: np.ndarray
    """uint32 [n], the image's row in the file, and the line."""
    line: np.ndarray

    def columns(self) -> list[Any]:
        """Every column, in order."""
        return [getattr(self, column.name) for column in fields(_Images)]

    def take(self, rows: np.ndarray) -> _Images:
        """These rows, in this order."""
        positions = rows.tolist()
        taken: list[Any] = [[c[at] for at in positions] if isinstance(c, list) else c[rows] for c in self.columns()]
        return _Images(*taken)


@dataclass(eq=False)
class Studies(_Images):
    """Every study of the metadata by its image, in the order of the file.

    The image of a study is its first dicom whose ViewCodeSequence_CodeMeaning is PA or AP, else its first, as in
    Medical-Diff-VQA.
    """

    file: str
    images: int
    """Good rows of the metadata."""
    two_dates: int
    """Studies with images of different StudyDates; that of the chosen image counts."""

    def __post_init__(self) -> None:
        self.mimic_split: np.ndarray = np.zeros(len(self), np.int8)
        """MIMIC-CXR's own split, as a number in MIMIC_SPLITS."""
        self._by_id = np.argsort(self.study)
        self._sorted = self.study[self._by_id]

    def __len__(self) -> int:
        return len(self.study)

    def positions(self, study_ids: np.ndarray) -> np.ndarray:
        """int64 [n]: the positions of these studies, -1 for one that is not in the metadata."""
        at = np.minimum(np.searchsorted(self._sorted, study_ids), len(self) - 1)
        return np.where(self._sorted[at] == study_ids, self._by_id[at], -1)

    def ids(self, position: int) -> tuple[int, int, str]:
        """(subject_id, study_id, dicom_id): what the path of an image is built from."""
        return int(self.subject[position]), int(self.study[position]), self.dicom[position]

    def place(self, position: int) -> Place:
        """The metadata row of a study's image."""
        return Place(self.file, int(self.row[position]), int(self.line[position]))

    def same_day_order(self, main: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """For same-day pairs: +1 if the main study is the later by StudyTime, -1 the earlier, 0 if unknown."""
        main, reference = self.time[main], self.time[reference]
        return (main > reference).astype(np.int8) - (main < reference)


def read_studies(folder: str | Path, bad: Rejections) -> Studies:
    """Reads metadata and split of a MIMIC-CXR-JPG folder.

    Bad rows (ids that are not numbers, no dicom_id, a repeated dicom_id, a study of two patients) go to `bad` and
    are not used. A study without date is kept here: it matters only if a question is about it.
    """
    path = require(folder, METADATA)
    table = CsvTable(path, _COLUMNS, bad)
    blocks = [_images(block, path.name, bad) for block in table.blocks()]
    if not any(len(block.dicom) for block in blocks):
        state = f"none of {table.row} rows can be used; {bad.first}" if table.row else "no rows below the header"
        raise UserError(f"{path}: {state}")
    columns = zip(*(block.columns() for block in blocks), strict=True)
    studies = _studies(path.name, _Images(*map(_joined, columns)), bad)
    _read_split(folder, studies, bad)
    return studies


def _joined(column: Sequence) -> Any:
    """One column, its blocks concatenated."""
    return np.concatenate(column) if isinstance(column[0], np.ndarray) else list(chain.from_iterable(column))


def _images(block: Block, file: str, bad: Rejections) -> _Images:
    """A block of the metadata; rows without proper ids go to `bad`."""
    dicom, subject, study, position, date, time, code = block.columns
    views, frontal = tuple(zip(*map(_view, position, code), strict=True)) or ((), ())
    images = _Images(
        study=whole_numbers(study),
        subject=whole_numbers(subject),
        dicom=list(dicom),
        name=_names(dicom),
        view=list(views),
        frontal=np.array(frontal, bool),
        day=days(date),
        time=study_times(time),
        row=block.rows.astype(np.uint32),
        line=block.lines.astype(np.uint32),
    )
    named = _named(dicom)
    good = (images.study >= 0) & (images.subject >= 0) & named
    if good.all():
        return images
    for at in np.flatnonzero(~good).tolist():
        reason = (
            "subject_id or study_id is not a whole number"
            if named[at]
            else "dicom_id is missing, or has other characters than letters, digits, '-' and '_'"  # it becomes a path
        )
        bad(block.place(file, at), "bad id", reason)
    return images.take(np.flatnonzero(good))


def _studies(file: str, images: _Images, bad: Rejections) -> Studies:
    """Chooses each study's image; a repeated dicom_id and a study of two patients go to `bad`."""
    _, first = np.unique(images.name, return_index=True)
    unique: np.ndarray = np.zeros(len(images.dicom), bool)
    unique[first] = True
    kept = np.flatnonzero(unique)
    ids, first, of = np.unique(images.study[kept], return_index=True, return_inverse=True)
    owner = images.subject[kept][first][of]
    same_patient = images.subject[kept] == owner
    for at in np.flatnonzero(~unique).tolist():
        reason = f"dicom_id {images.dicom[at]} repeats an earlier row"
        place = Place(file, int(images.row[at]), int(images.line[at]))
        bad(place, "duplicate dicom_id", reason, study_id=int(images.study[at]))
    for at, first_owner in zip(kept[~same_patient].tolist(), owner[~same_patient].tolist(), strict=True):
        study, place = int(images.study[at]), Place(file, int(images.row[at]), int(images.line[at]))
        reason = f"study {study} is subject {first_owner}'s in an earlier row, subject {images.subject[at]}'s here"
        bad(place, "study of two patients", reason, study_id=study)
    chosen, frontal = kept[first], kept[same_patient & images.frontal[kept]]
    with_frontal, first_frontal = np.unique(images.study[frontal], return_index=True)
    chosen[np.searchsorted(ids, with_frontal)] = frontal[first_frontal]
    days_of, day = images.day[kept], images.day[chosen][of]
    two_dates = len(np.unique(of[same_patient & (days_of != day) & (days_of > 0) & (day > 0)]))
    columns = images.take(chosen[np.argsort(first)]).columns()
    return Studies(*columns, file, len(kept), two_dates)  # type: ignore[call-arg]


def _named(dicoms: Sequence[str]) -> np.ndarray:
    """bool [n]: the ids that can be a part of a path."""
    lengths = np.fromiter(map(len, dicoms), np.int64, len(dicoms))
    named: np.ndarray = (lengths > 0) & (lengths <= _LONGEST_ID)
    if "".join(dicoms).encode().translate(None, _ID_SIGNS):
        named &= [not dicom.encode().translate(None, _ID_SIGNS) for dicom in dicoms]
    return named


def _names(dicoms: Sequence[str]) -> np.ndarray:
    """int64 [n]: Python's own 64-bit hashes, a tenth of the memory of the ids."""
    return np.fromiter(map(hash, dicoms), np.int64, len(dicoms))


@lru_cache(maxsize=1 << 10)
def _view(position: str, code: str) -> tuple[str, bool]:
    """The view of an image, and whether the dataset's rule counts it as frontal."""
    frontal = _FRONTAL.get(code.strip().lower(), "")
    text = frontal or position.strip() or code.strip()
    return text if _VIEW_WORDS.issuperset(text.lower().replace("-", " ").split()) else OTHER_VIEW, bool(frontal)


def _read_split(folder: str | Path, studies: Studies, bad: Rejections) -> None:
    """Reads MIMIC-CXR's own split, which differs from the questions'; the report shows how far.

    Bad ids, an unknown split, and an image that an earlier row puts into another split go to `bad`.
    """
    table = CsvTable(require(folder, SPLIT), ("dicom_id", "study_id", "split"), bad)
    for block in table.blocks():
        dicom, study, split = block.columns
        ids = whole_numbers(study)
        _good_ids(block, table.path.name, bad, ids)
        at = studies.positions(ids)
        number = np.fromiter(map(_SPLIT_NUMBER.get, split, repeat(-1)), np.int8, len(split))
        chosen = (at >= 0) & (studies.name[at] == _names(dicom))
        for row in np.flatnonzero(chosen & (number < 0)).tolist():
            reason = f"split is none of {', '.join(_SPLIT_NUMBER)}"
            bad(block.place(table.path.name, row), "unknown split", reason, dicom_id=dicom[row])
        chosen &= number > 0
        first = np.flatnonzero(chosen & (studies.mimic_split[at] == 0))[::-1]  # backwards: the first row counts
        studies.mimic_split[at[first]] = number[first]
        for row in np.flatnonzero(chosen & (studies.mimic_split[at] != number)).tolist():
            reason = f"dicom_id {dicom[row]} is in another split in an earlier row"
            bad(block.place(table.path.name, row), "duplicate dicom_id", reason, dicom_id=dicom[row])


def _good_ids(block: Block, file: str, bad: Rejections, *ids: np.ndarray) -> np.ndarray:
    """bool [n]: the rows whose ids are all whole numbers; the others go to `bad`."""
    good = np.all([column >= 0 for column in ids], axis=0)
    for at in np.flatnonzero(~good).tolist():
        bad(block.place(file, at), "bad id", "subject_id or study_id is not a whole number")
    return good


def compare_mimic_all(folder: str | Path, studies: Studies, bad: Rejections) -> dict[str, int]:
    """Compares Medical-Diff-VQA's own list of studies with the metadata: counts of rows and disagreements.

    The metadata's rule and dates count in any case; bad ids and a repeated study go to `bad`.
    """
    table = CsvTable(require(folder, MIMIC_ALL), ("subject_id", "study_id", "dicom_id", "study_date"), bad)
    seen: np.ndarray = np.zeros(len(studies), bool)
    names = ("rows", "not_in_metadata", "another_image", "another_date", "no_date", "another_patient")
    counts = dict.fromkeys(names, 0)
    for block in table.blocks():
        subject, study, dicom, date = block.columns
        ids, subjects = whole_numbers(study), whole_numbers(subject)
        good = _good_ids(block, table.path.name, bad, ids, subjects)
        at = np.where(good, studies.positions(ids), -1)
        counts["not_in_metadata"] += int((good & (at < 0)).sum())
        _, first = np.unique(at, return_index=True)
        first_seen: np.ndarray = np.zeros(len(at), bool)
        first_seen[first] = True
        first_seen &= (at >= 0) & ~seen[at]
        for row in np.flatnonzero(~first_seen & (at >= 0)).tolist():
            reason = f"study {ids[row]} repeats an earlier row"
            bad(block.place(table.path.name, row), "duplicate study_id", reason, study_id=int(ids[row]))
        seen[at[first_seen]] = True
        day = days(date)
        for name, differs in (
            ("another_image", studies.name[at] != _names(dicom)),
            ("another_date", (day > 0) & (studies.day[at] != day)),
            ("no_date", day == 0),
            ("another_patient", studies.subject[at] != subjects),
        ):
            counts[name] += int((differs & first_seen).sum())
    return {**counts, "rows": table.row}


class ImageFiles:
    """The paths of image files: `files/p10/p10000032/s50414267/<dicom_id>.jpg` or `.dcm`.

    Where both trees are given, `data.prefer` names the first choice; the other serves where the first has no file.
    """

    def __init__(self, data: Data):
        trees = {"jpg": data.mimic_cxr, "dicom": data.mimic_cxr_dicom}
        if data.prefer == "dicom" and not data.mimic_cxr_dicom:
            raise UserError("data.prefer=dicom needs data.mimic_cxr_dicom=FOLDER, which holds files/ with the DICOMs")
        order = ("dicom", "jpg") if data.prefer == "dicom" else ("jpg", "dicom")
        self.kinds = [kind for kind in order if trees[kind]]
        self._roots = [
            (f"{os.path.abspath(os.path.expanduser(trees[kind]))}/files", _ENDING[kind]) for kind in self.kinds
        ]
        for kind, (root, _) in zip(self.kinds, self._roots):
            # A DICOM-only site need not have an empty files/ beside its csv files.
            if not os.path.isdir(root) and (kind == data.prefer or kind == "dicom"):
                setting = "data.mimic_cxr" if kind == "jpg" else "data.mimic_cxr_dicom"
                below = sorted(Path(root).parent.glob("*/files"))  # a download nests a release
                fix = " or ".join(f"give {setting}={files.parent}" for files in below)
                raise UserError(f"{root} is not a folder: {fix or f'{setting} names the folder that holds files/'}")

    def path(self, kind: int, subject_id: int, study_id: int, dicom_id: str) -> str:
        """Absolute path of an image, whether or not it exists; `kind` is an index into `kinds`."""
        root, ending = self._roots[kind]
        patient = f"p{subject_id}"
        return f"{root}/{patient[:3]}/{patient}/s{study_id}/{dicom_id}{ending}"

    @staticmethod
    def _is_own(path: str, tree: str) -> bool:
        """True for a file of the tree; raises UserError for a link that leads out of it, to who knows whose file.

        git-annex keeps the files beside files/, and links to them.
        """
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as reason:  # a folder without permission or a stale mount has not lost its files
            raise UserError(f"image {path} cannot be read: {reason.strerror or reason}") from None
        if not stat.S_ISLNK(mode):
            if not stat.S_ISREG(mode):
                raise UserError(f"image {path} is not a file")
            return True
        target = os.path.realpath(path)
        if os.path.commonpath([target, os.path.realpath(tree)]) != os.path.realpath(tree):
            raise UserError(f"image {path} is a link that leads out of {tree}; name the tree that holds the file")
        return os.path.isfile(target)

    def find(self, subject_id: int, study_id: int, dicom_id: str) -> int:
        """The kind of the first file that exists; raises UserError naming every path tried."""
        paths = [self.path(kind, subject_id, study_id, dicom_id) for kind in range(len(self.kinds))]
        for kind, path in enumerate(paths):
            if self._is_own(path, os.path.dirname(self._roots[kind][0])):
                return kind
        alike = _alike(paths[0])
        hint = f"; there is {alike} instead: names must match, capitals included" if alike else ""
        raise UserError(f"image missing: {' and '.join(paths)}{hint}")


def _alike(path: str) -> str:
    """A file beside `path` whose name differs in capitals or in its ending alone; empty if there is none."""
    folder, name = os.path.split(path)
    try:
        beside = sorted(os.listdir(folder))
    except OSError:
        return ""
    return next((other for other in beside if other.lower().split(".")[0] == name.lower().split(".")[0]), "")
