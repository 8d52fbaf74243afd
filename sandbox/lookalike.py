"""A full-size stand-in for Medical-Diff-VQA, built from real follow-up findings.

    python -m sandbox.lookalike FOLDER [QUESTIONS] [1.0.0|1.0.1] [images]

Patients, the order of their radiographs, views and findings are the NIH ChestX-ray14 table's, which the
torchxrayvision package ships (112,120 images of 30,805 patients). Dates, sides, levels and types are not in that
table: they are drawn. Writes `mimic-cxr-jpg/` (metadata, split) and `medical-diff-vqa/` (questions, mimic_all) in the
official form, with the published shares of question types (700,703 questions). With a release, the questions have its
oddities (docs/data.md, "The two releases"). With `images`, every study's image is there: a small ramp of greys.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import random
import re
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import date, timedelta
from functools import cache, partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lumen_hpc.data.diff_vqa import Change, LevelChange, render_difference, render_findings
from sandbox.usage import explain

QUESTIONS = 700_703
FINDINGS = {
    "Atelectasis": "atelectasis", "Cardiomegaly": "cardiomegaly", "Consolidation": "consolidation", "Edema": "edema",
    "Effusion": "pleural effusion", "Emphysema": "emphysema", "Fibrosis": "fibrosis", "Hernia": "hiatal hernia",
    "Infiltration": "lung opacity", "Mass": "lung mass", "Nodule": "lung nodule",
    "Pleural_Thickening": "pleural thickening", "Pneumonia": "pneumonia", "Pneumothorax": "pneumothorax",
}  # fmt: skip
LEVELS = ("minimal", "small", "mild", "mild to moderate", "moderate", "moderate to severe", "severe")
PLACES = ("left lower lung", "right lower lung", "left upper lung", "right middle lung", "bilateral", "left basilar")
KINDS = ("patchy", "linear", "interstitial", "acute", "chronic", "focal")
GAPS = (0, 1, 1, 2, 3, 5, 7, 14, 30, 90, 180, 365, 730)


def patients() -> Iterator[tuple[str, list[dict]]]:
    """NIH patients with their studies in the order of follow-up: {"findings": set, "view": "PA"|"AP"}."""
    spec = importlib.util.find_spec("torchxrayvision")
    assert spec and spec.origin, "package torchxrayvision is not installed"
    table = Path(spec.origin).parent / "data" / "Data_Entry_2017_v2020.csv.gz"
    with gzip.open(table, "rt", newline="") as file:
        for patient, rows in groupby(csv.DictReader(file), itemgetter("Patient ID")):
            studies = sorted(rows, key=lambda row: int(row["Follow-up #"]))
            yield (
                patient,
                [
                    {
                        "findings": [FINDINGS[name] for name in study["Finding Labels"].split("|") if name in FINDINGS],
                        "view": study["View Position"],
                    }
                    for study in studies
                ],
            )


def write(
    folder: str | Path, questions: int = QUESTIONS, seed: int = 0, release: str = "", images: bool = False
) -> Path:
    """Writes the look-alike under `folder`, whole patients until `questions` rows are there, and returns `folder`.

    `release`: empty for ordered pairs without repeats, else 1.0.0 or 1.0.1 with its oddities. `images`: write them.
    """
    folder = Path(folder)
    rng, oddity_rng = random.Random(seed), random.Random(seed + 1)
    with ExitStack() as stack:
        table = {
            name: _writer(stack, folder / path, header)
            for name, (path, header) in {
                "metadata": ("mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz", METADATA),
                "split": ("mimic-cxr-jpg/mimic-cxr-2.0.0-split.csv.gz", SPLIT),
                "all": ("medical-diff-vqa/mimic_all.csv", MIMIC_ALL),
                "questions": ("medical-diff-vqa/mimic_pair_questions.csv", QUESTION),
            }.items()
        }
        (folder / "mimic-cxr-jpg" / "files").mkdir(exist_ok=True)
        written, study_id = 0, 50_000_000
        for number, (_, studies) in enumerate(patients()):
            subject, split = 10_000_000 + number, rng.choices(("train", "val", "test"), (8, 1, 1))[0]
            day = date(2110, 1, 1) + timedelta(days=rng.randrange(30_000))
            for order, study in enumerate(studies, 1):
                study_id += 1
                day += timedelta(days=rng.choice(GAPS) if order > 1 else 0)
                _describe(study, study_id, day, rng)
                _list(table, study, subject, split, order, rng, release)
                if images:
                    _draw(folder / "mimic-cxr-jpg" / "files", study, subject)
            rows = _questions(studies, subject, split, rng)
            for row in _with_oddities(rows, studies, release, oddity_rng) if release else rows:
                table["questions"].writerow(row)
                written += 1
                if written == questions:
                    return folder
    raise SystemExit(f"the NIH table gives {written} questions, {questions} were requested")


METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
SPLIT = ("dicom_id", "study_id", "subject_id", "split")
MIMIC_ALL = ("subject_id", "study_id", "dicom_id", "view", "split", "study_date", "study_order")
QUESTION = ("study_id", "subject_id", "ref_id", "question_type", "question", "answer", "split")
VIEWS = {"PA": "postero-anterior", "AP": "antero-posterior"}


def _describe(study: dict, study_id: int, day: date, rng: random.Random) -> None:
    """Draws what the NIH table lacks: study, date, levels and places."""
    study["study_id"], study["day"] = study_id, day.strftime("%Y%m%d")
    study["dicom"] = str(uuid.UUID(int=rng.getrandbits(128)))
    study["level"] = {name: rng.choice(LEVELS) for name in study["findings"]}
    study["place"] = {name: rng.choice(PLACES) for name in study["findings"]}


def _list(table: dict, study: dict, subject: int, split: str, order: int, rng: random.Random, release: str) -> None:
    """The rows of one study in the datasets' tables; two studies in three have a lateral image too."""
    official = "validate" if split == "val" else split
    time = f"{rng.randrange(24) * 10000 + rng.randrange(60) * 100 + rng.randrange(60)}.{rng.randrange(1000):03d}"
    view = VIEWS[study["view"]]
    images = [(study["dicom"], study["view"], view)]
    if rng.random() < 0.66:
        images.insert(rng.randrange(2), (str(uuid.UUID(int=rng.getrandbits(128))), "LATERAL", "lateral"))
    for dicom, position, code in images:
        table["metadata"].writerow(
            (
                dicom,
                subject,
                study["study_id"],
                "CHEST",
                position,
                3056,
                2544,
                study["day"],
                time,
                "CHEST",
                code,
                "Erect",
            )
        )
        table["split"].writerow((dicom, study["study_id"], subject, official))
    table["all"].writerow(
        (subject, study["study_id"], study["dicom"], view, official, DATES[release](study["day"]), order)
    )


