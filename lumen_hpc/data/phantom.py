"""Phantom patients in the official file layout: the stand-in for MIMIC-CXR in the demo and the tests.

A generated folder holds `mimic-cxr-jpg/` (JPGs, metadata and split), `mimic-cxr/` (some of them as DICOM),
`medical-diff-vqa/` (questions, studies, entities), `truth.jsonl` (the states behind each image) and, written
last, `phantom.json`. Everything downstream reads it like the real files. Patient k of a seed is the
same for any number of patients.
"""

from __future__ import annotations

import csv
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import orjson
from PIL import Image

from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.config.validate import check
from lumen_hpc.data import phantom_images as images
from lumen_hpc.data import phantom_questions as questions
from lumen_hpc.data import phantom_states as ps
from lumen_hpc.data.findings_line import LOOKS_FILE
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic, repeatable_text

CHEXPERT = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture",
            "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia",
            "Pneumothorax", "Support Devices")  # fmt: skip
_CHEXPERT_OF = {"pleural effusion": "Pleural Effusion", "nodule": "Lung Lesion"}
JPEG_QUALITY = 95
MARKER = "phantom.json"
"""Says which phantoms a folder holds: seed and settings."""


@dataclass(frozen=True, slots=True)
class Study:
    """One study of a phantom patient: its states, its image and its position in time."""

    subject_id: int
    study_id: int
    dicom_id: str
    split: str
    """train, val or test."""
    order: int
    """1 for the patient's first study."""
    day: int
    """Whole days since the patient's first study."""
    taken_at: datetime
    states: ps.States
    portable: bool
    pixels: np.ndarray
    """uint8 [size, size]."""


def patient(seed: int, number: int, settings: Phantom, split: str = "train") -> list[Study]:
    """Patient `number` of a seed: its studies in the order they were taken."""
    rng = np.random.default_rng([seed, number])
    anatomy, subject = images.draw_anatomy(rng), 10_000_000 + _scatter(seed, number)
    first = datetime(2110 + int(rng.integers(80)), 1, 1) + timedelta(days=int(rng.integers(365)))
    studies, day, states = [], 0, ps.draw_first(rng)
    for order in range(1, settings.studies + 1):
        if order > 1:
            days = ps.draw_days(rng)
            day, states = day + days, ps.draw_next(states, days, rng)
        exposure = images.draw_exposure(rng)
        pixels = images.render(states, anatomy, exposure, settings.size, rng)
        time_of_day = timedelta(seconds=int(rng.integers(86_400)))
        study_id = 50_000_000 + _scatter(seed + 1, number * settings.studies + order - 1)
        studies.append(Study(
            subject, study_id, _dicom_id(seed, study_id), split, order, day,
            first + timedelta(days=day) + time_of_day, states, exposure.portable, pixels,
        ))  # fmt: skip
    return studies


def patients(seed: int, settings: Phantom) -> Iterator[list[Study]]:
    """Every patient of a seed; the first go to train, then val, the last to test."""
    test = round(settings.patients * settings.test_fraction)
    val = round(settings.patients * settings.test_fraction / 2)
    for number in range(settings.patients):
        remaining = settings.patients - number
        split = "test" if remaining <= test else "val" if remaining <= test + val else "train"
        yield patient(seed, number, settings, split)


