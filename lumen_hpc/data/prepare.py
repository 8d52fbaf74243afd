"""From the official files to the studies and questions of a run (paper, section 2.1).

One pass over the questions writes every readable one to a scratch file and keeps some forty bytes of numbers each;
what studies, splits and settings then leave out is left out by copying lines. Nothing is parsed twice, and memory
does not hold the text.
"""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import date
from itertools import chain, islice
from math import isnan
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import orjson

from lumen_hpc.data import counting
from lumen_hpc.data.intervals import clock, moment
from lumen_hpc.data.mimic_cxr import MIMIC_SPLITS, ImageFiles, Studies, compare_mimic_all, read_studies
from lumen_hpc.data.questions import SPLITS, read_questions
from lumen_hpc.data.records import writing
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.selection import Columns, patients, select, whole
from lumen_hpc.errors import UserError
from lumen_hpc.settings import Data, Prepare

NAMED = 20
"""How many of a kind counts.json names; the rest are counted."""


def prepare(data: Data, settings: Prepare, seed: int, folder: str | Path) -> dict:
    """Writes a run's studies and questions into `folder` and returns the counts.

    Files: `studies.jsonl` (every usable study that a question is about), `questions.jsonl` (what the run uses),
    `left_out.jsonl` (readable questions that a setting leaves out), `rejected.jsonl` (bad rows) and `counts.json`.
    Every row of the questions file is in exactly one of the middle three. Rows: docs/data.md.
    Raises UserError for input that cannot be used, and, with `on_bad=stop`, for any bad row; then only
    `rejected.jsonl` is written.
    """
    for setting, value in (("data.mimic_cxr", data.mimic_cxr), ("data.diff_vqa", data.diff_vqa)):
        if not value:
            raise UserError(f"data=mimic needs {setting}=FOLDER: docs/data.md says what it holds")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = ImageFiles(data)
    with ExitStack() as stack:
        bad = stack.enter_context(Rejections(folder / "rejected.jsonl", settings.on_bad, settings.max_bad))
        scratch = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=1 << 20)))
        with _collector_paused():
            studies = read_studies(data.mimic_cxr, bad)
            agreement = compare_mimic_all(data.diff_vqa, studies, bad)
            questions = read_questions(data.diff_vqa, studies, bad, scratch)
        columns = Columns(questions, studies)
        every = np.ones(len(questions), bool)
        found, unusable = _look_at_images(studies, _asked_about(columns, every), files, settings, bad)
        ok = whole(questions, columns, unusable, studies, bad)
        bad.verdict(questions.read)
        splits, shared = patients(columns, ok)
        keep, left_out = select(columns, studies, ok, settings, seed, splits, shared)
        if not keep.any():
            raise UserError(f"{questions.file}: of {questions.read} questions, none is left to use")
        found = {at: found[at] for at in _asked_about(columns, ok)}
        _write_studies(folder / "studies.jsonl", studies, files, found, splits)
        _copy_lines(scratch, folder / "questions.jsonl", keep, columns.bytes)
        _copy_lines(scratch, folder / "left_out.jsonl", ok & ~keep, columns.bytes)
    counts = {
        "seed": seed,
        "questions_file": questions.file,
        "read": questions.read,
        "kept": int(keep.sum()),
        "left_out": left_out,
        "rejected": {"questions": bad.questions, "rows_by_kind": dict(bad.kinds)},
        "file": counting.read_counts(columns, ok),
        "splits": {split: counting.split_counts(columns, keep, split) for split in SPLITS},
        "intervals": counting.interval_counts(columns, keep, _same_day(studies, columns, keep)),
        "studies": _study_counts(studies, found, agreement),
        "patients_in_two_splits": len(shared),
        "test_images_in_mimic_split": _mimic_splits(studies, columns, keep),
    }
    with writing(folder / "counts.json") as out:
        out.write(orjson.dumps(counts, option=orjson.OPT_INDENT_2))
    return counts