def _draw(files: Path, study: dict, subject: int) -> None:
    path = files / f"p{subject // 1_000_000}" / f"p{subject}" / f"s{study['study_id']}" / f"{study['dicom']}.jpg"
    path.parent.mkdir(parents=True)
    path.write_bytes(_ramp())


@cache
def _ramp() -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.linear_gradient("L").resize((8, 8)).save(out, "JPEG")
    return out.getvalue()


DATES: dict[str, Callable[[str], str]] = {
    "": str,
    "1.0.0": lambda day: f"1970-01-01 00:00:00.0{day}",  # YYYYMMDD read as nanoseconds, as the official script does
    "1.0.1": lambda day: f"{day[:4]}-{day[4:6]}-{day[6:]}",
}
"""A release → how `mimic_all.csv` writes YYYYMMDD."""
REVERSED, IN_BOTH_ORDERS = 0.485, 0.11
"""Shares of the pairs of 1.0.0: the main study earlier than the reference; each of the two as main study once."""
FUSED = 300
"""One main study in so many has an answer with fused names, if it lists several."""


def _with_oddities(rows: Iterator[tuple], studies: list[dict], release: str, rng: random.Random) -> Iterator[tuple]:
    """The rows of one patient with the oddities of a release.

    1.0.0: reversed pairs, and pairs in both orders. 1.0.1: the reversed pairs exchanged, so that the latter stand
    there twice with the same facts in another order. Both: rows of other types carry a ref_id that means nothing, and
    some answers have fused names.
    """
    by_study = {study["study_id"]: study for study in studies}
    for main, subject, reference, type, *rest in rows:
        if type != "difference":
            yield main, subject, rng.choice(studies)["study_id"], type, *rest
            continue
        question, _, split = rest
        both = rng.random() < IN_BOTH_ORDERS
        for backwards in (False, True) if both else (rng.random() < REVERSED,):
            pair = (reference, main) if backwards and release == "1.0.0" else (main, reference)
            change = _change(by_study[pair[1]], by_study[pair[0]])
            if backwards:
                change = _shuffled(change, rng)
            answer = render_difference(change)
            if main % FUSED == 0:  # a second copy of the last name, as the generator writes it
                answer = re.sub(r"(findings of )(.+?), and ([^,.]+) than", r"\1and \3 \2, and \3 than", answer)
            yield pair[0], subject, pair[1], type, question, answer, split


