"""Stage prepare from its user's side: what it reads and keeps, and how it reports bad input."""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lumen_hpc.data import tables
from lumen_hpc.data.images import FAINT
from lumen_hpc.data.questions import question_id
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.errors import UserError
from tests.data.small_dataset import CHANGED, METADATA, MIMIC_ALL, NEW, QUESTIONS, SPLIT, Dataset
from tests.data.test_images import dicom

ALL = {"one_study_per_test_subject": False}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path)


def rows(dataset: Dataset, name: str) -> list[dict]:
    return list(read_jsonl(dataset.out / f"{name}.jsonl"))


def test_every_row_becomes_a_question_with_its_true_interval(dataset):
    counts = dataset.write().run(**ALL)
    questions = rows(dataset, "questions")
    assert (counts["read"], counts["kept"], len(questions)) == (11, 11, 11)
    days = {q["study_id"]: q["interval_days"] for q in questions if q["type"] == "difference"}
    assert days == {50000012: 59, 50000022: 10, 50000032: 1, 50000033: 365}
    assert questions[0] == {
        "question_id": question_id(50000011, None, "presence", "is there evidence of edema in this image?"),
        "subject_id": 10000001,
        "study_id": 50000011,
        "ref_study_id": None,
        "type": "presence",
        "question": "is there evidence of edema in this image?",
        "short_answer": "yes",
        "closed": True,
        "interval_days": None,
        "split": "train",
    }
    assert questions[7]["short_answer"] == NEW  # the trailing space is the dataset's own
    assert questions[7]["ref_study_id"] == 50000011 and questions[7]["closed"] is False


def test_studies_say_which_image_and_when(dataset):
    counts = dataset.write().run(**ALL)
    studies = {study["study_id"]: study for study in rows(dataset, "studies")}
    assert len(studies) == 7
    assert studies[50000011] == {
        "subject_id": 10000001,
        "study_id": 50000011,
        "dicom_id": "aa11",
        "image": str(dataset.image(50000011)),
        "size": [8, 8],
        "view": "PA",
        "taken_at": "2150-01-01T09:30:15.500000",
        "split": "train",
        "sex": None,
        "age": None,
    }
    assert [study["split"] for study in studies.values()] == ["train"] * 2 + ["val"] * 2 + ["test"] * 3
    assert studies[50000012]["view"] == "AP"
    assert studies[50000021]["taken_at"] == "2160-02-29T00:00:05"
    # 08:63:57 is no time of day, and an empty StudyTime none at all: the date stands alone.
    assert studies[50000012]["taken_at"] == "2150-03-01" and studies[50000022]["taken_at"] == "2160-03-10"
    assert counts["studies"]["impossible_time"] == {
        "count": 1,
        "first": [{"study_id": 50000012, "StudyTime": 86357.0}],
    }
    assert counts["studies"]["without_time"] == 1


def test_counts_stand_beside_the_papers(dataset):
    dataset.write().run(**ALL)
    counts = json.loads((dataset.out / "counts.json").read_bytes())
    assert counts["splits"]["train"]["diagnostic"] == {"ours": 2, "paper": 428995}
    assert counts["splits"]["test"]["difference"] == {"ours": 2, "paper": 1369}
    assert counts["splits"]["test"]["images"] == {"ours": 3, "paper": 4190}
    assert counts["file"]["by_type"]["questions"] == {"ours": 11, "paper": 700703}
    assert counts["test_images_in_mimic_split"]["test"] == 3


@pytest.mark.parametrize(("images", "size"), [("read", [8, 8]), ("header", [8, 8]), ("exist", None), ("trust", None)])
def test_the_size_of_an_image_is_kept_where_its_header_was_read(dataset, images, size):
    dataset.write().run(images=images, **ALL)
    assert [study["size"] for study in rows(dataset, "studies")] == [size] * 7


def test_odd_values_of_dicoms_are_counted(dataset):
    tree = dataset.folder / "mimic-cxr"
    dataset.write()
    for study in (50000011, 50000012):
        path = Path(str(dataset.image(study)).replace("mimic-cxr-jpg", "mimic-cxr")).with_suffix(".dcm")
        path.parent.mkdir(parents=True)
        dicom(path, np.full((8, 8), 4000, np.uint16), bits=16)
    counts = dataset.run(replace(dataset.data, mimic_cxr_dicom=str(tree), prefer="dicom"), **ALL)
    assert counts["studies"]["image_warnings"] == {FAINT: 2}


