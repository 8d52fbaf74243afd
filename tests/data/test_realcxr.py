"""The real radiographs in the official layout: everything is read, every interval is right, no image is lost."""

import csv
import gzip
from datetime import datetime
from pathlib import Path

import pytest

from lumen_hpc.config.data_schema import Data, Prepare
from lumen_hpc.data.prepare import prepare
from lumen_hpc.data.records import read_jsonl
from tests.realcxr import ROOT, TABLE, needed

pytestmark = needed
DATA = Data(
    source="mimic",
    mimic_cxr=str(ROOT / "mimic-cxr-jpg"),
    mimic_cxr_dicom=str(ROOT / "mimic-cxr"),
    diff_vqa=str(ROOT / "medical-diff-vqa"),
)


@pytest.fixture(scope="module")
def official():
    with open(TABLE, newline="") as file:
        questions = list(csv.DictReader(file))
    with gzip.open(ROOT / "mimic-cxr-jpg" / "mimic-cxr-2.0.0-metadata.csv.gz", "rt", newline="") as file:
        metadata = list(csv.DictReader(file))
    return questions, metadata


@pytest.mark.parametrize(("prefer", "files"), [("jpg", {"jpg": 32}), ("dicom", {"dicom": 15, "jpg": 17})])
def test_every_question_interval_and_image(official, tmp_path, prefer, files):
    questions, metadata = official
    data = Data(**{**vars(DATA), "prefer": prefer})
    counts = prepare(data, Prepare(one_study_per_test_subject=False), 0, tmp_path)

    dates = {int(row["study_id"]): datetime.strptime(row["StudyDate"], "%Y%m%d") for row in metadata}
    frontal = {int(row["study_id"]): row["dicom_id"] for row in reversed(metadata) if row["ViewPosition"] != "LATERAL"}
    written = list(read_jsonl(tmp_path / "questions.jsonl"))
    assert counts["rejected"] == {"questions": 0, "rows_by_kind": {}}
    assert len(written) == len(questions) == 314 and len({row["question_id"] for row in written}) == 314
    for row, source in zip(written, questions, strict=True):
        assert (row["question"], row["short_answer"]) == (source["question"], source["answer"])
        assert (row["type"], row["split"]) == (source["question_type"], source["split"])
        assert (str(row["study_id"]), str(row["ref_study_id"] or "")) == (source["study_id"], source["ref_id"])
        if source["ref_id"]:
            assert row["interval_days"] == (dates[row["study_id"]] - dates[row["ref_study_id"]]).days
        else:
            assert row["interval_days"] is None
    assert sum(row["type"] == "difference" for row in written) == 19

    studies = list(read_jsonl(tmp_path / "studies.jsonl"))
    assert {row["study_id"]: row["dicom_id"] for row in studies} == frontal and len(studies) == 32
    assert counts["studies"]["image_files"] == files
    assert all(Path(row["image"]).is_file() for row in studies)
    assert counts["studies"]["impossible_time"]["count"] == 18
    assert set(counts["studies"]["mimic_all"].values()) == {32, 0}
