"""The official files as other people's tools leave them: read as they are meant, or refused by name."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from jobs.prepare import warnings
from lumen_hpc.data.findings_line import read_findings
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.errors import UserError
from tests.data.small_dataset import METADATA, MIMIC_ALL, QUESTIONS, SPLIT, Dataset

TABLES = (METADATA, SPLIT, MIMIC_ALL, QUESTIONS)
every_table = pytest.mark.parametrize("table", TABLES, ids=lambda name: Path(name).stem)
ALL = {"one_study_per_test_subject": False}
SKIP = {"on_bad": "skip", "max_bad": 0.9, **ALL}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return Dataset(tmp_path).write()


def outcome(dataset: Dataset, **settings) -> tuple:
    """All that a run writes of studies and questions, and its counts."""
    counts = dataset.run(**{**ALL, **settings})
    names = ("studies", "questions", "left_out", "rejected")
    return counts, *(list(read_jsonl(dataset.out / f"{name}.jsonl")) for name in names)


def text(dataset: Dataset, table: str) -> str:
    return (dataset.folder / table).read_bytes().decode()


def put(dataset: Dataset, table: str, content: str | bytes, packed: bool = False) -> None:
    """Writes a table anew, as csv.gz if `packed`."""
    data = content.encode() if isinstance(content, str) else content
    (dataset.folder / table).unlink()
    (dataset.folder / f"{table}{'.gz' * packed}").write_bytes(data)


def rewritten(rows: list[list], **options) -> str:
    out = io.StringIO()
    csv.writer(out, **options).writerows(rows)
    return out.getvalue()


# Read as meant ------------------------------------------------------------------------------------------------------


def float_ids(rows: list[list]) -> list[list]:
    ids = [at for at, name in enumerate(rows[0]) if name in ("subject_id", "study_id", "ref_id")]
    return [rows[0], *([f"{v}.0" if at in ids and v else v for at, v in enumerate(row)] for row in rows[1:])]


def some_float_ids(rows: list[list]) -> list[list]:
    return [*rows[:3], *float_ids(rows)[3:]]


def with_pandas_index(rows: list[list]) -> list[list]:
    return [[number - 1 if number else "", *row, "x" if number else "more"] for number, row in enumerate(rows)]


READ_AS_MEANT = {
    "columns in another order": lambda rows: rewritten([row[::-1] for row in rows]),
    "a pandas index and one more column": lambda rows: rewritten(with_pandas_index(rows)),
    "ids as floats": lambda rows: rewritten(float_ids(rows)),
    "ids as floats in some rows": lambda rows: rewritten(some_float_ids(rows)),
    "every field in quotes": lambda rows: rewritten(rows, quoting=csv.QUOTE_ALL),
    "LF instead of CRLF": lambda rows: rewritten(rows, lineterminator="\n"),
    "no line end after the last row": lambda rows: rewritten(rows).rstrip(),
    "blank last lines": lambda rows: rewritten(rows) + "\r\n\n",
    "a byte order mark": lambda rows: "\ufeff" + rewritten(rows),
}


@every_table
@pytest.mark.parametrize("way", READ_AS_MEANT)
@pytest.mark.parametrize("packed", [False, True], ids=["csv", "gz"])
def test_a_table_written_in_another_way_reads_the_same(dataset, table, way, packed):
    plain = outcome(dataset)
    put(dataset, table, READ_AS_MEANT[way](dataset.tables[table]), packed=False)
    if packed:  # an ending that the content does not have, too
        path = dataset.folder / table
        path.rename(f"{path}.gz")
    read = outcome(dataset)
    plain[0]["questions_file"] = read[0]["questions_file"]
    assert read == plain


@every_table
def test_a_gzip_of_several_members_is_read_whole(dataset, table):
    plain = outcome(dataset)
    data = text(dataset, table).encode()
    members = b"".join(gzip.compress(data[start : start + 100]) for start in range(0, len(data), 100))
    put(dataset, table, members + bytes(64), packed=True)  # zeros after the end: a tape's padding
    assert outcome(dataset)[1:] == plain[1:]


@pytest.mark.parametrize("form", ["{0}-{1}-{2}", "{0}-{1}-{2} 00:00:00", "{0}{1}{2}.0", " {0}{1}{2} "])
def test_dates_of_the_metadata_are_read_in_every_form(dataset, form):
    plain = outcome(dataset)
    for row in dataset.tables[METADATA][1:]:
        row[7] = form.format(row[7][:4], row[7][4:6], row[7][6:])
    dataset.write()
    assert outcome(dataset) == plain


@pytest.mark.parametrize("written", ["2150/01/01", "01.01.2150", "1/1/2150", "2.1500101E7", "2150-01-01T00:00:00Z"])
def test_a_date_in_another_form_is_named_not_guessed(dataset, written):
    dataset.tables[METADATA][1][7] = written
    dataset.write()
    with pytest.raises(UserError, match=r"row 1 \(line 2\): study 50000011: StudyDate is missing or not a date"):
        dataset.run()


@pytest.mark.parametrize("study_id", [50000011, 50000011.0, "50000011", "50000011.0"])
def test_the_study_of_an_entity_is_known_by_its_number(tmp_path, study_id):
    rows = [{"study_id": study_id, "entity": {"edema": {"level": ["mild"], "type": None}}}]
    (tmp_path / "all_diseases.json").write_text(str(rows).replace("'", '"').replace("None", "null"))
    assert read_findings(tmp_path) == {"50000011": {"edema": {"level": "mild"}}}


@pytest.mark.parametrize(
    ("levels", "known"), [(["increasing", "moderate"], "moderate"), (["small", "acute"], "small"), (["acute"], "acute")]
)
def test_of_several_levels_the_first_with_a_severity_counts(tmp_path, levels, known):
    """The answers weigh them so too: a line that said `increasing` would call a change to severe the same."""
    rows = [{"study_id": "50000011", "entity": {"edema": {"level": levels, "type": ["focal", "linear"]}}}]
    (tmp_path / "all_diseases.json").write_text(json.dumps(rows))
    assert read_findings(tmp_path) == {"50000011": {"edema": {"level": known, "type": "focal"}}}


NO_STUDIES = {
    "an id with a fraction": '[{"study_id": 50000011.5, "entity": {}}]',
    "an id with a space": '[{"study_id": " 50000011", "entity": {}}]',
    "an id with a zero before it": '[{"study_id": "050000011", "entity": {}}]',
    "an id with a letter": '[{"study_id": "s50000011", "entity": {}}]',
    "no id": '[{"study_id": null, "entity": {}}]',
    "true for an id": '[{"study_id": true, "entity": {}}]',
    "a study twice": '[{"study_id": 50000011, "entity": {"edema": {}}}, {"study_id": 50000011, "entity": {}}]',
    "a level as text": '[{"study_id": 50000011, "entity": {"edema": {"level": "mild"}}}]',
    "a level as a number": '[{"study_id": 50000011, "entity": {"edema": {"level": [3]}}}]',
    "a level in a list of its own": '[{"study_id": 50000011, "entity": {"edema": {"level": [["mild"]]}}}]',
    "a level that is missing": '[{"study_id": 50000011, "entity": {"edema": {"level": ["nan"]}}}]',
    "a finding without name": '[{"study_id": 50000011, "entity": {"": {}}}]',
    "a finding that is missing": '[{"study_id": 50000011, "entity": {"nan": {}}}]',
    "entities as a list": '[{"study_id": 50000011, "entity": ["edema"]}]',
    "an object": '{"50000011": {}}',
    "lines": '{"study_id": 50000011, "entity": {}}\n{"study_id": 50000012, "entity": {}}',
}


@pytest.mark.parametrize("what", NO_STUDIES)
def test_entities_that_are_none_are_refused(tmp_path, what):
    (tmp_path / "all_diseases.json").write_text(NO_STUDIES[what])
    with pytest.raises(UserError, match=r"all_diseases\.json is not Medical-Diff-VQA's list of studies with entities"):
        read_findings(tmp_path)


@pytest.mark.parametrize("link", ["mimic-cxr-jpg", "mimic-cxr-jpg/files", "mimic-cxr-jpg/files/p10"])
def test_a_tree_behind_links_is_read(dataset, link):
    plain = outcome(dataset)
    place = dataset.folder / link
    place.rename(dataset.folder / "elsewhere")
    place.symlink_to(dataset.folder / "elsewhere")
    assert outcome(dataset) == plain


def test_folders_may_have_any_name(dataset, monkeypatch):
    plain = outcome(dataset)
    odd = dataset.folder / "data [v1] *"
    odd.mkdir()
    for name in ("mimic-cxr-jpg", "medical-diff-vqa"):
        (dataset.folder / name).rename(odd / name)
    monkeypatch.chdir(odd)
    data = replace(dataset.data, mimic_cxr="mimic-cxr-jpg/", diff_vqa=f"{odd}/./medical-diff-vqa/")
    read = outcome(dataset, data=data)
    assert read[2:] == plain[2:] and all(Path(study["image"]).is_file() for study in read[1])


# Refused by name ----------------------------------------------------------------------------------------------------


def zipped(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("table.csv", data)
    return out.getvalue()


OTHER_KINDS = {
    "a zip archive": (zipped, "a zip archive or a workbook, not csv or csv.gz; unpack it"),
    "packed twice": (lambda data: gzip.compress(gzip.compress(data)), "packed twice"),
    "UTF-16": (lambda data: data.decode().encode("utf-16"), "UTF-16 text, not csv or csv.gz; save it as UTF-8"),
    "a workbook": (lambda data: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + data, "a workbook"),
    "a database": (lambda data: b"SQLite format 3\0" + data, "a database"),
    "an Arrow file": (lambda data: b"ARROW1\0\0" + data, "an Arrow file"),
    "a 7z archive": (lambda data: b"7z\xbc\xaf\x27\x1c" + data, "a 7z archive"),
    "a tar archive": (lambda data: gzip.compress(b"table".ljust(257, b"\0") + b"ustar".ljust(255, b"\0")), "a tar"),
    "encrypted": (lambda data: b"-----BEGIN PGP MESSAGE-----\n" + data, "encrypted"),
    "a web page": (lambda _: b"\n<!DOCTYPE html><title>Sign in</title>", "a web page"),
    "a pointer": (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
    "lines that end with CR": (
        lambda data: data.replace(b"\r\n", b"\r"),
        r"the header is not csv \(a line end within a row; lines end with LF or CRLF",
    ),
    "nothing": (lambda _: b"", "is empty; fetch it again"),
    "rows without a header": (lambda data: data.split(b"\r\n", 1)[1], "missing column .* is its header there"),
    "a comment": (lambda data: b"# exported\r\n" + data, "missing column .* is its header there"),
    "capitals in the header": (
        lambda data: data.replace(b"study_id", b"STUDY_ID", 1),
        "missing column study_id; .* there with spaces or capitals",
    ),
    "a space in the header": (
        lambda data: data.replace(b"study_id", b"study_id ", 1),
        "missing column study_id; .* there with spaces or capitals",
    ),
    "bytes after the gzip stream": (lambda data: gzip.compress(data) + b"<html>", "the file is corrupt"),
}


@every_table
@pytest.mark.parametrize("what", OTHER_KINDS)
def test_a_file_that_is_no_table_is_named_with_what_it_is(dataset, table, what):
    change, message = OTHER_KINDS[what]
    put(dataset, table, change(text(dataset, table).encode()), packed=True)
    with pytest.raises(UserError, match=rf"{re.escape(Path(table).name)}\.gz.*{message}"):
        dataset.run()


@every_table
def test_a_table_that_is_there_packed_and_unpacked_is_refused(dataset, table):
    path = dataset.folder / table
    Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(UserError, match=rf"there is {re.escape(str(path))} and {path.name}\.gz, .*keep one of them"):
        dataset.run()


@pytest.mark.parametrize("table", [METADATA, SPLIT])
def test_tables_of_two_releases_are_refused(dataset, table):
    path = dataset.folder / table
    other = path.with_name(path.name.replace("2.0.0", "2.1.0"))
    other.write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=rf"there is {re.escape(str(path))} and {other.name}, .*keep one of them"):
        dataset.run()


@every_table
def test_a_folder_in_place_of_a_table_is_named(dataset, table):
    path = dataset.folder / table
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}: cannot be read \(Is a directory\)"):
        dataset.run()


def test_a_file_in_place_of_a_folder_is_named(dataset):
    table = str(dataset.folder / QUESTIONS)
    fix = f"data.diff_vqa={dataset.data.diff_vqa}"
    with pytest.raises(UserError, match=rf"{re.escape(f'data.diff_vqa={table}: it is not a folder; {fix}')}$"):
        dataset.run(replace(dataset.data, diff_vqa=table))
    table = str(dataset.folder / METADATA)
    with pytest.raises(UserError, match=rf"{re.escape(table)}/files is not a folder: data\.mimic_cxr names the folder"):
        dataset.run(replace(dataset.data, mimic_cxr=table))


@pytest.mark.parametrize("kind", ["jpg", "dicom"])
def test_of_a_release_one_folder_down_the_setting_is_told(dataset, kind):
    dataset.write()
    setting = {"jpg": "mimic_cxr", "dicom": "mimic_cxr_dicom"}[kind]
    release = dataset.folder / kind / "2.1.0"
    (release / "files").mkdir(parents=True)
    with pytest.raises(UserError, match=re.escape(f"give data.{setting}={release}")):
        dataset.run(replace(dataset.data, **{setting: str(release.parent)}))


ODD_ROWS = {
    "the header again": lambda lines: [*lines[:4], lines[0], *lines[4:]],
    "fields that are all empty": lambda lines: [*lines[:4], "," * lines[0].count(","), *lines[4:]],
    "spaces alone": lambda lines: [*lines[:4], "   ", *lines[4:]],
}


@every_table
@pytest.mark.parametrize("what", ODD_ROWS)
def test_an_odd_row_is_named_and_loses_nothing_else(dataset, table, what):
    put(dataset, table, "\n".join(ODD_ROWS[what](text(dataset, table).splitlines())))
    with pytest.raises(UserError, match=rf"{re.escape(Path(table).name)} row 4 \(line 5\): .*\(1 bad row in all"):
        dataset.run()
    counts, _, questions, left_out, rejected = outcome(dataset, **SKIP)
    assert [(row["file"], row["row"]) for row in rejected] == [(Path(table).name, 4)]
    assert (counts["read"], len(questions), len(left_out)) == (11 + (table == QUESTIONS), 11, 0)


@every_table
@pytest.mark.parametrize("joined", [",", "\r"])
def test_two_rows_in_one_line_are_named(dataset, table, joined):
    lines = text(dataset, table).splitlines()
    put(dataset, table, "\n".join([*lines[:4], joined.join(lines[4:6]), *lines[6:]]))
    with pytest.raises(UserError, match=rf"{re.escape(Path(table).name)} row 4 \(line 5\): "):
        dataset.run()
    counts, _, questions, _, rejected = outcome(dataset, **SKIP)
    kind = "not csv" if joined == "\r" else "wrong number of fields"
    assert [row["row"] for row in rejected if row["kind"] == kind] == [4]
    assert counts["read"] == len(questions) + counts["rejected"]["questions"]


@pytest.mark.parametrize(("column", "kind"), [(3, "unknown question type"), (6, "unknown split")])
def test_a_word_with_a_space_after_it_is_named(dataset, column, kind):
    dataset.tables[QUESTIONS][2][column] += " "
    dataset.write()
    with pytest.raises(UserError, match=rf"row 2 \(line 3\).*1 {kind}"):
        dataset.run()


NO_IDS = (
    "{}.5", "{}.00", "{}.0.0", "{}e0", "5.0000011e7", " {}", "{} ", "+{}", "-{}", "0{}", "00{}.0", "{:,}", "{:_}",
    "{:#x}", "s{}.0", "{}\N{NO-BREAK SPACE}", "\N{FULLWIDTH DIGIT FIVE}0000011", ".0", "0", "nan",
)  # fmt: skip
ID_COLUMNS = [
    (table, column)
    for table, columns in (
        (METADATA, ("subject_id", "study_id")), (SPLIT, ("study_id",)), (MIMIC_ALL, ("subject_id", "study_id")),
        (QUESTIONS, ("subject_id", "study_id", "ref_id")),
    )
    for column in columns
]  # fmt: skip


@pytest.mark.parametrize(("table", "column"), ID_COLUMNS)
@pytest.mark.parametrize("form", NO_IDS)
def test_an_id_in_another_form_is_a_bad_row_in_every_table(dataset, table, column, form):
    rows = dataset.tables[table]
    number, at = (8 if table == QUESTIONS else 4), rows[0].index(column)
    rows[number][at] = form.format(rows[number][at])
    dataset.write()
    with pytest.raises(UserError, match=rf"{re.escape(Path(table).name)} row {number} \(line {number + 1}\): .* is"):
        dataset.run()
    kinds = dataset.run(**SKIP)["rejected"]["rows_by_kind"]
    assert kinds["bad id"] == 1


def test_a_line_break_in_a_question_is_named(dataset):
    dataset.tables[QUESTIONS][2][4] = "is there\nedema?"
    counts = dataset.write().run(**SKIP)
    assert counts["rejected"] == {"questions": 2, "rows_by_kind": {"not csv": 1, "wrong number of fields": 1}}


# Images -------------------------------------------------------------------------------------------------------------


def upper_ending(path: Path) -> Path:
    return path.with_suffix(".JPG")


def upper_name(path: Path) -> Path:
    return path.with_name(path.name.upper())


@pytest.mark.parametrize("rename", [upper_ending, upper_name, lambda path: path.with_suffix(".jpeg")])
def test_an_image_under_another_name_is_missing_and_the_other_name_is_told(dataset, rename):
    path = dataset.image(50000011)
    other = path.rename(rename(path))
    message = f"image missing: {path}; there is {other.name} instead: names must match"
    with pytest.raises(UserError, match=re.escape(message)):
        dataset.run()


@pytest.mark.parametrize("level", [0, 1, 2])
def test_of_an_incomplete_download_the_folder_that_is_missing_is_named(dataset, level):
    folder = dataset.image(50000011).parents[level]
    folder.rename(dataset.folder / "elsewhere")
    with pytest.raises(UserError, match=rf"s50000011/aa11\.jpg; there is no folder {folder} \("):
        dataset.run()


def test_a_link_without_its_content_is_called_that(dataset):
    """As git-annex leaves one whose content was not fetched."""
    path = dataset.image(50000033)
    path.unlink()
    path.symlink_to("../../../../.git/annex/objects/aa.jpg")
    with pytest.raises(UserError, match="it is a link to a file that is not there"):
        dataset.run(images="exist")


@pytest.mark.parametrize(("date", "warned"), [("21500301", True), ("21500101", False), ("", False)])
def test_a_study_of_two_dates_has_that_of_its_image_and_is_a_warning(dataset, date, warned):
    first = dataset.tables[METADATA][1]
    dataset.tables[METADATA].insert(2, ["aa19", *first[1:7], date, *first[8:]])
    counts, studies, *_ = outcome(dataset.write())
    line = "1 studies have images of different dates; the date of the image that was chosen counts"
    assert list(warnings(counts)) == [line] * warned
    assert studies[0]["taken_at"].startswith("2150-01-01")


@pytest.mark.parametrize("times", [("", "9:30:15 AM"), ("9:30:15", "9:30:15 AM")])
def test_study_times_of_which_none_can_be_read_are_a_warning(dataset, times):
    for row in dataset.tables[METADATA][1:]:
        row[8] = times[row[2] == 50000032]
    line = "no StudyTime can be read (HHMMSS.fff, HH:MM:SS): the order of a day's studies and all hours are unknown"
    assert list(warnings(dataset.write().run(**ALL))) == [line] * (times[0] == "")


@pytest.mark.parametrize("others", [0, 1])
def test_images_of_which_none_is_frontal_by_its_code_are_a_warning(dataset, others):
    for row in dataset.tables[METADATA][1 + others :]:
        row[10] = ""
    start = "no image is PA or AP by its ViewCodeSequence_CodeMeaning: the first image of each study is read"
    found = list(warnings(dataset.write().run(**ALL)))
    assert [line[: len(start)] for line in found] == [start] * (not others)


def test_a_frontal_image_of_another_patient_is_not_the_studys(dataset):
    first = dataset.tables[METADATA][1]
    first[10] = "lateral"
    dataset.tables[METADATA].insert(2, ["aa19", 10000002, first[2], *first[3:10], "postero-anterior", *first[11:]])
    counts, studies, *_ = outcome(dataset.write(), on_bad="skip")
    assert counts["rejected"]["rows_by_kind"] == {"study of two patients": 1}
    assert (studies[0]["study_id"], studies[0]["dicom_id"]) == (first[2], "aa11")


def test_the_split_of_a_study_is_that_of_its_image(dataset):
    row = next(row for row in dataset.tables[SPLIT] if row[1] == 50000031)
    dataset.tables[SPLIT].insert(1, ["cc39", *row[1:3], "train"])
    counts = dataset.write().run(**ALL)
    assert counts["test_images_in_mimic_split"] == {"not listed": 0, "train": 0, "validate": 0, "test": 3}


def test_dicom_ids_in_capitals_are_other_ids(dataset):
    dataset.tables[METADATA][1][0] = "AA11"
    dataset.write()
    with pytest.raises(UserError, match=r"AA11\.jpg; there is aa11\.jpg instead"):
        dataset.run()


@pytest.mark.parametrize(
    ("table", "column", "line"),
    [
        (MIMIC_ALL, 2, "mimic_all differs from the metadata, which counts: 7 another image"),
        (SPLIT, 0, "3 test images are not in MIMIC-CXR's table of splits"),
    ],
)
def test_ids_that_other_tables_write_otherwise_are_a_warning(dataset, table, column, line):
    assert list(warnings(dataset.run(**ALL))) == []
    for row in dataset.tables[table][1:]:
        row[column] = row[column].upper()
    assert list(warnings(dataset.write().run(**ALL))) == [line]


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("images", ["read", "header", "exist"])
def test_one_file_for_two_studies_is_a_warning(dataset, link, images):
    one, other = dataset.image(50000011), dataset.image(50000012)
    other.unlink()
    link(one, other)
    found = list(warnings(dataset.run(images=images, **ALL)))
    assert found == ["2 images: the picture is another study's too (a copy or a link)"]


def test_a_copy_of_a_training_image_in_the_test_split_is_a_warning(dataset):
    """Under another id, in another format, and of another patient."""
    Image.open(dataset.image(50000011)).save(dataset.folder / "copy.png")
    (dataset.folder / "copy.png").rename(dataset.image(50000031))
    counts = dataset.run(**ALL)
    assert counts["images_in_two_splits"] == {"count": 2, "first": [50000011, 50000031]}
    copy, leak = warnings(counts)
    assert copy == "2 images: the picture is another study's too (a copy or a link)"
    assert leak.startswith("2 images (the first: study 50000011) are also those of studies in another split")


def test_blank_images_are_no_copies_of_each_other(dataset):
    for study in (50000011, 50000031):
        Image.new("L", (8, 8), 7).save(dataset.image(study))
    assert list(warnings(dataset.run(**ALL))) == ["2 images: every pixel has the same value: nothing is shown"]


@pytest.mark.parametrize("table", [METADATA, SPLIT, QUESTIONS, MIMIC_ALL])
@pytest.mark.parametrize("content", [b"", gzip.compress(b"")])
def test_an_empty_table_is_named(dataset, table, content):
    (dataset.folder / table).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{dataset.folder / table} is empty; fetch it again")):
        dataset.run()


def test_the_last_study_of_the_metadata_loses_its_own_questions_alone(dataset):
    """A question about one image has no reference study, whose position -1 would be the last one's."""
    dataset.image(50000033).unlink()
    counts, _, questions, left_out, _ = outcome(dataset, on_bad="skip", max_bad=0.9)
    assert {row["study_id"] for row in questions if row["type"] == "presence"} == {
        50000011, 50000012, 50000021, 50000022, 50000031, 50000032,
    }  # fmt: skip
    assert counts["rejected"]["questions"] == 2 and not left_out


