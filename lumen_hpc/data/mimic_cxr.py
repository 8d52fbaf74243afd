"""MIMIC-CXR(-JPG) on disk: the image that represents each study, when it was taken, and the path of its file.

Reads `mimic-cxr-*-metadata.csv[.gz]` and `mimic-cxr-*-split.csv[.gz]` (2.0.0 and 2.1.0) and `mimic_all.csv` of
Medical-Diff-VQA. Memory: about 160 bytes per study, and per image while the metadata is read.
"""

from __future__ import annotations

import itertools
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
from lumen_hpc.data.table_files import COLUMNS, METADATA, MIMIC_ALL, SPLIT, require, require_visible
from lumen_hpc.data.tables import Block, CsvTable, Place, whole_numbers
from lumen_hpc.errors import UserError, unreadable

_FRONTAL = {"postero-anterior": "PA", "antero-posterior": "AP"}
_VIEW_WORDS = frozenset({
    "pa", "ap", "ll", "rl", "lld", "rld", "lao", "rao", "lpo", "rpo", "lateral", "axial", "xtable", "swimmers",
    "oblique", "lordotic", "decubitus", "left", "right", "anterior", "posterior", "antero", "postero",
    "supine", "erect", "recumbent", "upright", "cross", "table", "chest", "view",
})  # fmt: skip
OTHER_VIEW = "other"
"""The view of an image whose text names none: the report has one row per view, and a misplaced text may be a name."""
_SUFFIXES = {"jpg": ".jpg", "dicom": ".dcm"}
MIMIC_SPLITS = ("", "train", "validate", "test")
_ID_CHARACTERS, _MAX_ID_LENGTH = (string.ascii_letters + string.digits + "_-").encode(), 64
_SPLIT_NUMBERS = {name: number for number, name in enumerate(MIMIC_SPLITS) if name}


@dataclass(eq=False)
class _Images:
    """Images in columns: the valid rows of the metadata, in the order of the file."""

    study: np.ndarray
    """int64 [n], as are the subjects."""
    subject: np.ndarray
    dicom: list[str]
    dicom_hash: np.ndarray
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
        indices = rows.tolist()
        columns: list[Any] = [
            [c[index] for index in indices] if isinstance(c, list) else c[rows] for c in self.columns()
        ]
        return _Images(*columns)


@dataclass(eq=False)
class Studies(_Images):
    """Every study of the metadata by its image, in the order of the file.

    The image of a study is its first dicom whose ViewCodeSequence_CodeMeaning is PA or AP, else its first, as in
    Medical-Diff-VQA.
    """

    file: str
    images: int
    """Valid rows of the metadata."""
    two_dates: int
    """Studies with images of different StudyDates; the date of the chosen image counts."""

    def __post_init__(self) -> None:
        self.mimic_split: np.ndarray = np.zeros(len(self), np.int8)
        """MIMIC-CXR's own split, as a number in MIMIC_SPLITS."""
        self._id_order = np.argsort(self.study)
        self._sorted_ids = self.study[self._id_order]

    def __len__(self) -> int:
        return len(self.study)

    def positions(self, study_ids: np.ndarray) -> np.ndarray:
        """int64 [n]: the positions of these studies, -1 for one that is not in the metadata."""
        candidates = np.minimum(np.searchsorted(self._sorted_ids, study_ids), len(self) - 1)
        return np.where(self._sorted_ids[candidates] == study_ids, self._id_order[candidates], -1)

    def ids(self, position: int) -> tuple[int, int, str]:
        """(subject_id, study_id, dicom_id): what the path of an image is built from."""
        return int(self.subject[position]), int(self.study[position]), self.dicom[position]

    def place(self, position: int) -> Place:
        """The metadata row of a study's image."""
        return Place(self.file, int(self.row[position]), int(self.line[position]))


