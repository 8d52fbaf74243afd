"""The files of the datasets' tables, as the releases pack them (csv.gz) or unpacked (csv)."""

from __future__ import annotations

import os
from pathlib import Path

from lumen_hpc.errors import FAILED_MOUNT, UserError

METADATA = "mimic-cxr-*-metadata"
SPLIT = "mimic-cxr-*-split"
QUESTIONS = "mimic_pair_questions"
MIMIC_ALL = "mimic_all"
ENTITIES = "all_diseases.json"
"""Beside the questions: the findings of every study, which a findings line and timelines are made of."""
PATIENTS = "hosp/patients"
"""Sex and age, which MIMIC-CXR lacks."""
MIMIC_CXR, DIFF_VQA = (METADATA, SPLIT), (QUESTIONS, MIMIC_ALL)
"""What stage `prepare` reads of each dataset."""
COLUMNS = {
    METADATA: (
        "dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime", "ViewCodeSequence_CodeMeaning",
    ),
    SPLIT: ("dicom_id", "study_id", "split"),
    QUESTIONS: ("study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split"),
    MIMIC_ALL: ("subject_id", "study_id", "dicom_id", "study_date"),
}  # fmt: skip
"""Table → the columns that are read, in the order of its reader."""


def find(folder: str | Path, table: str) -> Path | None:
    """The file of a table in its dataset's folder; None if the folder has no such file, or this user cannot see it.

    `table`: its path without the ending; a star stands for the release. Raises UserError where there are several files,
    packed and unpacked or of two releases, since they may differ, and for a file system that does not answer.
    """
    folder = Path(folder).expanduser()
    try:
        paths = sorted(path for ending in (".csv", ".csv.gz") for path in folder.glob(table + ending))
    except PermissionError:
        return None
    except OSError as error:
        if error.errno not in FAILED_MOUNT:
            raise
        raise _unreadable(_setting(table), error.filename or folder, error) from None
    if len(paths) > 1:
        names = " and ".join([str(paths[0]), *(path.name for path in paths[1:])])
        raise UserError(f"{_setting(table)}={folder}: there is {names}, which may differ; keep one of them")
    return paths[0] if paths else None


def require(folder: str | Path, table: str) -> Path:
    """As `find`; raises UserError if there is no such file."""
    if (path := find(folder, table)) is None:
        setting = _setting(table)
        require_visible(setting, Path(folder).expanduser() / Path(table).parent)
        state = f"there is no {table}.csv or .csv.gz" if Path(folder).expanduser().is_dir() else "it is not a folder"
        fix = holding_folder(setting, folder, table) or f"give the folder of {_CONTENTS[setting]}"
        raise UserError(f"{setting}={folder}: {state}; {fix}")
    return path


def require_visible(setting: str, folder: Path) -> None:
    """Raises UserError for a folder that this user may not list: all that it holds would seem to be missing."""
    try:
        os.scandir(folder).close()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise _unreadable(setting, folder, error) from None


def _unreadable(setting: str, place: str | Path, error: OSError) -> UserError:
    fix = "have it mounted again" if error.errno in FAILED_MOUNT else "get access to it"
    return UserError(f"{setting}: {place}: {error.strerror}; {fix}, or give another folder")


def holding_folder(setting: str, folder: str | Path, table: str) -> str:
    """The setting with the folder that holds this table: one below, as downloads nest a release, or the one above.

    Or further below: wget's mirror is `physionet.org/files/mimic-cxr-jpg/2.1.0`.
    """
    folder = Path(folder).expanduser()
    below = ("*/", "m*/*/", "files/m*/*/", "physionet.org/files/m*/*/")  # m: never the patients' folders
    paths = [
        *folder.parent.glob(f"{table}.csv*"),
        *(path for nest in below for path in folder.glob(f"{nest}{table}.csv*")),
    ]
    return " or ".join(f"{setting}={place}" for place in sorted({path.parents[table.count("/")] for path in paths}))


_CONTENTS = {
    "data.mimic_cxr": "MIMIC-CXR-JPG that holds the metadata, the split and files/",
    "data.diff_vqa": "Medical-Diff-VQA that holds mimic_pair_questions and mimic_all",
    "data.mimic_iv": "MIMIC-IV that holds hosp/ and icu/",
}


def _setting(table: str) -> str:
    """The setting that names a table's folder."""
    if "/" in table:
        return "data.mimic_iv"
    return "data.mimic_cxr" if table in MIMIC_CXR else "data.diff_vqa"