@pytest.mark.parametrize("version", ["2.0.0", "2.1.0"])
def test_gzipped_tables_of_either_version_read_the_same(dataset, version):
    dataset.write().run(**ALL)
    plain = (dataset.out / "questions.jsonl").read_bytes()
    for name in list(dataset.tables):
        (dataset.folder / name).unlink()
        dataset.tables[name.replace("2.0.0", version)] = dataset.tables.pop(name)
    dataset.write(gzipped=True).run(**ALL)
    assert (dataset.out / "questions.jsonl").read_bytes() == plain


def test_columns_are_found_by_name_and_ids_may_be_floats(dataset):
    dataset.write().run(**ALL)
    plain = rows(dataset, "questions")
    for row in dataset.tables[QUESTIONS]:
        row[2] = f"{row[2]}.0" if isinstance(row[2], int) else row[2]
        row.reverse()
        row.append("another column")
    dataset.write().run(**ALL)
    assert rows(dataset, "questions") == plain


def test_the_image_is_the_first_frontal_one_else_the_first(dataset):
    metadata = dataset.tables[METADATA]
    lateral = ["lat", 10000001, 50000011, "", "LATERAL", 8, 8, "21500101", "93000.000", "", "lateral", "Erect"]
    second = ["aa99", 10000001, 50000011, "", "PA", 8, 8, "21500101", "93030.000", "", "postero-anterior", "Erect"]
    metadata[1:2] = [lateral, metadata[1], second]
    assert metadata[5][0] == "bb21"
    metadata[5][10] = "lateral"
    counts = dataset.write().run(**ALL, images="trust")
    studies = {study["study_id"]: study for study in rows(dataset, "studies")}
    assert studies[50000011]["dicom_id"] == "aa11"
    assert len(studies) == 7 and counts["studies"]["images_not_frontal"] == 1


def test_a_dicom_serves_where_it_is_preferred_and_there(dataset):
    dataset.write()
    tree = dataset.folder / "mimic-cxr"
    dicom = tree / "files/p10/p10000001/s50000011/aa11.dcm"
    dicom.parent.mkdir(parents=True)
    dicom.write_bytes(b"looked at by name alone in this test")
    both = replace(dataset.data, mimic_cxr_dicom=str(tree))
    assert dataset.run(both, images="exist")["studies"]["image_files"] == {"jpg": 7}
    preferred = replace(both, prefer="dicom")
    assert dataset.run(preferred, images="exist")["studies"]["image_files"] == {"dicom": 1, "jpg": 6}
    assert rows(dataset, "studies")[0]["image"] == str(dicom)


def test_a_site_with_dicoms_alone_needs_no_jpgs(dataset):
    dataset.write()
    tree = dataset.folder / "mimic-cxr"
    for row in dataset.tables[METADATA][1:]:
        jpg = dataset.image(row[2])
        dicom = Path(str(jpg).replace("mimic-cxr-jpg", "mimic-cxr")).with_suffix(".dcm")
        dicom.parent.mkdir(parents=True)
        jpg.rename(dicom)
    data = replace(dataset.data, mimic_cxr_dicom=str(tree), prefer="dicom")
    assert dataset.run(data, images="exist")["studies"]["image_files"] == {"dicom": 7}


def test_preferring_dicoms_where_there_are_none_is_refused(dataset):
    tree = dataset.folder / "mimic-cxr"
    (tree / "files").mkdir(parents=True)
    data = replace(dataset.write().data, mimic_cxr_dicom=str(tree), prefer="dicom")
    tried = tree / "files/p10/p10000001/s50000011/aa11.dcm"
    with pytest.raises(UserError, match=re.escape(f"no study asked about has a DICOM; the first would be {tried}")):
        dataset.run(data)


def test_preferring_dicoms_without_saying_where_is_refused(dataset):
    with pytest.raises(UserError, match=r"data\.mimic_cxr_dicom=FOLDER"):
        dataset.write().run(replace(dataset.data, prefer="dicom"))


# The test set -------------------------------------------------------------------------------------------------------


