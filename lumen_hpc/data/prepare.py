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
from hashlib import blake2b
from itertools import chain, islice
from math import isnan
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
import orjson

from lumen_hpc.config.data_schema import Data, Prepare
from lumen_hpc.data.counts import MIMIC_CXR, interval_counts, read_counts, release, split_counts, with_published
from lumen_hpc.data.demographics import UNKNOWN, Person, people
from lumen_hpc.data.mimic_cxr import MIMIC_SPLITS, ImageFiles, Studies, compare_mimic_all, read_studies
from lumen_hpc.data.questions import SPLITS, read_questions
from lumen_hpc.data.rejections import Rejections
from lumen_hpc.data.selection import REPEAT, Columns, distinct, patient_splits, repeats, select, usable
from lumen_hpc.data.study_times import moments
from lumen_hpc.errors import FailedMount, UserError
from lumen_hpc.files import atomic

MAX_EXAMPLES = 20
"""Examples of a kind that counts.json names, at most."""


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
        rejections = stack.enter_context(Rejections(folder / "rejected.jsonl", settings.on_bad, settings.max_bad))
        scratch = cast(BinaryIO, stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=1 << 20)))
        with _collector_paused():
            studies = read_studies(data.mimic_cxr, rejections)
            mimic_all = compare_mimic_all(data.diff_vqa, studies, rejections)
            reorder = settings.reversed_pairs == "reorder"
            questions = read_questions(data.diff_vqa, studies, rejections, scratch, reorder=reorder)
        columns = Columns(questions, studies)
        needed_studies = _studies_of(columns, np.ones(len(questions), bool))
        images = _check_images(studies, needed_studies, files, settings, rejections)
        persons = (
            people(data.mimic_iv, set(studies.subject[needed_studies].tolist()), rejections) if data.mimic_iv else {}
        )
        usable_rows = usable(questions, columns, images.kinds == UNUSABLE, studies, rejections)
        lines = _Lines(scratch, columns.bytes)
        repeated_rows = repeats(questions, columns, usable_rows, lambda row: orjson.loads(lines[row]), rejections)
        rejections.verdict(questions.read)
        splits, shared_patients = patient_splits(columns, usable_rows)
        kept, left_out = select(columns, studies, usable_rows, settings, seed, splits, shared_patients, repeated_rows)
        if not kept.any():
            first_fault = f"; {rejections.first}" if rejections.first else ""
            raise UserError(f"{questions.file}: of {questions.read} questions, none is usable{first_fault}")
        used_studies = _studies_of(columns, usable_rows)
        untimed_studies = _write_studies(
            folder / "studies.jsonl", studies, files, used_studies, images, splits, persons
        )
        lines.copy(folder / "questions.jsonl", kept)
        lines.copy(folder / "left_out.jsonl", usable_rows & ~kept)
    counts = {
        "seed": seed,
        "questions_file": questions.file,
        "read": questions.read,
        "kept": int(kept.sum()),
        "left_out": left_out,
        "rejected": {"questions": rejections.questions, "rows_by_kind": dict(rejections.kinds)},
        "file": read_counts(columns, usable_rows),
        "release": release(columns, usable_rows, repeated_rows[REPEAT]),
        "splits": {split: split_counts(columns, kept, split) for split in SPLITS},
        "intervals": interval_counts(columns, kept, _same_day(studies, columns, kept)),
        "studies": _study_counts(studies, files, used_studies, images, untimed_studies, mimic_all)
        | {
            "with_sex_and_age": sum(
                None not in persons.get(subject, UNKNOWN) for subject in studies.subject[used_studies].tolist()
            )
        },
        "patients_in_two_splits": len(shared_patients),
        "images_in_two_splits": _images_in_two_splits(studies, used_studies, images, splits),
        "test_images_in_mimic_split": _mimic_splits(studies, columns, kept),
    }
    with atomic(folder / "counts.json") as out:
        out.write(orjson.dumps(counts, option=orjson.OPT_INDENT_2))
    return counts


def _studies_of(columns: Columns, rows: np.ndarray) -> np.ndarray:
    """Positions of the main and reference studies of these questions, in order."""
    return np.union1d(distinct(columns.main[rows]), distinct(columns.reference[rows & columns.difference]))


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Turns garbage collection off: rows form no cycles, and a collection walks all studies (half of the time)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


UNUSABLE = -1


class _Images:
    """The image of each study, by position."""

    def __init__(self, studies: Studies) -> None:
        self.kinds: np.ndarray = np.zeros(len(studies), np.int8)
        """int8: index of its file in `files.kinds`; UNUSABLE for a rejected study, without date or image."""
        self.sizes: np.ndarray = np.zeros((len(studies), 2), np.int32)
        """int32 [studies, 2]: width and height [px]; 0 where the file was not read."""
        self.identities: np.ndarray = np.zeros(len(studies), np.int64)
        """int64: equal for two studies with the same pixels, or the same file where pixels are not read; 0 unknown."""
        self.contents: np.ndarray = np.zeros(len(studies), np.int64)
        """int64: another one where an image was replaced: its pixels, or the file's size where they are not read."""
        self.warnings: Counter[str] = Counter()


