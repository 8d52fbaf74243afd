"""Sex and age of the studies: from MIMIC-IV where it is given, unknown and named where it is not."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest

from lumen_hpc.config.data_schema import Prepare
from lumen_hpc.data.prepare import prepare
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.errors import UserError
from tests.data.small_dataset import Dataset

PATIENTS = """subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod
10000001,F,52,2148,2011 - 2013,
10000002,?,,2160,2011 - 2013,
19999999,M,30,2150,2011 - 2013,
"""


def prepared(dataset: Dataset, mimic_iv: str):
    data = replace(dataset.write().data, mimic_iv=mimic_iv)
    settings = Prepare(one_study_per_test_subject=False)
    counts = prepare(data, settings, 0, dataset.out)
    return counts, {row["study_id"]: (row["sex"], row["age"]) for row in read_jsonl(dataset.out / "studies.jsonl")}


@pytest.mark.parametrize("gzipped", [True, False])
def test_studies_have_the_sex_of_their_patient_and_the_age_at_the_film(tmp_path, gzipped):
    hosp = tmp_path / "iv" / "hosp"
    hosp.mkdir(parents=True)
    if gzipped:
        (hosp / "patients.csv.gz").write_bytes(gzip.compress(PATIENTS.encode()))
    else:
        (hosp / "patients.csv").write_text(PATIENTS)
    counts, people = prepared(Dataset(tmp_path), str(tmp_path / "iv"))
    assert people[50000011] == people[50000012] == ("F", 54)
    assert people[50000021] == people[50000031] == (None, None)
    assert counts["studies"]["with_sex_and_age"] == 2


def test_without_mimic_iv_they_are_unknown(tmp_path):
    counts, people = prepared(Dataset(tmp_path), "")
    assert set(people.values()) == {(None, None)}
    assert counts["studies"]["with_sex_and_age"] == 0


def test_a_table_that_is_there_both_packed_and_unpacked_is_refused(tmp_path):
    hosp = tmp_path / "iv" / "hosp"
    hosp.mkdir(parents=True)
    (hosp / "patients.csv.gz").write_bytes(gzip.compress(PATIENTS.encode()))
    (hosp / "patients.csv").write_text(PATIENTS)
    with pytest.raises(UserError, match=r"there is .*/patients\.csv and patients\.csv\.gz; remove one of the two"):
        prepared(Dataset(tmp_path), str(tmp_path / "iv"))


def test_a_folder_without_the_table_and_a_table_without_a_column_are_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.mimic_iv=.*no hosp/patients\.csv"):
        prepared(Dataset(tmp_path), str(tmp_path))
    (tmp_path / "hosp").mkdir()
    (tmp_path / "hosp" / "patients.csv").write_text("subject_id,gender\n1,F\n")
    with pytest.raises(UserError, match="lacks the column anchor_age"):
        prepared(Dataset(tmp_path), str(tmp_path))