def _questions(studies: list[dict], subject: int, split: str, rng: random.Random) -> Iterator[tuple]:
    for position, study in enumerate(studies):
        for type, question, answer in _diagnostic(study, rng):
            yield study["study_id"], subject, "", type, question, answer, split
        for reference in rng.sample(studies[:position], min(position, 3 if rng.random() < 0.24 else 2)):
            question = "what has changed compared to the reference image?"
            change = render_difference(_change(reference, study))
            yield study["study_id"], subject, reference["study_id"], "difference", question, change, split


def _diagnostic(study: dict, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """Shares tuned so that the whole comes out near the published counts by type."""
    findings = study["findings"]
    if findings:
        yield "abnormality", "what abnormalities are seen in this image?", render_findings(tuple(findings))
    if rng.random() < 0.84:
        yield "abnormality", "is there evidence of any abnormalities in this image?", "yes" if findings else "no"
    names = set(rng.sample(sorted(FINDINGS.values()), 1)) | set(findings[:1])
    for name in sorted(names):
        yield "presence", f"is there evidence of {name} in this image?", "yes" if name in findings else "no"
    if rng.random() < 0.25:
        yield "view", "which view is this image taken?", f"{study['view']} view"
    if rng.random() < 0.25:
        yield "view", "is this PA view?", "yes" if study["view"] == "PA" else "no"
    for name in findings:
        place = study["place"][name]
        if rng.random() < 0.6:
            yield "location", f"where in the image is the {name} located?", f"{place} area"
        if rng.random() < 0.45:
            yield "location", f"where is the {name}?", f"{place} area"
        if rng.random() < 0.82:
            yield "level", f"what level is the {name}?", study["level"][name]
        if rng.random() < 0.34:
            yield "type", f"what type is the {name}?", rng.choice(KINDS)


def _shuffled(change: Change, rng: random.Random) -> Change:
    new, resolved = (tuple(rng.sample(names, len(names))) for names in (change.new, change.resolved))
    return Change(new, resolved, tuple(rng.sample(change.levels, len(change.levels))))


def _change(reference: dict, main: dict) -> Change:
    before, after = reference["level"], main["level"]
    level_changes = [name for name in after if name in before and before[name] != after[name]]
    return Change(
        tuple(name for name in after if name not in before),
        tuple(name for name in before if name not in after),
        tuple(LevelChange(name, before[name], after[name]) for name in level_changes),
    )


def _writer(stack: ExitStack, path: Path, header: tuple[str, ...]):
    path.parent.mkdir(parents=True, exist_ok=True)
    opener: Callable[..., Any] = partial(gzip.open, compresslevel=1) if path.suffix == ".gz" else open
    writer = csv.writer(stack.enter_context(opener(path, mode="wt", newline="")), lineterminator="\n")
    writer.writerow(header)
    return writer


if __name__ == "__main__":
    explain(__doc__, 1)
    where, size, which, drawn = sys.argv[1:] + ["", str(QUESTIONS), "", ""][len(sys.argv) - 1 :]
    print(write(where, int(size), release=which, images=drawn == "images"))
