"""From the official files to the studies and questions of a run (paper, section 2.1).

One pass over the questions writes every readable one to a scratch file and keeps some forty bytes of numbers each;
studies, splits and settings then select which of its lines are copied. Nothing is parsed twice, and memory holds no
text.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import chain, islice
from math import isnan
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np
import orjson

from lumen_hpc.config.data_schema import Data, Prepare
from lumen_hpc.data import counts as counting
from lumen_hpc.data.demographics import UNKNOWN, Person, people
from lumen_hpc.data.mimic_cxr import MIMIC_SPLITS, ImageFiles, Studies, compare_mimic_all, read_studies
from lumen_hpc.data.questions import SPLITS, read_questions
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.selection import REPEAT, Columns, distinct, patients, repeats, select, usable
from lumen_hpc.data.study_times import moments
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic

NAMED = 20
"""How many of a kind counts.json names."""


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
            raise UserError(f"data=mimic needs {setting}=FOLDER; docs/data.md describes it")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = ImageFiles(data)
    with ExitStack() as stack:
        bad = stack.enter_context(Rejections(folder / "rejected.jsonl", settings.on_bad, settings.max_bad))
        scratch = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=1 << 20)))
        with _collector_paused():
            studies = read_studies(data.mimic_cxr, bad)
            agreement = compare_mimic_all(data.diff_vqa, studies, bad)
            reorder = settings.reversed_pairs == "reorder"
            questions = read_questions(data.diff_vqa, studies, bad, scratch, reorder=reorder)
        columns = Columns(questions, studies)
        needed = _studies_of(columns, np.ones(len(questions), bool))
        images = _check_images(studies, needed, files, settings, bad)
        persons = people(data.mimic_iv, set(studies.subject[needed].tolist()), bad) if data.mimic_iv else {}
        ok = usable(questions, columns, images.kinds == UNUSABLE, studies, bad)
        lines = _Lines(scratch, columns.bytes)
        repeated = repeats(questions, columns, ok, lambda at: orjson.loads(lines[at]), bad)
        bad.verdict(questions.read)
        splits, shared = patients(columns, ok)
        keep, left_out = select(columns, studies, ok, settings, seed, splits, shared, repeated)
        if not keep.any():
            cause = f"; {bad.first}" if bad.first else ""
            raise UserError(f"{questions.file}: of {questions.read} questions, none is usable{cause}")
        used = _studies_of(columns, ok)
        untimed = _write_studies(folder / "studies.jsonl", studies, files, used, images, splits, persons)
        lines.copy(folder / "questions.jsonl", keep)
        lines.copy(folder / "left_out.jsonl", ok & ~keep)
    counts = {
        "seed": seed,
        "questions_file": questions.file,
        "read": questions.read,
        "kept": int(keep.sum()),
        "left_out": left_out,
        "rejected": {"questions": bad.questions, "rows_by_kind": dict(bad.kinds)},
        "file": counting.read_counts(columns, ok),
        "release": counting.release(columns, ok, repeated[REPEAT]),
        "splits": {split: counting.split_counts(columns, keep, split) for split in SPLITS},
        "intervals": counting.interval_counts(columns, keep, _same_day(studies, columns, keep)),
        "studies": _study_counts(studies, files, used, images, untimed, agreement)
        | {"with_sex_and_age": sum(None not in persons.get(at, UNKNOWN) for at in studies.subject[used].tolist())},
        "patients_in_two_splits": len(shared),
        "test_images_in_mimic_split": _mimic_splits(studies, columns, keep),
    }
    with atomic(folder / "counts.json") as out:
        out.write(orjson.dumps(counts, option=orjson.OPT_INDENT_2))
    return counts


def _studies_of(columns: Columns, rows: np.ndarray) -> np.ndarray:
    """Positions of the main and reference studies of these questions, in order."""
    return np.union1d(distinct(columns.main[rows]), distinct(columns.reference[rows & columns.difference]))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Garbage collection off: rows form no cycles, and each collection would walk all studies (half the time)."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


UNUSABLE = -1


class _Images:
    """The image of each study as it was found, by position."""

    def __init__(self, studies: Studies) -> None:
        self.kinds: np.ndarray = np.zeros(len(studies), np.int8)
        """int8: index in `files.kinds` of its file; UNUSABLE, with a row in the rejections, without date or image."""
        self.sizes: np.ndarray = np.zeros((len(studies), 2), np.int32)
        """int32 [studies, 2]: width and height [px]; 0 where the file was not read."""
        self.warnings: Counter[str] = Counter()


def _check_images(
    studies: Studies, needed: np.ndarray, files: ImageFiles, settings: Prepare, bad: Rejections
) -> _Images:
    """Looks at the images of the studies that questions are about, as far as `prepare.images` says."""
    images = _Images(studies)
    kinds = images.kinds
    dated = studies.day[needed] > 0
    undated = ("study without date", "StudyDate is missing or not a date (YYYYMMDD)")
    faults = dict.fromkeys(needed[~dated].tolist(), undated)
    if settings.images != "trust":
        identities: np.ndarray = np.zeros(len(studies), np.int64)
        for found in _inspected(studies, needed[dated].tolist(), files, settings):
            kinds[found.at], images.sizes[found.at], identities[found.at] = found.kind, found.size, found.identity
            if found.warning:
                images.warnings[found.warning] += 1
            if found.fault:
                faults[found.at] = ("image missing or broken", found.fault)
        _, studies_of_a_file = np.unique(identities[identities != 0], return_counts=True)
        if shared := int(studies_of_a_file[studies_of_a_file > 1].sum()):
            images.warnings["the file is another study's too (a hard or symbolic link)"] = shared
        if files.kinds[0] == "dicom" and len(needed) and (kinds[needed] > 0).all():
            tried = files.path(0, *studies.ids(int(needed[0])))
            raise UserError(f"data.prefer=dicom, but no study asked about has a DICOM; the first would be {tried}")
    for at, (category, fault) in sorted(faults.items()):
        study = int(studies.study[at])
        bad(studies.place(at), category, f"study {study}: {fault}", study_id=study, dicom_id=studies.dicom[at])
        kinds[at] = UNUSABLE
    return images


class _Found(NamedTuple):
    """An image as it was inspected."""

    at: int
    """Position of its study."""
    kind: int = UNUSABLE
    """Index in `files.kinds`."""
    identity: int = 0
    """Equal for two names of one file; 0 where there is none."""
    size: tuple[int, int] = (0, 0)
    warning: str = ""
    fault: str = ""


def _inspected(studies: Studies, needed: list[int], files: ImageFiles, settings: Prepare) -> Iterator[_Found]:
    """The image of each study, inspected by threads, in order."""
    from lumen_hpc.data.images import check, check_header

    look = {"read": check, "header": check_header}.get(settings.images)

    def inspect(at: int) -> _Found:
        ids = studies.ids(at)
        try:
            kind = files.find(*ids)
            path = files.path(kind, *ids)
            seen = look(path) if look else None
            file = os.stat(path)
        except (UserError, OSError) as fault:
            return _Found(at, fault=str(fault))
        identity = hash((file.st_dev, file.st_ino))
        return _Found(at, kind, identity, seen.size, seen.warning) if seen else _Found(at, kind, identity)

    def inspect_all(positions: list[int]) -> list[_Found]:
        return list(map(inspect, positions))

    with ThreadPoolExecutor(settings.image_threads) as pool:
        batches = (needed[start : start + 64] for start in range(0, len(needed), 64))
        # A pool queues everything at once, so it gets a few batches at a time.
        while some := list(islice(batches, settings.image_threads)):
            yield from chain.from_iterable(pool.map(inspect_all, some))


def _write_studies(
    path: Path, studies: Studies, files: ImageFiles, used: np.ndarray, images: _Images, splits: dict[int, int],
    persons: Mapping[int, Person],
) -> list[int]:  # fmt: skip
    """One row a usable study, in the order of the metadata; returns the positions of those without a clock time."""
    untimed = []
    with atomic(path) as out:
        columns = (used, studies.subject[used], studies.study[used], images.kinds[used], images.sizes[used])
        taken = moments(studies.day[used], studies.time[used])
        for at, subject, study, kind, size, taken_at in zip(*(c.tolist() for c in columns), taken, strict=True):
            dicom, person = studies.dicom[at], persons.get(subject, UNKNOWN)
            if not isinstance(taken_at, datetime):
                untimed.append(at)
            row = {
                "subject_id": subject,
                "study_id": study,
                "dicom_id": dicom,
                "image": files.path(kind, subject, study, dicom),
                "size": size if size[0] else None,
                "view": studies.view[at],
                "taken_at": taken_at,
                "split": SPLITS[splits[subject]],
                "sex": person.sex,
                "age": person.age(taken_at.year),
            }
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return untimed


class _Lines:
    """The lines of the scratch file by position."""

    def __init__(self, scratch: BinaryIO, lengths: np.ndarray) -> None:
        scratch.flush()
        self._scratch = scratch
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __getitem__(self, at: int) -> bytes:
        start, stop = self._offsets[at : at + 2].tolist()
        self._scratch.seek(start)
        return self._scratch.read(stop - start)

    def copy(self, path: Path, rows: np.ndarray) -> None:
        """Copies the lines for which `rows` is true, run by run."""
        edges = np.flatnonzero(np.diff(rows.astype(np.int8), prepend=0, append=0))
        with atomic(path) as out:
            for start, stop in self._offsets[edges].reshape(-1, 2).tolist():
                while start < stop:  # by the kernel, which need not copy them here and back
                    start += os.sendfile(out.fileno(), self._scratch.fileno(), start, stop - start)


def _same_day(studies: Studies, columns: Columns, keep: np.ndarray) -> np.ndarray:
    """For each kept 0-day pair: +1 if the main study is the later by StudyTime, -1 the earlier, 0 unknown."""
    pairs = keep & columns.difference & (columns.days == 0)
    return studies.same_day_order(columns.main[pairs], columns.reference[pairs])


def _study_counts(
    studies: Studies,
    files: ImageFiles,
    used: np.ndarray,
    images: _Images,
    untimed: list[int],
    agreement: dict[str, int],
) -> dict:
    """Counts of studies and images, of the files that serve them, and of missing or impossible StudyTimes."""
    impossible = [at for at in untimed if not isnan(studies.time[at])]
    first = [{"study_id": int(studies.study[at]), "StudyTime": float(studies.time[at])} for at in impossible[:NAMED]]
    served = np.bincount(images.kinds[used], minlength=len(files.kinds)).tolist()
    return {
        "in_metadata": counting.beside(len(studies), counting.MIMIC_CXR["studies"]),
        "images_in_metadata": counting.beside(studies.images, counting.MIMIC_CXR["images"]),
        "with_two_dates": studies.two_dates,
        "asked_about": len(used),
        "image_files": {kind: count for kind, count in zip(files.kinds, served, strict=True) if count},
        "image_warnings": dict(images.warnings),
        "images_not_frontal": int((~studies.frontal[used]).sum()),
        "without_time": len(untimed) - len(impossible),
        "impossible_time": {"count": len(impossible), "first": first},
        "mimic_all": agreement,
    }


def _mimic_splits(studies: Studies, columns: Columns, keep: np.ndarray) -> dict[str, int]:
    """Test images by MIMIC-CXR's own split: models trained on its train part have seen those."""
    images = distinct(columns.main[keep & (columns.split == SPLITS.index("test"))])
    counts = np.bincount(studies.mimic_split[images], minlength=len(MIMIC_SPLITS)).tolist()
    return {name or "not listed": count for name, count in zip(MIMIC_SPLITS, counts, strict=True)}