def test_a_test_patient_keeps_one_study_with_its_difference(dataset):
    counts = dataset.write().run()
    test = [q for q in rows(dataset, "questions") if q["split"] == "test"]
    assert len({q["study_id"] for q in test}) == 1
    # The patient's first study has no difference question, so it is not the one drawn.
    assert sorted(q["type"] for q in test) == ["difference", "presence"]
    assert len(rows(dataset, "left_out")) == counts["left_out"]["another study of a test patient"] == 3
    assert counts["read"] == counts["kept"] + 3
    assert len(rows(dataset, "studies")) == 7


@pytest.mark.parametrize("seed", range(6))
def test_a_study_that_cannot_be_used_is_not_drawn(dataset, seed):
    dataset.write().image(50000032).unlink()  # the reference of one difference, the main study of another
    counts = dataset.run(on_bad="skip", max_bad=1.0, images="exist", seed=seed)
    assert counts["splits"]["test"]["patients"]["ours"] == 1


def test_the_draw_depends_on_the_seed_not_on_the_order_of_the_file(dataset):
    def drawn(seed):
        dataset.write().run(seed=seed)
        return {q["question_id"] for q in rows(dataset, "questions")}

    first = [drawn(seed) for seed in range(8)]
    assert len({frozenset(ids) for ids in first}) == 2  # both candidates come up
    header, *body = dataset.tables[QUESTIONS]
    dataset.tables[QUESTIONS] = [header, *reversed(body)]
    dataset.tables[METADATA][1:] = dataset.tables[METADATA][:0:-1]
    assert [drawn(seed) for seed in range(8)] == first


def test_ids_and_draws_are_those_of_earlier_versions(dataset):
    """Runs are compared, and answers joined, by ids; with other draws a run would have another test set."""
    assert question_id(50000011, None, "presence", "is there evidence of edema in this image?") == "762f8e562d29fc6f"
    assert question_id(50000012, 50000011, "difference", CHANGED) == "497f0ae2ee48fb3e"
    dataset.write()
    test_studies, pairs = [], []
    for seed in range(6):
        dataset.run(seed=seed, images="trust", difference_fraction=0.5)
        questions = rows(dataset, "questions")
        test_studies += {q["study_id"] % 100 for q in questions if q["split"] == "test"}
        pairs.append(sorted(q["study_id"] % 100 for q in questions if q["ref_study_id"]))
    assert test_studies == [32, 32, 33, 33, 32, 32]
    assert pairs == [[22], [32], [12, 22, 33], [12, 22, 33], [12], [22]]


def test_a_share_of_the_differences_is_kept(dataset):
    dataset.tables[QUESTIONS] = dataset.tables[QUESTIONS][:8]
    for number in range(400):
        dataset.ask(50000012, 50000011, "difference", f"what has changed in the place{number} area?", NEW)
    counts = dataset.write().run(difference_fraction=0.33)
    kept = counts["splits"]["train"]["difference"]["ours"]
    assert 90 < kept < 175
    assert counts["left_out"]["difference_fraction"] == 400 - kept
    assert counts["splits"]["train"]["diagnostic"]["ours"] == 2


def test_a_patient_in_two_splits_is_refused_dropped_or_allowed(dataset):
    dataset.tables[QUESTIONS][5][-1] = "train"  # subject 10000003, otherwise test
    dataset.write()
    with pytest.raises(UserError, match=r"1 patient in more than one split.*10000003.*patient_overlap=drop"):
        dataset.run()
    assert not (dataset.out / "questions.jsonl").exists()
    dropped = dataset.run(patient_overlap="drop", **ALL)
    assert dropped["left_out"] == {"patient in a more held-out split": 1}
    assert {q["split"] for q in rows(dataset, "questions") if q["subject_id"] == 10000003} == {"test"}
    allowed = dataset.run(patient_overlap="allow", **ALL)
    assert (allowed["kept"], allowed["patients_in_two_splits"]) == (11, 1)


def iso(day: str) -> str:
    return f"{day[:4]}-{day[4:6]}-{day[6:]}"


def as_nanoseconds(day: str) -> str:
    return f"1970-01-01 00:00:00.0{day}"