def _check_images(
    studies: Studies, needed_studies: np.ndarray, files: ImageFiles, settings: Prepare, rejections: Rejections
) -> _Images:
    """Inspects the images of the studies that questions are about, as far as `prepare.images` says."""
    images = _Images(studies)
    kinds = images.kinds
    is_dated = studies.day[needed_studies] > 0
    undated_fault = ("study without date", "StudyDate is missing or not a date (YYYYMMDD)")
    faults = dict.fromkeys(needed_studies[~is_dated].tolist(), undated_fault)
    if settings.images != "trust":
        identities = images.identities
        for inspection in _inspections(studies, needed_studies[is_dated].tolist(), files, settings):
            position = inspection.position
            kinds[position], images.sizes[position] = inspection.kind, inspection.size
            identities[position], images.contents[position] = inspection.identity, inspection.content
            if inspection.warning:
                images.warnings[inspection.warning] += 1
            if inspection.fault:
                faults[inspection.position] = ("image missing or broken", inspection.fault)
        _, study_counts = np.unique(identities[identities != 0], return_counts=True)
        if shared_pictures := int(study_counts[study_counts > 1].sum()):
            images.warnings["the picture is another study's too (a copy or a link)"] = shared_pictures
        if files.kinds[0] == "dicom" and len(needed_studies) and (kinds[needed_studies] > 0).all():
            first_path = files.path(0, *studies.ids(int(needed_studies[0])))
            raise UserError(f"data.prefer=dicom, but no study asked about has a DICOM; the first would be {first_path}")
    for position, (category, fault) in sorted(faults.items()):
        study = int(studies.study[position])
        rejections(
            studies.place(position),
            category,
            f"study {study}: {fault}",
            study_id=study,
            dicom_id=studies.dicom[position],
        )
        kinds[position] = UNUSABLE
    return images


class _Inspection(NamedTuple):
    """What an inspection says about one image."""

    position: int
    """Position of its study."""
    kind: int = UNUSABLE
    """Index in `files.kinds`."""
    identity: int = 0
    """Equal for two copies or two names of one picture; 0 without a file."""
    content: int = 0
    """Of its pixels, or the file's size."""
    size: tuple[int, int] = (0, 0)
    warning: str = ""
    fault: str = ""


def _inspections(studies: Studies, positions: list[int], files: ImageFiles, settings: Prepare) -> Iterator[_Inspection]:
    """The image of each study, inspected by threads, in order."""
    from lumen_hpc.data.images import check, check_header

    inspector = {"read": check, "header": check_header}.get(settings.images)

    def inspect(position: int) -> _Inspection:
        ids = studies.ids(position)
        try:
            kind = files.find(*ids)
            path = files.path(kind, *ids)
            details = inspector(path) if inspector else None
            status = os.stat(path)
        except FailedMount:  # with on_bad=skip, studies would be left out that are there
            raise
        except (UserError, OSError) as fault:
            return _Inspection(position, fault=str(fault))
        identity = hash((status.st_dev, status.st_ino)) if status.st_ino else 0  # some mounts number no file
        if not details:
            return _Inspection(position, kind, identity, status.st_size)
        identity, content = details.digest or identity, details.digest or status.st_size
        return _Inspection(position, kind, identity, content, details.size, details.warning)

    def inspect_batch(positions: list[int]) -> list[_Inspection]:
        return list(map(inspect, positions))

    with ThreadPoolExecutor(settings.image_threads) as pool:
        batches = (positions[start : start + 64] for start in range(0, len(positions), 64))
        # A pool queues all of its input at once, so it gets a few batches at a time.
        while batch_group := list(islice(batches, settings.image_threads)):
            yield from chain.from_iterable(pool.map(inspect_batch, batch_group))


def _write_studies(
    path: Path, studies: Studies, files: ImageFiles, used_studies: np.ndarray, images: _Images, splits: dict[int, int],
    persons: Mapping[int, Person],
) -> list[int]:  # fmt: skip
    """Writes one row per usable study, in the order of the metadata; returns the positions of those without a time."""
    untimed_studies = []
    with atomic(path) as out:
        columns = (
            used_studies,
            studies.subject[used_studies],
            studies.study[used_studies],
            images.kinds[used_studies],
            images.sizes[used_studies],
        )
        times = moments(studies.day[used_studies], studies.time[used_studies])
        for position, subject, study, kind, size, taken_at in zip(*(c.tolist() for c in columns), times, strict=True):
            dicom, person = studies.dicom[position], persons.get(subject, UNKNOWN)
            if not isinstance(taken_at, datetime):
                untimed_studies.append(position)
            row = {
                "subject_id": subject,
                "study_id": study,
                "dicom_id": dicom,
                "image": files.path(kind, subject, study, dicom),
                "size": size if size[0] else None,
                "view": studies.view[position],
                "taken_at": taken_at,
                "split": SPLITS[splits[subject]],
                "sex": person.sex,
                "age": person.age(taken_at.year),
            }
            out.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
    return untimed_studies