def write(folder: str | Path, settings: Phantom, seed: int, replace: bool = False) -> Path:
    """Generate the official layout under `folder`, unless it already holds exactly these phantoms; returns `folder`.

    `replace`: other phantoms there are removed first. Raises UserError for an invalid setting, or a folder that holds
    other phantoms.
    """
    folder = Path(folder)
    check(settings, "data.phantom.")
    identity = {"seed": seed, "format": 2, **asdict(settings)}
    marker = folder / MARKER
    if marker.exists():
        if orjson.loads(marker.read_bytes()) == identity:
            return folder
        if not replace:
            raise UserError(
                f"{folder} holds phantoms of other settings or another seed; remove it or name another folder"
            )
        marker.unlink()  # first: a folder that a kill leaves must not look complete
        shutil.rmtree(folder)
    with ExitStack() as stack:
        tables = _Tables(folder, stack)
        count = 0
        for studies in patients(seed, settings):
            tables.add_questions(studies, np.random.default_rng([seed, studies[0].subject_id]))
            for study in studies:
                count += 1
                _write_image(folder, study, dicom=bool(settings.dicom_every) and count % settings.dicom_every == 0)
                tables.add_study(study)
    with atomic(marker) as stream:
        stream.write(orjson.dumps(identity))
    return folder


class _Tables:
    """The text files of a generated folder, written row by row."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        jpg, vqa = folder / "mimic-cxr-jpg", folder / "medical-diff-vqa"
        for subfolder in (jpg / "files", folder / "mimic-cxr" / "files", vqa):
            subfolder.mkdir(parents=True, exist_ok=True)
        self._metadata = _csv_writer(stack, jpg / "mimic-cxr-2.0.0-metadata.csv.gz", (
            "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows",
            "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning",
            "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning"))  # fmt: skip
        self._split = _csv_writer(
            stack, jpg / "mimic-cxr-2.0.0-split.csv.gz", ("dicom_id", "study_id", "subject_id", "split")
        )
        self._studies = _csv_writer(
            stack,
            vqa / "mimic_all.csv",
            ("subject_id", "study_id", *CHEXPERT, "dicom_id", "view", "split", "study_date", "study_order"),
        )
        self._questions = _csv_writer(stack, vqa / "mimic_pair_questions.csv", (
            "study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split"))  # fmt: skip
        self._truth = stack.enter_context((folder / "truth.jsonl").open("wb"))
        self._entities = stack.enter_context((vqa / "all_diseases.json").open("wb"))
        self._entities.write(b"[")
        self._looks = stack.enter_context((vqa / LOOKS_FILE).open("wb"))
        stack.callback(self._entities.write, b"]\n")
        self._separator = b""

    def add_study(self, study: Study) -> None:
        position = "AP" if study.portable else "PA"
        view = "antero-posterior" if study.portable else "postero-anterior"
        date, size = study.taken_at.strftime("%Y%m%d"), study.pixels.shape[0]
        official = {"val": "validate"}.get(study.split, study.split)
        # As in MIMIC-CXR, StudyTime is a number: its leading zeros are lost.
        time = f"{int(study.taken_at.strftime('%H%M%S'))}.000"
        self._metadata.writerow((
            study.dicom_id, study.subject_id, study.study_id, "CHEST (PORTABLE AP)" if study.portable else "CHEST (PA)",
            position, size, size, date, time, "", view, "Recumbent" if study.portable else "Erect"))  # fmt: skip
        self._split.writerow((study.dicom_id, study.study_id, study.subject_id, official))
        self._studies.writerow(
            (
                study.subject_id,
                study.study_id,
                *_chexpert(study.states),
                study.dicom_id,
                view,
                official,
                date,
                study.order,
            )
        )
        self._truth.write(orjson.dumps(_truth(study)) + b"\n")
        self._entities.write(self._separator + orjson.dumps(_entity(study)))
        self._separator = b",\n"
        self._looks.write(orjson.dumps({"study_id": str(study.study_id), "looks": looks(study)}) + b"\n")

    def add_questions(self, studies: list[Study], rng: np.random.Generator) -> None:
        for study in studies:
            ids = (study.study_id, study.subject_id)
            for question in questions.diagnostic(study.states, study.portable, rng):
                self._questions.writerow((*ids, "", *question, study.split))
        for before, after in pairwise(studies):
            question = questions.difference(before.states, after.states)
            self._questions.writerow((after.study_id, after.subject_id, before.study_id, *question, after.split))


def _csv_writer(stack: ExitStack, path: Path, header: tuple[str, ...]):
    """A csv writer on `path`, gzipped if it ends in .gz."""
    writer = csv.writer(stack.enter_context(repeatable_text(path)), lineterminator="\n")
    writer.writerow(header)
    return writer


def _write_image(folder: Path, study: Study, dicom: bool) -> None:
    study_folder = Path("files", f"p{study.subject_id // 1_000_000}", f"p{study.subject_id}", f"s{study.study_id}")
    jpg = folder / "mimic-cxr-jpg" / study_folder
    jpg.mkdir(parents=True, exist_ok=True)
    Image.fromarray(study.pixels).save(jpg / f"{study.dicom_id}.jpg", quality=JPEG_QUALITY)
    if dicom:
        path = folder / "mimic-cxr" / study_folder / f"{study.dicom_id}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_dicom(path, study)


def _write_dicom(path: Path, study: Study) -> None:
    """Writes 12 bits, every other image inverted (MONOCHROME1), as detectors do."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    inverted = study.study_id % 2 == 0
    stored = np.round(study.pixels.astype(np.float64) * (4095 / 255)).astype(np.uint16)
    stored = 4095 - stored if inverted else stored
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    uid = f"2.25.{int(hashlib.blake2b(study.dicom_id.encode(), digest_size=12).hexdigest(), 16)}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = uid
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PatientID, dataset.StudyID = str(study.subject_id), str(study.study_id)
    dataset.StudyDate, dataset.StudyTime = study.taken_at.strftime("%Y%m%d"), study.taken_at.strftime("%H%M%S")
    dataset.Modality, dataset.ViewPosition = "DX", "AP" if study.portable else "PA"
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = stored.tobytes()
    dataset.save_as(path, enforce_file_format=True)