@pytest.mark.parametrize("written", [str, iso, as_nanoseconds, lambda day: f"{iso(day)} 00:00:00"])
def test_the_dates_of_mimic_all_are_read_in_every_form(dataset, written):
    for row in dataset.tables[MIMIC_ALL][1:]:
        row[5] = written(row[5])
    dataset.tables[MIMIC_ALL][2][5] = written("21500302")
    assert dataset.write().run(**ALL)["studies"]["mimic_all"]["another_date"] == 1


def test_a_date_that_was_cut_off_is_no_other_date(dataset):
    dataset.tables[MIMIC_ALL][1][5] = "1970-01-01"
    dataset.tables[MIMIC_ALL][2][5] = "1970-01-01 00:00:00.021500"
    counts = dataset.write().run(**ALL)["studies"]["mimic_all"]
    assert (counts["another_date"], counts["no_date"]) == (0, 2)


def test_pairs_of_one_day_and_reversed_pairs_are_counted(dataset):
    dataset.tables[METADATA][2][7] = dataset.tables[METADATA][1][7]  # the same day; StudyTime says 8:63 before 9:30
    dataset.tables[METADATA][4][7] = "21600201"  # the main study before its reference
    dataset.tables[METADATA][6][7] = dataset.tables[METADATA][5][7]  # the same day and time
    counts = dataset.write().run(**ALL)
    assert counts["intervals"]["pairs"] == 4
    assert counts["intervals"]["zero_day"] == 2 and counts["intervals"]["zero_day_main_earlier"] == 1
    assert counts["intervals"]["zero_day_order_unknown"] == 1
    assert counts["intervals"]["negative"] == 1 and counts["intervals"]["forecastable"] == 1
    days = {q["study_id"]: q["interval_days"] for q in rows(dataset, "questions") if q["ref_study_id"]}
    assert days[50000012] == 0 and days[50000022] == -28


# Bad input ----------------------------------------------------------------------------------------------------------


def break_cell(table: str, row: int, column: int, value):
    def breaking(dataset: Dataset) -> None:
        dataset.tables[table][row][column] = value

    return breaking


def add_row(table: str, row: int, column: int = 0, value: object = None):
    def breaking(dataset: Dataset) -> None:
        added = list(dataset.tables[table][row])
        added[column] = value or added[column]
        dataset.tables[table].append(added)

    return breaking


def break_bytes(table: str, *pairs: bytes):
    def breaking(dataset: Dataset) -> None:
        path = dataset.folder / table
        for old, new in zip(pairs[::2], pairs[1::2], strict=True):
            whole = path.read_bytes()
            assert old in whole
            path.write_bytes(whole.replace(old, new, 1))

    breaking.after = True
    return breaking


def break_image(study: int, action):
    def breaking(dataset: Dataset) -> None:
        action(dataset.image(study))

    breaking.after = True
    return breaking


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def at(table: str, row: int) -> str:
    """The place that a message names; a header is line 1."""
    return f"{Path(table).name} row {row} (line {row + 1})"


