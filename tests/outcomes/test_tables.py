"""MIMIC-IV as it is on disk: both kinds of file, old and new releases, and what is said of files that are broken."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import orjson
import pytest

from lumen_hpc.errors import UserError
from lumen_hpc.outcomes import outcomes as rules
from lumen_hpc.outcomes import tables
from lumen_hpc.outcomes.mimic_iv import COLUMNS, TABLES
from lumen_hpc.outcomes.write import FILES, write
from tests.outcomes import small_mimic_iv as small


def run(folder: Path, mimic_iv: Path) -> dict[str, bytes]:
    write(folder, small.studies(folder.parent / "studies.jsonl"), mimic_iv, memory_gb=0.5)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES), "the scratch database is gone"
    return {name: (folder / name).read_bytes() for name in FILES}


def test_plain_and_gzipped_old_and_new_releases_give_the_same_rows(tmp_path: Path) -> None:
    made = small.tables()
    results = []
    for number, (release, compressed) in enumerate((("3.1", True), ("3.1", False), ("2.0", True))):
        folder = small.write(tmp_path / f"iv{number}", made, release, compressed)
        results.append(run(tmp_path / f"out{number}", folder))
    assert results[0] == results[1] == results[2]


def test_lines_that_cannot_be_read_are_counted_with_their_row(tmp_path: Path) -> None:
    made = small.tables()
    folder, rows = small.write(tmp_path / "iv", made, compressed=False), len(made.rows["hosp/labevents"])
    path = folder / "hosp" / "labevents.csv"
    with path.open("ab") as out:
        out.write(b"1,2,3\n" + b"7," * 40 + b"7\n")
    run(tmp_path / "out", folder)
    counts = orjson.loads((tmp_path / "out" / "counts.json").read_bytes())
    assert counts["faults"]["row unreadable"] == 2
    named = [orjson.loads(line) for line in (tmp_path / "out" / "faults.jsonl").read_bytes().splitlines()]
    assert [row["row"] for row in named if row["kind"] == "row unreadable"] == [rows + 1, rows + 2]


def test_rows_that_a_file_holds_twice_change_no_value(tmp_path: Path) -> None:
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    once = run(tmp_path / "once", folder)
    path = folder / "hosp" / "labevents.csv"
    header, rows = path.read_bytes().split(b"\n", 1)
    path.write_bytes(header + b"\n" + rows + rows)
    twice = run(tmp_path / "twice", folder)
    assert twice["states.jsonl"] == once["states.jsonl"]
    assert b'"change":0.6' in once["states.jsonl"]
    assert orjson.loads(twice["counts.json"])["faults"]["duplicate laboratory row"] > 10


def test_a_byte_that_is_not_utf8_loses_its_row_alone(tmp_path: Path) -> None:
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / "hosp" / "patients.csv"
    path.write_bytes(path.read_bytes().rstrip(b"\n") + b"\xe9\n")
    run(tmp_path / "out", folder)
    assert orjson.loads((tmp_path / "out" / "counts.json").read_bytes())["faults"]["row unreadable"] == 1


@pytest.mark.parametrize("column", ["storetime", "comments"])
def test_a_doubled_column_is_named_if_it_is_read(tmp_path: Path, column: str) -> None:
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / "hosp" / "labevents.csv"
    header, rows = path.read_text().split("\n", 1)
    path.write_text(f"{header},{column}\n" + rows.replace("\n", ",\n"))
    if column == "storetime":
        with pytest.raises(UserError, match=r"labevents\.csv row 0 \(line 1\): column storetime appears more"):
            run(tmp_path / "out", folder)
    else:
        run(tmp_path / "out", folder)


def test_columns_that_are_not_read_may_have_any_name(tmp_path: Path) -> None:
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    plain = run(tmp_path / "plain", folder)
    for path in folder.rglob("*.csv"):
        with path.open(newline="") as stream:
            header, *rows = csv.reader(stream)
        with path.open("w", newline="") as stream:  # with pandas' index, which has no name
            names = ["", *header, "SUBJECT_ID", "a ' name"]
            csv.writer(stream).writerows([names, *([number, *row, "", ""] for number, row in enumerate(rows))])
    assert run(tmp_path / "indexed", folder) == plain


def test_numbers_as_pandas_writes_them_give_the_same_rows(tmp_path: Path) -> None:
    made = small.tables()
    plain = run(tmp_path / "plain", small.write(tmp_path / "iv", made))
    for row in (row for rows in made.rows.values() for row in rows):
        for name in {"subject_id", "hadm_id", "stay_id", "itemid", "hospital_expire_flag", "anchor_age"} & row.keys():
            row[name] = f"{row[name]}.0" if str(row[name]).isdigit() else row[name]
    floats = run(tmp_path / "floats", small.write(tmp_path / "iv-floats", made))
    assert floats == plain


@pytest.mark.parametrize("text", ["NULL", "\\N"])
def test_a_missing_value_written_as_text_is_missing(tmp_path: Path, text: str) -> None:
    """As MySQL, PostgreSQL and pandas export a table: the living have no `dod` that cannot be read."""
    made = small.tables()
    plain = run(tmp_path / "plain", small.write(tmp_path / "iv", made))
    for table, rows in made.rows.items():
        filled = [{name: row.get(name, "") for name in COLUMNS[table].split(",")} for row in rows]
        rows[:] = [{name: text if value == "" else value for name, value in row.items()} for row in filled]
    assert run(tmp_path / "texts", small.write(tmp_path / "iv-texts", made)) == plain


NO_IDS = (
    "{}.5",
    "{}.0000001",
    "{}.00",
    "{}e0",
    " {} ",
    "+{}",
    "0{}",
    "{:#x}",
    "{:,}",
    "{:_}",
    "-{}",
    "{}\N{NO-BREAK SPACE}",
)


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column) for table, columns in TABLES.items() for column in columns if column.endswith("id")],
)
def test_an_id_in_another_form_is_a_bad_row_with_its_number_and_is_read_as_no_other_row(
    tmp_path: Path, table: str, column: str
) -> None:
    made = small.tables()
    plain = run(tmp_path / "plain", small.write(tmp_path / "iv", made))
    rows = made.rows[table]
    number, whole = next((n, row) for n, row in enumerate(rows) if str(row.get(column, "")).isdigit())
    rows[number:number] = [{**whole, column: form.format(int(whole[column]) % 1000 + 20_000_000)} for form in NO_IDS]
    odd = run(tmp_path / "out", small.write(tmp_path / "iv-odd", made))
    assert (odd["states.jsonl"], odd["outcomes.jsonl"]) == (plain["states.jsonl"], plain["outcomes.jsonl"])
    before, after = (orjson.loads(files["counts.json"])["faults"] for files in (plain, odd))
    assert after == {**before, "bad id": before["bad id"] + len(NO_IDS)}
    named = [orjson.loads(line) for line in odd["faults.jsonl"].splitlines()]
    ours = [row for row in named if row["kind"] == "bad id" and row["column"] == column and row["table"] == table]
    assert [row["row"] for row in ours][: len(NO_IDS)] == list(range(number + 1, number + 1 + len(NO_IDS)))


@pytest.mark.parametrize("bound", ["nan", "NaN", ""])
def test_a_reference_range_that_is_no_number_makes_no_value_normal(tmp_path: Path, bound: str) -> None:
    made = small.tables()
    for row in made.rows["hosp/labevents"]:
        row.update(ref_range_lower=bound, ref_range_upper=bound)
    states = run(tmp_path / "out", small.write(tmp_path / "iv", made))["states.jsonl"]
    assert b'"level":null' in states and b'"level":"normal"' not in states


@pytest.mark.parametrize(
    ("table", "column", "time", "kind"),
    [
        ("hosp/patients", "dod", "290000-01-01", "dod not a date"),
        ("hosp/patients", "dod", "infinity", "dod not a date"),
        ("hosp/admissions", "dischtime", "infinity", "admission without times"),
        ("hosp/admissions", "dischtime", "9999-12-31 00:00:00", "admission without times"),
    ],
)
def test_a_time_without_end_is_no_time(tmp_path: Path, table: str, column: str, time: str, kind: str) -> None:
    made = small.tables()
    made.rows[table][0][column] = time
    counts = orjson.loads(run(tmp_path / "out", small.write(tmp_path / "iv", made))["counts.json"])
    assert counts["faults"][kind] == 2  # one is planted


def outcomes_of(files: dict[str, bytes], case: str) -> dict:
    rows = map(orjson.loads, files["outcomes.jsonl"].splitlines())
    return next(row["outcomes"] for row in rows if row["subject_id"] == small.SUBJECTS[case])


@pytest.mark.parametrize(
    ("table", "column", "value", "outcome"),
    [
        ("hosp/patients", "dod", "9/26/2150", "death_30d"),
        ("hosp/patients", "dod", "9/26/2150", "survival"),
        ("icu/icustays", "intime", "", "icu_48h"),
        ("icu/icustays", "intime", "3/11/2150 8:30", "icu_24h"),
        ("icu/procedureevents", "starttime", "", "ventilation_48h"),
        ("icu/procedureevents", "starttime", "3/11/2150 18:30", "ventilation_24h"),
    ],
)
def test_what_happened_at_a_time_that_cannot_be_read_is_not_said_never_to_happen(
    tmp_path: Path, table: str, column: str, value: str, outcome: str
) -> None:
    made = small.tables()
    made.rows[table][0][column] = value
    found = outcomes_of(run(tmp_path / "out", small.write(tmp_path / "iv", made)), "ordinary")
    assert found[outcome] == {"unknown": rules.UNTIMED}
    assert found["in_hospital_death"] == {"value": False}


@pytest.mark.parametrize("dischtime", ["", small.at(-30)])
@pytest.mark.parametrize(
    ("deathtime", "flag", "death"),
    [
        (small.at(300), "1", {"value": True}),
        (small.at(300), "0", {"value": True}),
        ("", "1", {"unknown": rules.UNTIMED}),
        ("", "0", {"value": False}),
    ],
)
def test_a_death_in_an_admission_that_is_left_out_is_one(
    tmp_path: Path, dischtime: str, deathtime: str, flag: str, death: dict
) -> None:
    made, case = small.tables(), "very old"
    made.stay(case, 290, 310, number=1)
    made.rows["hosp/admissions"][-1].update(dischtime=dischtime, deathtime=deathtime, hospital_expire_flag=flag)
    found = outcomes_of(run(tmp_path / "out", small.write(tmp_path / "iv", made)), case)
    assert found["death_30d"] == death


@pytest.mark.parametrize("table", [table for table in TABLES if table != "hosp/d_labitems"])
def test_a_table_of_whose_times_none_can_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    """A spreadsheet writes times its own way: nobody would ever be in intensive care."""
    monkeypatch.setattr(tables, "FEWEST_TIMES", 1)
    made = small.tables()
    for row in made.rows[table]:
        row.update({column: "3/11/2150 8:30" for column in row if column.endswith("time") or column == "dod"})
    with pytest.raises(UserError, match=f"{table}: none of .* times can be read"):
        run(tmp_path / "out", small.write(tmp_path / "iv", made))


def test_a_ventilation_without_an_end_ends_with_its_stay(tmp_path: Path) -> None:
    made, case = small.tables(), "in icu"
    for row in made.rows["icu/icustays"]:
        if row["subject_id"] == small.SUBJECTS[case]:
            row["outtime"] = small.at(-1)
    found = outcomes_of(run(tmp_path / "out", small.write(tmp_path / "iv", made)), case)
    assert found["ventilation_24h"] == found["icu_24h"] == {"value": False}


def test_an_icu_stay_without_any_end_is_no_state_and_no_outcome(tmp_path: Path) -> None:
    made, case = small.tables(), "in icu"
    for row in made.rows["icu/icustays"]:
        row["hadm_id"] = 29_999_999
    files = run(tmp_path / "out", small.write(tmp_path / "iv", made))
    found = outcomes_of(files, case)
    assert found["ventilation_24h"] == found["icu_24h"] == {"unknown": rules.UNTIMED}
    states = [orjson.loads(line) for line in files["states.jsonl"].splitlines()]
    assert next(row["state"] for row in states if row["subject_id"] == small.SUBJECTS[case])["place"] == "hospital"


@pytest.mark.parametrize("packed", [True, False])
def test_whether_a_table_is_packed_is_seen_in_its_bytes(tmp_path: Path, packed: bool) -> None:
    made = small.tables()
    plain = run(tmp_path / "plain", small.write(tmp_path / "iv", made, compressed=packed))
    for path in (folder := small.write(tmp_path / "renamed", made, compressed=packed)).rglob("*.csv*"):
        path.rename(path.with_name(path.name.split(".")[0] + (".csv" if packed else ".csv.gz")))
    assert run(tmp_path / "out", folder) == plain


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    folder = small.write(tmp_path / "iv", small.tables(), without="icu/icustays")
    with pytest.raises(UserError, match=r"there is no icu/icustays\.csv"):
        run(tmp_path / "out", folder)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / "hosp" / "labevents.csv"
    path.write_text(path.read_text().replace("storetime", "stored_at", 1))
    with pytest.raises(UserError, match=r"labevents\.csv row 0 \(line 1\): missing column storetime"):
        run(tmp_path / "out", folder)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (1, r"hosp/labevents\.csv\.gz after line 0: the file is corrupt"),
        (3000, r"data\.mimic_iv=.*download the file again"),
    ],
)
def test_a_gzip_stream_that_breaks_off_is_named(tmp_path: Path, times: int, message: str) -> None:
    folder = small.write(tmp_path / "iv", small.tables())
    path = folder / "hosp" / "labevents.csv.gz"
    header, rows = gzip.decompress(path.read_bytes()).split(b"\n", 1)
    path.write_bytes(gzip.compress(header + b"\n" + rows * times)[:-400])
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", folder)


def test_no_studies_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "studies.jsonl").write_text("")
    with pytest.raises(UserError, match="holds no study"):
        write(tmp_path / "out", tmp_path / "studies.jsonl", small.write(tmp_path / "iv", small.tables()))
