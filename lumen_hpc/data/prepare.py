"""From the official files to the studies and questions of a run (paper, section 2.1).

One pass over the questions writes every readable one to a scratch file and keeps some forty bytes of numbers each;
what studies, splits and settings then leave out is left out by copying lines. Nothing is parsed twice, and memory
does not hold the text.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import compress, islice
from pathlib import Path
from typing import IO

import numpy as np
import orjson

from lumen_hpc.data import counting
from lumen_hpc.data.intervals import clock
from lumen_hpc.data.mimic_cxr import MIMIC_SPLITS, ImageFiles, Studies, compare_mimic_all, read_studies, same_day_order
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
        scratch = stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=1 << 20))
        studies = read_studies(data.mimic_cxr, bad)
        agreement = compare_mimic_all(data.diff_vqa, studies, bad)
        questions = read_questions(data.diff_vqa, studies, bad, scratch)
        columns = Columns(questions, studies)
        used = np.union1d(columns.main, columns.reference[columns.difference]).tolist()
        found, unusable = _look_at_images(studies, used, files, settings, bad)
        ok = whole(questions, columns, unusable, studies, bad)
        bad.verdict(questions.read)
        splits, shared = patients(columns, ok)
        keep, left_out = select(columns, studies, ok, settings, seed, splits, shared)
        if not keep.any():
            raise UserError(f"{questions.file}: no question is left of {questions.read} ({left_out or bad.kinds})")
        _write_studies(folder / "studies.jsonl", studies, found, splits)
        _copy_lines(scratch, folder / "questions.jsonl", keep)
        _copy_lines(scratch, folder / "left_out.jsonl", ok & ~keep)
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


def _look_at_images(
    studies: Studies, used: Iterable[int], files: ImageFiles, settings: Prepare, bad: Rejections
) -> tuple[dict[int, tuple[str, str]], set[int]]:
    """The image file (kind, path) of each usable study, and the positions of those that are not; named in `bad`."""
    if settings.images == "read":
        from lumen_hpc.data.images import check

    def look(at: int) -> tuple[str, str] | str:
        ids = studies.subject[at], studies.study[at], studies.dicom[at]
        if settings.images == "trust":
            return files.candidates(*ids)[0]
        try:
            kind, path = files.find(*ids)
            if settings.images == "read":
                check(path)
        except UserError as fault:
            return str(fault)
        return kind, path

    found: dict[int, tuple[str, str]] = {}
    unusable: set[int] = set()
    with ThreadPoolExecutor(settings.image_threads) as pool:
        for part in _parts(used):
            for at, seen in zip(part, pool.map(look, part), strict=True):
                place, study = studies.place(at), studies.study[at]
                if studies.day[at] < 0:
                    reason = f"study {study}: StudyDate {studies.date[at]!r} is not a date (YYYYMMDD)"
                    bad(place, "study without date", reason, study_id=study)
                elif isinstance(seen, str):
                    bad(place, "bad image", f"study {study}: {seen}", study_id=study, dicom_id=studies.dicom[at])
                else:
                    found[at] = seen
                    continue
                unusable.add(at)
    return found, unusable


def _parts(items: Iterable[int], size: int = 4096) -> Iterator[list[int]]:
    """Lists of at most `size`: a pool holds a future for everything it is given at once."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def _write_studies(path: Path, studies: Studies, found: dict[int, tuple[str, str]], splits: dict[int, int]) -> None:
    """One row a usable study, in the order of the metadata."""
    with writing(path) as out:
        for at, (_, image) in sorted(found.items()):
            row = {
                "subject_id": studies.subject[at],
                "study_id": studies.study[at],
                "dicom_id": studies.dicom[at],
                "image": image,
                "view": studies.view[at],
                "taken_at": studies.taken_at(at),
                "split": SPLITS[splits[studies.subject[at]]],
            }
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _copy_lines(scratch: IO[bytes], path: Path, rows: np.ndarray) -> None:
    scratch.seek(0)
    with writing(path) as out:
        out.writelines(compress(scratch, rows.tolist()))


def _same_day(studies: Studies, columns: Columns, keep: np.ndarray) -> list[int]:
    """For each kept 0-day pair: +1 if the main study was the later by StudyTime, -1 the earlier, 0 unknown."""
    pairs = np.flatnonzero(keep & columns.difference & (columns.days == 0)).tolist()
    return [same_day_order(studies, int(columns.main[at]), int(columns.reference[at])) for at in pairs]


def _study_counts(studies: Studies, found: dict[int, tuple[str, str]], agreement: dict[str, int]) -> dict:
    """Studies and images, which file serves them, and whose StudyTime is missing or no clock time."""
    untimed = [at for at in sorted(found) if clock(studies.time[at]) is None]
    missing = sum(not studies.time[at].strip() for at in untimed)
    named = [
        {"study_id": studies.study[at], "StudyTime": studies.time[at]} for at in untimed if studies.time[at].strip()
    ]
    return {
        "in_metadata": counting.beside(len(studies), counting.MIMIC_CXR["studies"]),
        "images_in_metadata": counting.beside(studies.images, counting.MIMIC_CXR["images"]),
        "asked_about": len(found),
        "image_files": dict(Counter(kind for kind, _ in found.values())),
        "images_not_frontal": sum(not studies.frontal[at] for at in found),
        "without_time": missing,
        "impossible_time": {"count": len(named), "first": named[:NAMED]},
        "mimic_all": agreement,
    }


def _mimic_splits(studies: Studies, columns: Columns, keep: np.ndarray) -> dict[str, int]:
    """Where MIMIC-CXR's own split has the test images: models trained on its train part have seen those."""
    images = np.unique(columns.main[keep & (columns.split == SPLITS.index("test"))])
    counts = np.bincount(np.frombuffer(studies.mimic_split, np.uint8)[images], minlength=len(MIMIC_SPLITS)).tolist()
    return {name or "not listed": count for name, count in zip(MIMIC_SPLITS, counts, strict=True)}