BAD = {
    # what is wrong: (how it is broken, its kind in the counts, the place named, questions lost)
    "unknown question type": (break_cell(QUESTIONS, 2, 3, "prognosis"), "unknown question type", at(QUESTIONS, 2), 1),
    "unknown split": (break_cell(QUESTIONS, 2, 6, "dev"), "unknown split", at(QUESTIONS, 2), 1),
    "empty answer": (break_cell(QUESTIONS, 3, 5, " "), "empty answer", at(QUESTIONS, 3), 1),
    "difference outside the grammar": (
        break_cell(QUESTIONS, 8, 5, "the heart looks larger now"),
        "answer outside the grammar", at(QUESTIONS, 8), 1),
    "a difference that contradicts itself": (
        break_cell(QUESTIONS, 8, 5, "the level of edema has changed from mild to mild. "),
        "self-contradicting answer", at(QUESTIONS, 8), 1),
    "presence answered with a word": (
        break_cell(QUESTIONS, 1, 5, "perhaps"),
        "answer outside the grammar", at(QUESTIONS, 1), 1),
    "difference without reference": (break_cell(QUESTIONS, 9, 2, ""), "bad id", at(QUESTIONS, 9), 1),
    "id that is no number": (break_cell(QUESTIONS, 4, 0, "s50000021"), "bad id", at(QUESTIONS, 4), 1),
    "study not in the metadata": (break_cell(QUESTIONS, 4, 0, 59999999), "unknown study", at(QUESTIONS, 4), 1),
    "reference of another patient": (
        break_cell(QUESTIONS, 8, 2, 50000021),
        "study of another patient", at(QUESTIONS, 8), 1),
    "study compared with itself": (break_cell(QUESTIONS, 8, 2, 50000012), "bad pair", at(QUESTIONS, 8), 1),
    "two answers to one question": (add_row(QUESTIONS, 3, 5, "no"), "contradictory answer", at(QUESTIONS, 12), 1),
    "a list that Python wrote": (
        break_cell(QUESTIONS, 3, 5, "['edema', 'pneumonia']"),
        "answer outside the grammar", at(QUESTIONS, 3), 1),
    "a question that is missing": (break_cell(QUESTIONS, 3, 4, "nan"), "not a question", at(QUESTIONS, 3), 1),
    "a NUL byte in an answer": (
        break_bytes(QUESTIONS, b"image?,yes,train", b"image?,yes\0,train"),
        "NUL byte", at(QUESTIONS, 1), 1),
    "a NUL byte in the metadata": (
        break_bytes(METADATA, b"aa11,10000001,50000011,", b"aa11,10000001,50000011,\0"),
        "NUL byte", at(METADATA, 1), 2),
    "text after a closing quote": (
        break_bytes(QUESTIONS, b"image?,yes,train", b'image?,"yes"s,train'),
        "not csv", at(QUESTIONS, 1), 1),
    "two stray quotes that would fuse rows": (
        break_bytes(METADATA, b",8,8,21600229,", b',8,8,"21600229,', b",8,8,21600310,", b',8,8,21600310",'),
        "not csv", at(METADATA, 3), 3),
    "two stray quotes around a whole row": (
        break_bytes(METADATA, b",8,8,21500301,", b',8,8,"21500301,', b",8,8,21600310,", b',8,8,21600310",'),
        "not csv", at(METADATA, 2), 4),
    "a row too short": (
        break_bytes(QUESTIONS, b"50000021,10000002,,presence,", b"50000021,presence,"),
        "wrong number of fields", at(QUESTIONS, 3), 1),
    "text that is not UTF-8": (
        break_bytes(QUESTIONS, b"of edema in", b"of \xe9dema in"),
        "not UTF-8", at(QUESTIONS, 1), 1),
    "metadata that is not UTF-8": (
        break_bytes(METADATA, b"aa11,10000001,50000011,", b"aa11,10000001,50000011,\xff"),
        "not UTF-8", at(METADATA, 1), 2),
    "study without date": (break_cell(METADATA, 1, 7, ""), "study without date", at(METADATA, 1), 2),
    "date that is none": (break_cell(METADATA, 1, 7, "21500230"), "study without date", at(METADATA, 1), 2),
    "the same dicom twice": (add_row(METADATA, 2), "duplicate dicom_id", at(METADATA, 8), 0),
    "an id of the split that is no number": (break_cell(SPLIT, 2, 1, "s50000012"), "bad id", at(SPLIT, 2), 0),
    "a study of mimic_all that is no number": (
        break_cell(MIMIC_ALL, 2, 1, "50000012.5"),
        "bad id", at(MIMIC_ALL, 2), 0),
    "a patient of mimic_all that is no number": (
        break_cell(MIMIC_ALL, 2, 0, "10000001.5"),
        "bad id", at(MIMIC_ALL, 2), 0),
    "an image in two splits": (add_row(SPLIT, 5, 3, "train"), "duplicate dicom_id", at(SPLIT, 8), 0),
    "the same study twice": (add_row(MIMIC_ALL, 2), "duplicate study_id", at(MIMIC_ALL, 8), 0),
    "image missing": (break_image(50000022, Path.unlink), "image missing or broken", at(METADATA, 4), 2),
    "image truncated": (break_image(50000022, halve), "image missing or broken", at(METADATA, 4), 2),
    "image empty": (
        break_image(50000022, lambda path: path.write_bytes(b"")),
        "image missing or broken", at(METADATA, 4), 2),
}  # fmt: skip