def _truth(study: Study) -> dict:
    return {
        "subject_id": study.subject_id, "study_id": study.study_id, "dicom_id": study.dicom_id, "split": study.split,
        "order": study.order, "day": study.day, "view": "AP" if study.portable else "PA",
        "findings": {name: state.record() for name, state in study.states.items() if state.present},
        "constants": {name: state.constant for name, state in study.states.items() if state.constant},
    }  # fmt: skip


def looks(study: Study) -> dict[str, str]:
    """What a study's image shows of the findings that a constant of the patient imitates (`phantom_states.look`)."""
    return {finding: ps.look(finding, study.states[finding]) for finding in ps.CONSTANTS}


def _entity(study: Study) -> dict:
    """The study's entry of all_diseases.json."""
    entities = {
        name: {
            "entity_name": name, "location": [state.where] if state.where else [],
            "type": [state.texture] if state.texture else [], "level": [state.level] if state.level else [],
            "post_location": [], "location2": [], "type2": [], "level2": [], "post_location2": [],
        }
        for name, state in study.states.items() if state.present
    }  # fmt: skip
    absent = [name for name, state in study.states.items() if not state.present]
    return {
        "study_id": str(study.study_id),
        "subject_id": str(study.subject_id),
        "entity": entities,
        "no_entity": absent,
    }


def _chexpert(states: ps.States) -> list[str]:
    """CheXpert's labels as its csv has them: 1.0 positive, empty unmentioned."""
    positive = {_CHEXPERT_OF.get(name, name.capitalize()) for name, state in states.items() if state.present}
    return ["1.0" if label in (positive or {"No Finding"}) else "" for label in CHEXPERT]


def _scatter(seed: int, number: int) -> int:
    """`number` mapped into 0..9,999,990 without repeats, so that ids carry no order."""
    return (number * 7_368_787 + seed * 104_729 + 1_299_709) % 9_999_991


def _dicom_id(seed: int, study_id: int) -> str:
    name = hashlib.blake2b(f"{seed}/{study_id}".encode(), digest_size=20).hexdigest()
    return "-".join(name[at : at + 8] for at in range(0, 40, 8))