def test_an_empty_image_is_named(dataset):
    dataset.image(50000011).write_bytes(b"")
    with pytest.raises(UserError, match=re.escape(f"{dataset.image(50000011)} is empty; fetch the file again")):
        dataset.run()


@pytest.mark.parametrize("images", ["read", "exist"])
@pytest.mark.parametrize(("number", "message"), [(errno.ESTALE, "its file system does not answer"), (errno.EIO, "")])
def test_a_mount_that_fails_leaves_no_study_out(dataset, monkeypatch, images, number, message):
    """An error of one file (EIO) does."""
    failing, lstat = dataset.image(50000011), os.lstat

    def answer(path: str) -> os.stat_result:
        if path == str(failing):
            raise OSError(number, os.strerror(number), path)
        return lstat(path)

    monkeypatch.setattr(os, "lstat", answer)
    if message:
        with pytest.raises(UserError, match=rf"image {failing} cannot be read: Stale file handle; {message}"):
            dataset.run(images=images, **SKIP)
    else:
        assert dataset.run(images=images, **SKIP)["rejected"]["rows_by_kind"]["image missing or broken"] == 1


def test_a_folder_in_place_of_an_image_is_named(dataset):
    path = dataset.image(50000011)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=re.escape(f"image {path} is not a file")):
        dataset.run()