def test_the_first_of_two_splits_of_an_image_counts_and_an_unreadable_id_is_no_disagreement(dataset):
    for row in dataset.tables[SPLIT][1:]:
        dataset.tables[SPLIT].append([*row[:3], "train"])
    for row in dataset.tables[MIMIC_ALL][1:]:
        row[0] = f"{row[0]}.5"
    counts = dataset.write().run(on_bad="skip", **ALL)
    assert counts["test_images_in_mimic_split"] == {"not listed": 0, "train": 0, "validate": 0, "test": 3}
    assert not any(count for name, count in counts["studies"]["mimic_all"].items() if name != "rows")
    assert counts["rejected"]["rows_by_kind"] == {"duplicate dicom_id": 5, "bad id": 7}


def test_metadata_without_a_usable_row_names_the_cause(dataset):
    for row in dataset.tables[METADATA][1:]:
        row[1] = f"p{row[1]}"
    cause = r"none of 7 rows can be used; .* row 1 \(line 2\): subject_id or study_id is not a whole number"
    with pytest.raises(UserError, match=cause):
        dataset.write().run()


@pytest.mark.parametrize("change", [lambda text: text.replace(",", ";"), lambda text: text.replace(",", "\t")])
def test_a_table_with_other_separators_is_explained(dataset, change):
    path = dataset.write().folder / MIMIC_ALL
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError, match="is it UTF-8 text with commas between its fields"):
        dataset.run()


def test_an_image_behind_a_folder_that_cannot_be_searched_is_not_called_missing(dataset):
    folder = dataset.write().image(50000021).parent
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)  # in a circle
    with pytest.raises(UserError, match=r"bb21\.jpg cannot be read: Too many levels of symbolic links"):
        dataset.run()


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_named_counted_and_stops_or_is_left_out(dataset, what):
    breaking, kind, place, lost = BAD[what]
    if not hasattr(breaking, "after"):
        breaking(dataset)
    dataset.write()
    if hasattr(breaking, "after"):
        breaking(dataset)

    with pytest.raises(UserError) as stopped:
        dataset.run(**ALL)
    message = str(stopped.value)
    assert message.startswith(f"{place}: ") and "\n" not in message
    assert f"1 {kind}" in message and "prepare.on_bad=skip" in message
    assert not (dataset.out / "questions.jsonl").exists()
    stopped_with = rows(dataset, "rejected")

    counts = dataset.run(on_bad="skip", max_bad=0.5, **ALL)
    rejected = rows(dataset, "rejected")
    assert rejected == stopped_with
    assert f"{rejected[0]['file']} row {rejected[0]['row']} (line {rejected[0]['line']})" == place
    assert counts["rejected"]["rows_by_kind"][kind] == 1
    assert counts["rejected"]["questions"] == lost
    assert len(rows(dataset, "questions")) == counts["kept"] == counts["read"] - lost


@pytest.mark.parametrize(
    ("table", "column"),
    [(QUESTIONS, "answer"), (METADATA, "StudyDate"), (SPLIT, "dicom_id"), (MIMIC_ALL, "study_date")],
)
def test_a_missing_column_is_named(dataset, table, column):
    header = dataset.tables[table][0]
    header[header.index(column)] = "something else"
    named = rf"{Path(table).name} row 0 \(line 1\): missing column {column}; the header has"
    with pytest.raises(UserError, match=named):
        dataset.write().run(on_bad="skip")


@pytest.mark.parametrize(("table", "column"), [(QUESTIONS, "answer"), (METADATA, "StudyDate")])
def test_a_doubled_column_is_named(dataset, table, column):
    header, *body = dataset.tables[table]
    header.append(column)
    for row in body:
        row.append(row[header.index(column)])
    named = rf"{Path(table).name} row 0 \(line 1\): column {column} appears more than once"
    with pytest.raises(UserError, match=named):
        dataset.write().run(on_bad="skip")


@pytest.mark.parametrize("table", [QUESTIONS, METADATA, SPLIT, MIMIC_ALL])
def test_a_missing_table_is_named(dataset, table):
    dataset.write()
    (dataset.folder / table).unlink()
    with pytest.raises(UserError, match=r"data\.\w+=.*: there is no .*\.csv or \.csv\.gz; give the folder of"):
        dataset.run()


def test_a_gzip_stream_that_breaks_off_is_named(dataset):
    dataset.write()
    path = dataset.folder / QUESTIONS
    packed = gzip.compress(path.read_bytes() * 50)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"mimic_pair_questions.csv after line \d+: the file is corrupt"):
        dataset.run()


