"""Sex and age of the studies: from MIMIC-IV where it is given, unknown and named where it is not."""

from __future__ import annotations

import gzip
from dataclasses import replace
from datetime import datetime

import pytest

from lumen_hpc.config.data_schema import Prepare
from lumen_hpc.data.demographics import Person
from lumen_hpc.data.prepare import prepare
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.errors import UserError
from lumen_hpc.outcomes.histories import History
from lumen_hpc.outcomes.state import state_of
from tests.data.small_dataset import Dataset

PATIENTS = """subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod
10000001,F,52,2148,2011 - 2013,
10000002,,,2160,2011 - 2013,
19999999,M,30,2150,2011 - 2013,
"""


def prepared(dataset: Dataset, mimic_iv: str, **more):
    data = replace(dataset.write().data, mimic_iv=mimic_iv)
    settings = Prepare(one_study_per_test_subject=False, **more)
    counts = prepare(data, settings, 0, dataset.out)
    return counts, {row["study_id"]: (row["sex"], row["age"]) for row in read_jsonl(dataset.out / "studies.jsonl")}


@pytest.mark.parametrize("gzipped", [True, False])
def test_studies_have_the_sex_of_their_patient_and_the_age_at_its_time(tmp_path, gzipped):
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


@pytest.mark.parametrize(("year", "age"), [(2095, None), (2096, 0), (2216, 120), (2217, None)])
def test_of_a_year_that_is_shifted_otherwise_no_age_comes_out(year, age):
    assert Person("F", 52, 2148).age(year) == age
    at = datetime(year, 1, 1)
    assert state_of(History(1, anchor_age=52, anchor_year=2148), at, {})["age"] == age


def test_without_mimic_iv_they_are_unknown(tmp_path):
    counts, people = prepared(Dataset(tmp_path), "")
    assert set(people.values()) == {(None, None)}
    assert counts["studies"]["with_sex_and_age"] == 0


def test_a_table_that_is_there_both_packed_and_unpacked_is_refused(tmp_path):
    hosp = tmp_path / "iv" / "hosp"
    hosp.mkdir(parents=True)
    (hosp / "patients.csv.gz").write_bytes(gzip.compress(PATIENTS.encode()))
    (hosp / "patients.csv").write_text(PATIENTS)
    with pytest.raises(UserError, match=r"there is .*/patients\.csv and patients\.csv\.gz, .*keep one of them"):
        prepared(Dataset(tmp_path), str(tmp_path / "iv"))


def test_a_folder_without_the_table_and_a_table_without_a_column_are_named(tmp_path):
    with pytest.raises(UserError, match=r"data\.mimic_iv=.*no hosp/patients\.csv"):
        prepared(Dataset(tmp_path), str(tmp_path))
    (tmp_path / "hosp").mkdir()
    (tmp_path / "hosp" / "patients.csv").write_text("subject_id,gender\n1,F\n")
    with pytest.raises(UserError, match=r"patients\.csv row 0 .* missing column anchor_age, anchor_year"):
        prepared(Dataset(tmp_path), str(tmp_path))


def test_rows_of_patients_that_cannot_be_read_are_named_and_the_others_count(tmp_path):
    table = tmp_path / "hosp" / "patients.csv"
    table.parent.mkdir()
    rows = ["10000001.0,F,52.0,2148.0", "10000001,M,30,2148", "p1,F,1,2148", "10000002,M,old,2160", "10000003,F"]
    table.write_bytes("\r\n".join(["\ufeffsubject_id,gender,anchor_age,anchor_year", *rows]).encode())
    with pytest.raises(UserError, match=r"patients\.csv row 5 \(line 6\): 2 fields where the header has 4"):
        prepared(Dataset(tmp_path), str(tmp_path))
    counts, people = prepared(Dataset(tmp_path), str(tmp_path), on_bad="skip")
    assert people[50000011] == ("F", 54) and people[50000021] == ("M", None) and people[50000031] == (None, None)
    kinds = {"duplicate subject_id": 1, "bad id": 1, "unknown age": 1, "wrong number of fields": 1}
    assert counts["rejected"] == {"questions": 0, "rows_by_kind": kinds}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("Female,52,2148", "unknown sex"), ("f,52,2148", "unknown sex"), ("M ,52,2148", "unknown sex"),
        ("U,52,2148", "unknown sex"), ("F,450,2148", "unknown age"), ("F,-5,2148", "unknown age"),
        ("F,52.5,2148", "unknown age"), ("F,91+,2148", "unknown age"), ("F,52,12", "unknown age"),
        ("F,52,21480", "unknown age"),
    ],
)  # fmt: skip
def test_a_sex_or_age_that_is_none_is_unknown_and_named(tmp_path, row, kind):
    table = tmp_path / "hosp" / "patients.csv"
    table.parent.mkdir()
    table.write_text(f"subject_id,gender,anchor_age,anchor_year\n10000001,{row}\n")
    with pytest.raises(UserError, match=r"patients\.csv row 1 \(line 2\): .* of subject 10000001 is n"):
        prepared(Dataset(tmp_path), str(tmp_path))
    counts, people = prepared(Dataset(tmp_path), str(tmp_path), on_bad="skip")
    assert people[50000011] == ((None, 54) if kind == "unknown sex" else ("F", None))
    assert counts["rejected"] == {"questions": 0, "rows_by_kind": {kind: 1}}


def test_a_table_of_patients_that_breaks_off_is_named(tmp_path):
    (tmp_path / "hosp").mkdir()
    (tmp_path / "hosp" / "patients.csv.gz").write_bytes(gzip.compress(PATIENTS.encode())[:-20])
    with pytest.raises(UserError, match=r"patients\.csv\.gz after line \d+: the file is corrupt"):
        prepared(Dataset(tmp_path), str(tmp_path))