def read_studies(folder: str | Path, rejections: Rejections) -> Studies:
    """Reads metadata and split of a MIMIC-CXR-JPG folder.

    Bad rows (ids that are not numbers, no dicom_id, a repeated dicom_id, a study of two patients) go to `rejections`
    and are not used. A study without date is kept here: it matters only if a question is about it. Raises UserError if
    no row can be used.
    """
    path = require(folder, METADATA)
    table = CsvTable(path, COLUMNS[METADATA], rejections)
    blocks = [_images(block, path.name, rejections) for block in table.blocks()]
    if not any(len(block.dicom) for block in blocks):
        state = f"none of {table.row} rows can be used; {rejections.first}" if table.row else "no rows below the header"
        raise UserError(f"{path}: {state}")
    columns = zip(*(block.columns() for block in blocks), strict=True)
    studies = _studies(path.name, _Images(*map(_concatenate, columns)), rejections)
    _read_split(folder, studies, rejections)
    return studies


def _concatenate(column: Sequence) -> Any:
    """One column, its blocks concatenated."""
    return np.concatenate(column) if isinstance(column[0], np.ndarray) else list(chain.from_iterable(column))


def _images(block: Block, file: str, rejections: Rejections) -> _Images:
    """The images of a block of the metadata; rows with a bad id go to `rejections`."""
    dicom, subject, study, position, date, time, code = block.columns
    views, frontal = tuple(zip(*map(_view, position, code), strict=True)) or ((), ())
    images = _Images(
        study=whole_numbers(study),
        subject=whole_numbers(subject),
        dicom=list(dicom),
        dicom_hash=_hashes(dicom),
        view=list(views),
        frontal=np.array(frontal, bool),
        day=days(date),
        time=study_times(time),
        row=block.rows.astype(np.uint32),
        line=block.lines.astype(np.uint32),
    )
    path_safe = _path_safe(dicom)
    good = (images.study >= 0) & (images.subject >= 0) & path_safe
    if good.all():
        return images
    for row in np.flatnonzero(~good).tolist():
        reason = (
            "subject_id or study_id is not a whole number"
            if path_safe[row]
            else "dicom_id is missing, or has other characters than letters, digits, '-' and '_'"  # it becomes a path
        )
        rejections(block.place(file, row), "bad id", reason)
    return images.take(np.flatnonzero(good))


def _studies(file: str, images: _Images, rejections: Rejections) -> Studies:
    """Chooses each study's image; a repeated dicom_id and a study of two patients go to `rejections`."""
    _, first_rows = np.unique(images.dicom_hash, return_index=True)
    unique: np.ndarray = np.zeros(len(images.dicom), bool)
    unique[first_rows] = True
    unique_rows = np.flatnonzero(unique)
    ids, first_rows, group = np.unique(images.study[unique_rows], return_index=True, return_inverse=True)
    owner = images.subject[unique_rows][first_rows][group]
    same_patient = images.subject[unique_rows] == owner
    for row in np.flatnonzero(~unique).tolist():
        reason = f"dicom_id {images.dicom[row]} repeats an earlier row"
        place = Place(file, int(images.row[row]), int(images.line[row]))
        rejections(place, "duplicate dicom_id", reason, study_id=int(images.study[row]))
    for row, first_owner in zip(unique_rows[~same_patient].tolist(), owner[~same_patient].tolist(), strict=True):
        study, place = int(images.study[row]), Place(file, int(images.row[row]), int(images.line[row]))
        reason = f"study {study} is subject {first_owner}'s in an earlier row, subject {images.subject[row]}'s here"
        rejections(place, "study of two patients", reason, study_id=study)
    image_rows, frontal_rows = unique_rows[first_rows], unique_rows[same_patient & images.frontal[unique_rows]]
    frontal_ids, first_frontal_rows = np.unique(images.study[frontal_rows], return_index=True)
    image_rows[np.searchsorted(ids, frontal_ids)] = frontal_rows[first_frontal_rows]
    image_days, study_days = images.day[unique_rows], images.day[image_rows][group]
    two_dates = len(np.unique(group[same_patient & (image_days != study_days) & (image_days > 0) & (study_days > 0)]))
    columns = images.take(image_rows[np.argsort(first_rows)]).columns()
    return Studies(*columns, file, len(unique_rows), two_dates)  # type: ignore[call-arg]