def test_a_study_whose_only_partner_is_bad_goes_with_it(dataset):
    # Patient 10000002: its first study has no date, and the second is asked about only together with the first.
    dataset.tables[METADATA][3][7] = ""
    dataset.tables[QUESTIONS].pop(4)
    counts = dataset.write().run(on_bad="skip", max_bad=0.5, **ALL)
    assert (counts["read"], counts["kept"], counts["rejected"]["questions"]) == (10, 8, 2)
    assert {study["subject_id"] for study in rows(dataset, "studies")} == {10000001, 10000003}


@pytest.mark.parametrize("questions", [0, 3])
def test_a_file_without_a_usable_question_is_refused(dataset, questions):
    dataset.tables[QUESTIONS] = dataset.tables[QUESTIONS][: questions + 1]
    for row in dataset.tables[QUESTIONS][1:]:
        row[3] = "prognosis"
    with pytest.raises(UserError, match=rf"mimic_pair_questions.csv: of {questions} questions, none is usable"):
        dataset.write().run(on_bad="skip", max_bad=1.0)


def test_every_form_of_csv_reads_the_same(dataset):
    dataset.ask(50000011, "", "abnormality", "what abnormalities are seen in this image?", "edema, lung opacity")
    dataset.write().run(**ALL)
    plain = rows(dataset, "questions")
    path = dataset.folder / QUESTIONS
    text = path.read_text()
    assert '"edema, lung opacity"' in text
    with open(path, "w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(dataset.tables[QUESTIONS])
    assert dataset.run(**ALL)["read"] == 12
    assert rows(dataset, "questions") == plain
    path.write_text(text.replace("\n", "\n\n").rstrip())
    assert dataset.run(**ALL)["read"] == 12
    assert rows(dataset, "questions") == plain


def test_an_open_quote_loses_its_row_alone(dataset):
    dataset.tables[QUESTIONS][2][5] = "QUOTE"
    dataset.write()
    path = dataset.folder / QUESTIONS
    path.write_text(path.read_text().replace("QUOTE", '"yes'))
    counts = dataset.run(on_bad="skip", max_bad=0.2, **ALL)
    assert [row["row"] for row in rows(dataset, "rejected")] == [2]
    assert counts["kept"] == 10


def test_too_many_lost_questions_stop_the_stage_anyway(dataset):
    for row in dataset.tables[QUESTIONS][1:4]:
        row[3] = "prognosis"
    message = re.escape("3 of 11 questions are lost, 27.27%, and prepare.max_bad=0.2 allows 20.00%")
    with pytest.raises(UserError, match=message):
        dataset.write().run(on_bad="skip", max_bad=0.2)
    assert len(rows(dataset, "rejected")) == 3


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
def test_of_a_download_of_some_patients_the_settings_that_keep_them_are_told(dataset, on_bad):
    for path in (dataset.write().folder / "mimic-cxr-jpg/files/p10").glob("*/"):
        if path != dataset.image(50000011).parents[1]:
            shutil.rmtree(path)
    with pytest.raises(UserError, match=r"or leave them out with prepare.on_bad=skip prepare.max_bad=0\.73\)$"):
        dataset.run(on_bad=on_bad)
    assert dataset.run(on_bad="skip", max_bad=0.73)["kept"] == 3
    shutil.rmtree(dataset.folder / "mimic-cxr-jpg/files/p10")
    with pytest.raises(UserError, match=r"repair them\)$"):  # nothing would be left
        dataset.run(on_bad=on_bad)


def test_the_text_of_a_record_stays_out_of_the_message(dataset):
    dataset.tables[QUESTIONS][8][5] = "Mrs Example has changed"
    with pytest.raises(UserError) as stopped:
        dataset.write().run()
    assert "Example" not in str(stopped.value)
    assert rows(dataset, "rejected")[0]["text"].split(",")[5] == "Mrs Example has changed"


def test_one_bad_row_among_many_loses_that_row_alone(dataset):
    for number in range(3000):
        dataset.ask(50000012, 50000011, "difference", CHANGED.replace("compared", f"{number} compared"), NEW)
    dataset.tables[QUESTIONS][1500][0] = "?"
    dataset.tables[QUESTIONS][1501][5] = ""
    counts = dataset.write().run(on_bad="skip", **ALL)
    assert [row["row"] for row in rows(dataset, "rejected")] == [1500, 1501]
    assert counts["kept"] == 3011 - 2


@pytest.mark.parametrize("rows_at_once", [1, 2, 3])
def test_the_size_of_blocks_changes_nothing(dataset, monkeypatch, rows_at_once):
    for table, row in ((METADATA, 2), (MIMIC_ALL, 1), (QUESTIONS, 3)):
        dataset.tables[table].append(list(dataset.tables[table][row]))
    dataset.tables[QUESTIONS][-1][5] = "no"
    dataset.tables[METADATA].insert(
        4, ["bb20", 10000002, 50000021, "", "LATERAL", 8, 8, "21600229", "", "", "lateral", ""]
    )
    dataset.tables[METADATA].insert(3, ["zz", 10000009, 50000012, "", "PA", 8, 8, "21500301", "", "", "lateral", ""])
    dataset.tables[SPLIT][2][3] = "trian"
    dataset.tables[QUESTIONS][5][0] = "?"
    files = [dataset.out / f"{name}.jsonl" for name in ("studies", "questions", "rejected")]
    dataset.write().run(on_bad="skip", max_bad=0.5, **ALL)
    whole = [path.read_bytes() for path in files]
    kinds = {row["kind"] for row in rows(dataset, "rejected")}
    assert kinds == {
        "duplicate dicom_id", "study of two patients", "unknown split", "duplicate study_id", "bad id",
        "contradictory answer",
    }  # fmt: skip
    monkeypatch.setattr(tables, "BLOCK_ROWS", rows_at_once)
    dataset.run(on_bad="skip", max_bad=0.5, **ALL)
    assert [path.read_bytes() for path in files] == whole


@pytest.mark.parametrize("rows_at_once", [1, 2, 3, 4096])
def test_line_breaks_in_fields_and_blank_lines_count_as_lines(dataset, monkeypatch, rows_at_once):
    """Also where a row begins in one block and ends in the next."""
    monkeypatch.setattr(tables, "BLOCK_ROWS", rows_at_once)
    dataset.tables[METADATA][1][3] = "CHEST\nPA"
    dataset.tables[METADATA][2][3] = "CHEST\r\nPA"
    dataset.tables[METADATA][4][7] = ""  # row 4 ends on line 8: two breaks and a blank line above it
    dataset.write()
    path = dataset.folder / METADATA
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"\r\nbb21", b"\r\n\r\nbb21"))
    with pytest.raises(UserError, match=re.escape("mimic-cxr-2.0.0-metadata.csv row 4 (line 8): study 50000022")):
        dataset.run(**ALL)


