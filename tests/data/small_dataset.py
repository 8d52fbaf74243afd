"""A small dataset in the official layout, written row by row so that a test can break any one thing in it."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

from PIL import Image

from lumen_hpc.config.data_schema import Data, Prepare
from lumen_hpc.data.prepare import prepare

METADATA = "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv"
SPLIT = "mimic-cxr-jpg/mimic-cxr-2.0.0-split.csv"
QUESTIONS = "medical-diff-vqa/mimic_pair_questions.csv"
MIMIC_ALL = "medical-diff-vqa/mimic_all.csv"

# (subject, study, dicom, view code, StudyDate, StudyTime, the questions' split)
STUDIES = [
    (10000001, 50000011, "aa11", "postero-anterior", "21500101", "93015.500", "train"),
    (10000001, 50000012, "aa12", "antero-posterior", "21500301", "86357.000", "train"),
    (10000002, 50000021, "bb21", "postero-anterior", "21600229", "5.000", "val"),
    (10000002, 50000022, "bb22", "postero-anterior", "21600310", "", "val"),
    (10000003, 50000031, "cc31", "postero-anterior", "21701231", "120000.000", "test"),
    (10000003, 50000032, "cc32", "postero-anterior", "21710101", "120000.000", "test"),
    (10000003, 50000033, "cc33", "postero-anterior", "21720101", "120000.000", "test"),
]
NEW = "the main image has an additional finding of edema than the reference image. "
CHANGED = "what has changed compared to the reference image?"


class Dataset:
    """Rows of the four tables, to be changed before `write`; `run` writes them and prepares a run from them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.tables: dict[str, list[list]] = {
            METADATA: [["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition",
                        "Rows", "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning",
                        "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning"]],
            SPLIT: [["dicom_id", "study_id", "subject_id", "split"]],
            MIMIC_ALL: [["subject_id", "study_id", "dicom_id", "view", "split", "study_date", "study_order"]],
            QUESTIONS: [["study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split"]],
        }  # fmt: skip
        for subject, study, dicom, view, date, time, split in STUDIES:
            official = "validate" if split == "val" else split
            self.tables[METADATA].append([dicom, subject, study, "", "PA", 8, 8, date, time, "", view, "Erect"])
            self.tables[SPLIT].append([dicom, study, subject, official])
            self.tables[MIMIC_ALL].append([subject, study, dicom, view, official, date, study % 10])
            self.ask(study, "", "presence", "is there evidence of edema in this image?", "yes")
        for main, reference in ((50000012, 50000011), (50000022, 50000021), (50000032, 50000031), (50000033, 50000032)):
            self.ask(main, reference, "difference", CHANGED, NEW)

    def ask(self, study: int, reference: int | str, type: str, question: str, answer: str) -> None:
        subject, split = next((s[0], s[-1]) for s in STUDIES if s[1] == study)
        self.tables[QUESTIONS].append([study, subject, reference, type, question, answer, split])

    def image(self, study: int) -> Path:
        subject, dicom = next((s[0], s[2]) for s in STUDIES if s[1] == study)
        return self.folder / f"mimic-cxr-jpg/files/p10/p{subject}/s{study}/{dicom}.jpg"

    def write(self, gzipped: bool = False) -> Dataset:
        for name, rows in self.tables.items():
            path = self.folder / (name + ".gz" if gzipped else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with (gzip.open if gzipped else open)(path, "wt", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(rows)
        for _, study, *_ in STUDIES:
            self.image(study).parent.mkdir(parents=True, exist_ok=True)
            image = Image.linear_gradient("L").resize((8, 8))
            image.paste(study % 100 * 7, (0, 0, 4, 4))  # no picture is another study's
            image.save(self.image(study))
        return self

    @property
    def data(self) -> Data:
        return Data(
            source="mimic",
            mimic_cxr=str(self.folder / "mimic-cxr-jpg"),
            diff_vqa=str(self.folder / "medical-diff-vqa"),
        )

    @property
    def out(self) -> Path:
        return self.folder / "prepare"

    def run(self, data: Data | None = None, seed: int = 0, **settings) -> dict:
        return prepare(data or self.data, Prepare(**settings), seed, self.out)