def _asked_about(columns: Columns, rows: np.ndarray) -> list[int]:
    """Positions of the studies that these questions are about, as main or reference study, in order."""
    return np.union1d(columns.main[rows], columns.reference[rows & columns.difference]).tolist()


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Garbage collection off: rows make no cycles, and each collection would walk all studies again (half the time)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _look_at_images(
    studies: Studies, used: list[int], files: ImageFiles, settings: Prepare, bad: Rejections
) -> tuple[dict[int, str], set[int]]:
    """Which kind of file serves each usable study, and the positions of the studies that are not; named in `bad`."""
    look = _look(studies, files, settings.images)
    found: dict[int, str] = {}
    unusable: set[int] = set()
    with ThreadPoolExecutor(settings.image_threads) as pool:
        parts = (used[start : start + 256] for start in range(0, len(used), 256))
        # A pool holds everything that it is given at once, so it is given a little at a time.
        while some := list(islice(parts, settings.image_threads)):
            looked = pool.map(lambda part: [(at, *look(at)) for at in part], some)
            for at, kind, fault in chain.from_iterable(looked):
                if not fault:
                    found[at] = kind
                    continue
                unusable.add(at)
                study = studies.study[at]
                more = {"study_id": study, "dicom_id": studies.dicom[at]}
                bad(studies.place(at), kind, f"study {study}: {fault}", **more)
    return found, unusable


def _look(studies: Studies, files: ImageFiles, how: str) -> Callable[[int], tuple[str, str]]:
    """A function from a study's position to (kind of its file, ""), or to (kind of fault, what is wrong)."""
    if how == "read":
        from lumen_hpc.data.images import check

    def look(at: int) -> tuple[str, str]:
        if not studies.day[at]:
            return "study without date", "StudyDate is missing or no date (YYYYMMDD)"
        ids = studies.subject[at], studies.study[at], studies.dicom[at]
        try:
            kind = files.kinds[0] if how == "trust" else files.find(*ids)
            if how == "read":
                check(files.path(kind, *ids))
        except UserError as fault:
            return "image missing or broken", str(fault)
        return kind, ""

    return look


def _write_studies(
    path: Path, studies: Studies, files: ImageFiles, found: dict[int, str], splits: dict[int, int]
) -> None:
    """One row a usable study, in the order of the metadata."""
    with writing(path) as out:
        for at, kind in found.items():
            subject, study, dicom = studies.subject[at], studies.study[at], studies.dicom[at]
            row = {
                "subject_id": subject,
                "study_id": study,
                "dicom_id": dicom,
                "image": files.path(kind, subject, study, dicom),
                "view": studies.view[at],
                "taken_at": moment(date.fromordinal(studies.day[at]), studies.time[at]).isoformat(),
                "split": SPLITS[splits[subject]],
            }
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _copy_lines(scratch: BinaryIO, path: Path, rows: np.ndarray, lengths: np.ndarray) -> None:
    """Copies the lines of the scratch file for which `rows` is true, run by run."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    edges = np.flatnonzero(np.diff(rows.astype(np.int8), prepend=0, append=0))
    with writing(path) as out:
        for start, stop in offsets[edges].reshape(-1, 2).tolist():
            scratch.seek(start)
            while start < stop:
                start += out.write(scratch.read(min(stop - start, 1 << 20)))


def _same_day(studies: Studies, columns: Columns, keep: np.ndarray) -> list[int]:
    """For each kept 0-day pair: +1 if the main study was the later by StudyTime, -1 the earlier, 0 unknown."""
    pairs = np.flatnonzero(keep & columns.difference & (columns.days == 0)).tolist()
    return [studies.same_day_order(columns.main[at], columns.reference[at]) for at in pairs]


def _study_counts(studies: Studies, found: dict[int, str], agreement: dict[str, int]) -> dict:
    """Studies and images, which file serves them, and whose StudyTime is missing or no clock time."""
    untimed = [at for at in found if clock(studies.time[at]) is None]
    impossible = [
        {"study_id": studies.study[at], "StudyTime": studies.time[at]} for at in untimed if not isnan(studies.time[at])
    ]
    return {
        "in_metadata": counting.beside(len(studies), counting.MIMIC_CXR["studies"]),
        "images_in_metadata": counting.beside(studies.images, counting.MIMIC_CXR["images"]),
        "asked_about": len(found),
        "image_files": dict(Counter(found.values())),
        "images_not_frontal": sum(not studies.frontal[at] for at in found),
        "without_time": len(untimed) - len(impossible),
        "impossible_time": {"count": len(impossible), "first": impossible[:NAMED]},
        "mimic_all": agreement,
    }


def _mimic_splits(studies: Studies, columns: Columns, keep: np.ndarray) -> dict[str, int]:
    """Where MIMIC-CXR's own split has the test images: models trained on its train part have seen those."""
    images = np.unique(columns.main[keep & (columns.split == SPLITS.index("test"))])
    counts = np.bincount(np.frombuffer(studies.mimic_split, np.int8)[images], minlength=len(MIMIC_SPLITS)).tolist()
    return {name or "not listed": count for name, count in zip(MIMIC_SPLITS, counts, strict=True)}