@pytest.mark.parametrize("rows_at_once", [1, 2, 4096])
def test_stray_quotes_give_no_study_another_patients_date(dataset, monkeypatch, rows_at_once):
    monkeypatch.setattr(tables, "BLOCK_ROWS", rows_at_once)
    dataset.write()
    break_bytes(METADATA, b",8,8,21500301,", b',8,8,"21500301,', b",8,8,21600229,", b',8,8,21600229",')(dataset)
    dataset.run(on_bad="skip", max_bad=0.9, **ALL)
    dates = {study["study_id"]: study["taken_at"] for study in rows(dataset, "studies")}
    assert 50000012 not in dates and dates[50000022] == "2160-03-10"
    assert {row["reason"] for row in rows(dataset, "rejected") if row["kind"] == "not csv"} == {tables.OPEN_QUOTE}


@pytest.mark.parametrize("written", [" 50000021", "+50000021", "5_0", "50000021.5", "", "9" * 19, "५"])
def test_an_id_is_digits_alone(dataset, written):
    dataset.tables[QUESTIONS][3][0] = written
    counts = dataset.write().run(on_bad="skip", max_bad=0.5, **ALL)
    assert counts["rejected"] == {"questions": 1, "rows_by_kind": {"bad id": 1}}
    dataset.tables[QUESTIONS].pop(3)
    dataset.tables[METADATA][3][2] = written
    counts = dataset.write().run(on_bad="skip", max_bad=0.5, **ALL)
    assert counts["rejected"]["rows_by_kind"] == {"bad id": 1, "unknown study": 1}