def _path_safe(dicoms: Sequence[str]) -> np.ndarray:
    """bool [n]: the ids that can be a part of a path."""
    lengths = np.fromiter(map(len, dicoms), np.int64, len(dicoms))
    safe: np.ndarray = (lengths > 0) & (lengths <= _MAX_ID_LENGTH)
    if "".join(dicoms).encode().translate(None, _ID_CHARACTERS):
        safe &= [not dicom.encode().translate(None, _ID_CHARACTERS) for dicom in dicoms]
    return safe


def _hashes(dicoms: Sequence[str]) -> np.ndarray:
    """int64 [n]: Python's own 64-bit hashes, a tenth of the memory of the ids."""
    return np.fromiter(map(hash, dicoms), np.int64, len(dicoms))


@lru_cache(maxsize=1 << 10)
def _view(position: str, code: str) -> tuple[str, bool]:
    """The view of an image, and whether the dataset's rule counts it as frontal."""
    frontal = _FRONTAL.get(code.strip().lower(), "")
    text = frontal or position.strip() or code.strip()
    return text if _VIEW_WORDS.issuperset(text.lower().replace("-", " ").split()) else OTHER_VIEW, bool(frontal)


def _read_split(folder: str | Path, studies: Studies, rejections: Rejections) -> None:
    """Reads MIMIC-CXR's own split, which differs from the questions'; the report shows how far.

    Bad ids, an unknown split, and an image that an earlier row puts into another split go to `rejections`.
    """
    table = CsvTable(require(folder, SPLIT), COLUMNS[SPLIT], rejections)
    for block in table.blocks():
        dicom, study, split = block.columns
        ids = whole_numbers(study)
        _valid_ids(block, table.path.name, rejections, ids)
        positions = studies.positions(ids)
        splits = np.fromiter(map(_SPLIT_NUMBERS.get, split, repeat(-1)), np.int8, len(split))
        is_study_image = (positions >= 0) & (studies.dicom_hash[positions] == _hashes(dicom))
        for row in np.flatnonzero(is_study_image & (splits < 0)).tolist():
            reason = f"split is none of {', '.join(_SPLIT_NUMBERS)}"
            rejections(block.place(table.path.name, row), "unknown split", reason, dicom_id=dicom[row])
        is_study_image &= splits > 0
        new_rows = np.flatnonzero(is_study_image & (studies.mimic_split[positions] == 0))
        new_rows = new_rows[::-1]  # backwards: of several rows of a study, the first counts
        studies.mimic_split[positions[new_rows]] = splits[new_rows]
        for row in np.flatnonzero(is_study_image & (studies.mimic_split[positions] != splits)).tolist():
            reason = f"dicom_id {dicom[row]} is in another split in an earlier row"
            rejections(block.place(table.path.name, row), "duplicate dicom_id", reason, dicom_id=dicom[row])


def _valid_ids(block: Block, file: str, rejections: Rejections, *ids: np.ndarray) -> np.ndarray:
    """bool [n]: the rows whose ids are all whole numbers; the others go to `rejections`."""
    valid = np.all([column >= 0 for column in ids], axis=0)
    for row in np.flatnonzero(~valid).tolist():
        rejections(block.place(file, row), "bad id", "subject_id or study_id is not a whole number")
    return valid