class _Lines:
    """The lines of the scratch file by position."""

    def __init__(self, scratch: BinaryIO, lengths: np.ndarray) -> None:
        scratch.flush()
        self._file = scratch
        self._offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def __getitem__(self, index: int) -> bytes:
        start, stop = self._offsets[index : index + 2].tolist()
        self._file.seek(start)
        return self._file.read(stop - start)

    def copy(self, path: Path, rows: np.ndarray) -> None:
        """Copies the lines for which `rows` is true, run by run."""
        edges = np.flatnonzero(np.diff(rows.astype(np.int8), prepend=0, append=0))
        with atomic(path) as out:
            for start, stop in self._offsets[edges].reshape(-1, 2).tolist():
                while start < stop:  # by the kernel, which need not copy them here and back
                    start += os.sendfile(out.fileno(), self._file.fileno(), start, stop - start)


def _same_day(studies: Studies, columns: Columns, kept: np.ndarray) -> np.ndarray:
    """For each kept 0-day pair: +1 if the main study is the later by StudyTime, -1 the earlier, 0 unknown."""
    pairs = kept & columns.difference & (columns.days == 0)
    main, reference = studies.time[columns.main[pairs]], studies.time[columns.reference[pairs]]
    return (main > reference).astype(np.int8) - (main < reference)


def _study_counts(
    studies: Studies,
    files: ImageFiles,
    used_studies: np.ndarray,
    images: _Images,
    untimed_studies: list[int],
    mimic_all: dict[str, int],
) -> dict:
    """Counts of studies and images, of the files that serve them, and of missing or impossible StudyTimes."""
    impossible_times = [position for position in untimed_studies if not isnan(studies.time[position])]
    examples = [
        {"study_id": int(studies.study[position]), "StudyTime": float(studies.time[position])}
        for position in impossible_times[:MAX_EXAMPLES]
    ]
    sizes = images.sizes[used_studies]
    known_sizes = sizes[sizes[:, 0] > 0]
    file_counts = np.bincount(images.kinds[used_studies], minlength=len(files.kinds)).tolist()
    return {
        "in_metadata": with_published(len(studies), MIMIC_CXR["studies"]),
        "images_in_metadata": with_published(studies.images, MIMIC_CXR["images"]),
        "with_two_dates": studies.two_dates,
        "asked_about": len(used_studies),
        "image_files": {kind: count for kind, count in zip(files.kinds, file_counts, strict=True) if count},
        "median_size": np.median(known_sizes, axis=0).astype(int).tolist() if len(known_sizes) else None,
        "image_contents": blake2b(images.contents[used_studies].tobytes(), digest_size=8).hexdigest(),
        "image_warnings": dict(images.warnings),
        "images_not_frontal": int((~studies.frontal[used_studies]).sum()),
        "without_time": len(untimed_studies) - len(impossible_times),
        "impossible_time": {"count": len(impossible_times), "first": examples},
        "mimic_all": mimic_all,
    }


def _images_in_two_splits(
    studies: Studies, used_studies: np.ndarray, images: _Images, splits: dict[int, int]
) -> dict[str, Any]:
    """Studies whose picture is a study's of another split too: a model may be tested on what it was trained on."""
    studies_by_picture: dict[int, list[int]] = {}
    for position, identity in zip(used_studies.tolist(), images.identities[used_studies].tolist(), strict=True):
        if identity:
            studies_by_picture.setdefault(identity, []).append(position)
    shared = [
        position
        for positions in studies_by_picture.values()
        if len({splits[int(studies.subject[position])] for position in positions}) > 1
        for position in positions
    ]
    return {"count": len(shared), "first": [int(studies.study[position]) for position in shared[:MAX_EXAMPLES]]}


def _mimic_splits(studies: Studies, columns: Columns, kept: np.ndarray) -> dict[str, int]:
    """Test images by MIMIC-CXR's own split: models trained on its train part have seen those."""
    images = distinct(columns.main[kept & (columns.split == SPLITS.index("test"))])
    counts = np.bincount(studies.mimic_split[images], minlength=len(MIMIC_SPLITS)).tolist()
    return {name or "not listed": count for name, count in zip(MIMIC_SPLITS, counts, strict=True)}