def compare_mimic_all(folder: str | Path, studies: Studies, rejections: Rejections) -> dict[str, int]:
    """Compares Medical-Diff-VQA's own list of studies with the metadata: counts of rows and disagreements.

    The metadata's rule and dates count in any case; bad ids and a repeated study go to `rejections`.
    """
    table = CsvTable(require(folder, MIMIC_ALL), COLUMNS[MIMIC_ALL], rejections)
    seen: np.ndarray = np.zeros(len(studies), bool)
    names = ("rows", "not_in_metadata", "another_image", "another_date", "no_date", "another_patient")
    counts = dict.fromkeys(names, 0)
    for block in table.blocks():
        subject, study, dicom, date = block.columns
        ids, subjects = whole_numbers(study), whole_numbers(subject)
        valid = _valid_ids(block, table.path.name, rejections, ids, subjects)
        positions = np.where(valid, studies.positions(ids), -1)
        counts["not_in_metadata"] += int((valid & (positions < 0)).sum())
        _, first_rows = np.unique(positions, return_index=True)
        first_seen: np.ndarray = np.zeros(len(positions), bool)
        first_seen[first_rows] = True
        first_seen &= (positions >= 0) & ~seen[positions]
        for row in np.flatnonzero(~first_seen & (positions >= 0)).tolist():
            reason = f"study {ids[row]} repeats an earlier row"
            rejections(block.place(table.path.name, row), "duplicate study_id", reason, study_id=int(ids[row]))
        seen[positions[first_seen]] = True
        day = days(date)
        for name, differs in (
            ("another_image", studies.dicom_hash[positions] != _hashes(dicom)),
            ("another_date", (day > 0) & (studies.day[positions] != day)),
            ("no_date", day == 0),
            ("another_patient", studies.subject[positions] != subjects),
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
            (f"{os.path.abspath(os.path.expanduser(trees[kind]))}/files", _SUFFIXES[kind]) for kind in self.kinds
        ]
        for kind, (root, _) in zip(self.kinds, self._roots):
            # A site with DICOMs alone needs no empty files/ beside its csv files.
            if not os.path.isdir(root) and (kind == data.prefer or kind == "dicom"):
                setting = "data.mimic_cxr" if kind == "jpg" else "data.mimic_cxr_dicom"
                require_visible(setting, Path(root))
                nested_trees = sorted(Path(root).parent.glob("*/files"))  # a download nests a release
                fix = " or ".join(f"give {setting}={files.parent}" for files in nested_trees)
                raise UserError(f"{root} is not a folder: {fix or f'{setting} names the folder that holds files/'}")

    def path(self, kind: int, subject_id: int, study_id: int, dicom_id: str) -> str:
        """Absolute path of an image, whether or not it exists; `kind` is an index into `kinds`."""
        root, ending = self._roots[kind]
        patient = f"p{subject_id}"
        return f"{root}/{patient[:3]}/{patient}/s{study_id}/{dicom_id}{ending}"

    @staticmethod
    def _is_in_tree(path: str, tree: str) -> bool:
        """True for a file of the tree; raises UserError for a link that leads out of it.

        A link within the tree is accepted: git-annex keeps the content beside files/.
        """
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as reason:  # a folder without permission or a stale mount has not lost its files
            raise unreadable(f"image {path}", reason) from None
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
            if self._is_in_tree(path, os.path.dirname(self._roots[kind][0])):
                return kind
        hint = ""
        if os.path.islink(paths[0]):
            hint = "; it is a link to a file that is not there (git-annex: get the content)"
        elif similar_file := _similar_file(paths[0]):
            hint = f"; there is {similar_file} instead: names must match, capitals and ending included"
        elif missing_folders := list(itertools.takewhile(lambda f: not os.path.isdir(f), Path(paths[0]).parents)):
            hint = f"; there is no folder {missing_folders[-1]}"  # p15 of a download that is not complete
        raise UserError(f"image missing: {' and '.join(paths)}{hint}")


def _similar_file(path: str) -> str:
    """A file beside `path` whose name differs only in its capitals or ending; empty if there is none."""
    folder, name = os.path.split(path)
    try:
        siblings = sorted(os.listdir(folder))
    except OSError:
        return ""
    return next((sibling for sibling in siblings if sibling.lower().split(".")[0] == name.lower().split(".")[0]), "")
