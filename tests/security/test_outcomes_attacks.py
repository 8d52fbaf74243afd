"""Attacks through a folder of MIMIC-IV: names that are SQL or patterns, rows that hide others, text in messages."""

from __future__ import annotations

import csv
import gzip
import os
import tracemalloc
from pathlib import Path

import duckdb
import pytest

from lumen_hpc.errors import UserError
from lumen_hpc.outcomes.histories import race_group
from lumen_hpc.outcomes.tables import scratch
from lumen_hpc.outcomes.write import FILES, write
from tests.outcomes import small_mimic_iv as small

MARKER = "Zebulon Quatermain"


def run(folder: Path, mimic_iv: Path) -> dict[str, bytes]:
    write(folder, small.studies(folder.parent / f"{folder.name}.studies.jsonl"), mimic_iv, memory_gb=0.5)
    return {name: (folder / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    return run(folder / "out", small.write(folder / "iv", small.tables(), compressed=False))


@pytest.mark.parametrize("name", ["iv[12]", "iv*", "iv?", "it's", 'a"b', "iv'); DROP TABLE studies; --"])
def test_a_folder_whose_name_is_a_pattern_or_sql_is_read_alone(tmp_path, expected, name):
    """`iv[12]` also matches its neighbour `iv1`."""
    for neighbour in ("iv1", "ivx"):
        small.write(tmp_path / neighbour, small.tables(), compressed=False)
        labs = tmp_path / neighbour / "hosp" / "labevents.csv"
        labs.write_text(labs.read_text().replace("mg/dL", "g/L"))
    folder = small.write(tmp_path / name, small.tables(), compressed=False)
    assert run(tmp_path / "out", folder) == expected


@pytest.mark.parametrize("column", ["x') UNION SELECT 1 --", "it's", 'quo"te', "a b", "{}", "x}", "select"])
def test_a_column_whose_name_is_sql_is_a_name(tmp_path, expected, column):
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / "hosp" / "labevents.csv"
    head, *rows = path.read_text().splitlines()
    quoted = '"' + column.replace('"', '""') + '"'
    path.write_text("\n".join([f"{head},{quoted}", *(f"{row},1" for row in rows)]) + "\n")
    assert run(tmp_path / "out", folder) == expected


@pytest.mark.parametrize("table", ["hosp/labevents", "hosp/admissions", "icu/icustays"])
def test_two_stray_quotes_cannot_hide_the_rows_between_them(tmp_path, table):
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / f"{table}.csv"
    head, first, *rows, last = path.read_text().splitlines()
    cut = first.rindex(",") + 1  # the first row's last field begins with a quote; the last row's ends with one
    path.write_text("\n".join([head, first[:cut] + '"' + first[cut:], *rows, last + '"']) + "\n")
    # Between them a quoted field can close the quote, and then another one stays open: named as well.
    joined, unclosed = (
        f"{table}: a stray quote joins rows into one, the row that begins with",
        f"{table}, row 1: a quote",
    )
    with pytest.raises(UserError, match=f"{joined}|{unclosed}"):
        run(tmp_path / "out", folder)


def test_a_quote_that_is_never_closed_cannot_hide_the_rows_after_it(tmp_path):
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / "hosp" / "labevents.csv"
    lines = path.read_text().splitlines()
    cut = lines[5].rindex(",") + 1
    lines[5] = lines[5][:cut] + '"' + lines[5][cut:]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"hosp/labevents, row 5: a quote that is never closed"):
        run(tmp_path / "out", folder)


@pytest.mark.parametrize("mixed", ["hosp/labevents", "hosp/patients"])
def test_line_ends_of_two_kinds_are_named(tmp_path, mixed):
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / f"{mixed}.csv"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n", 3))
    with pytest.raises(UserError, match=r"lines end in two ways \(LF and CRLF\); download the file again"):
        run(tmp_path / "out", folder)


@pytest.mark.parametrize("comment", ["seen,\nsent on", "cells:\n12,300", "Kreatinin\n1,5 mg/dl"])
def test_a_comment_of_two_lines_is_a_comment(tmp_path, expected, comment):
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / "hosp" / "labevents.csv"
    with path.open(newline="") as file:
        head, *rows = csv.reader(file)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([[*head, "remark"], *([*row, comment] for row in rows)])
    assert run(tmp_path / "out", folder) == expected


@pytest.mark.parametrize("broken", ["value", "bytes", "fields", "line", "gzip"])
def test_no_text_of_a_row_reaches_a_message_or_a_file(tmp_path, broken):
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / "hosp" / "labevents.csv"
    head, *rows = path.read_text().splitlines()
    width = head.count(",") + 1
    columns = head.split(",")
    marked = [MARKER if column not in ("subject_id", "itemid") else None for column in columns]
    kept = rows[0].split(",")
    row = ",".join(mark or old for mark, old in zip(marked, kept))
    bad = {
        "value": row.encode(),
        "bytes": row.encode() + b"\xff\xfe",
        "fields": ",".join([MARKER] * (width + 3)).encode(),
        "line": row.encode() + MARKER.encode() * 200_000,
        "gzip": row.encode(),
    }[broken]
    content = "\n".join([head, *rows]).encode() + b"\n" + bad + b"\n"
    if broken == "gzip":
        path.unlink()
        path = path.with_suffix(".csv.gz")
        content = gzip.compress(content)[:-9]
    path.write_bytes(content)
    message = ""
    try:
        run(tmp_path / "out", folder)
    except UserError as error:
        message = str(error)
    leaks = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and MARKER.encode() in file.read_bytes()]
    assert leaks == [] and MARKER not in message
    assert broken != "gzip" or "the file is corrupt" in message


@pytest.mark.parametrize("race", [MARKER, "<script>alert(1)</script>", "=cmd()", "\x1b[2J", "whitewashed", "$\\frac"])
def test_a_text_in_the_column_of_races_is_no_subgroup(tmp_path, race):
    """A subgroup's name is on the page of outcomes, and in a file that is no record's."""
    tables = small.tables()
    for row in tables.rows["hosp/admissions"]:
        row["race"] = race
    contents = run(tmp_path / "out", small.write(tmp_path / "iv", tables, compressed=False))
    for content in contents.values():
        assert race.encode() not in content and b"whitewashed" not in content
    assert b"race of no known kind" in b"".join(contents.values())


@pytest.mark.parametrize(
    "race", ["WHITE - RUSSIAN", "HISPANIC/LATINO - CUBAN", "UNABLE TO OBTAIN", "black/cape verdean"]
)
def test_the_kinds_of_the_release_are_groups(race):
    assert race_group(race) == race.replace("/", " ").split()[0].lower()


@pytest.mark.parametrize("table", ["hosp/labevents", "hosp/patients", "ed/edstays"])
@pytest.mark.parametrize("kind", ["line", "pipe", "bomb"])
def test_a_table_without_an_end_is_one_line(tmp_path, table, kind):
    folder = small.write(tmp_path / "iv", small.tables(), compressed=False)
    path = folder / f"{table}.csv"
    path.unlink(missing_ok=True)
    if kind == "line":
        path.write_bytes(b"a," * 200_000)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.with_suffix(".csv.gz").write_bytes(gzip.compress(b"x" * (1 << 20)) * 200)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"more than 256 KiB|a pipe"):
            run(tmp_path / "out", folder)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_the_scratch_database_loads_no_extension_and_is_private(tmp_path):
    with scratch(tmp_path, 0.5, 1) as database:
        (place,) = tmp_path.iterdir()
        assert os.stat(place).st_mode & 0o077 == 0
        with pytest.raises(duckdb.Error):
            database.execute("SELECT * FROM read_csv('https://localhost:1/x.csv')")
        for name in ("autoinstall_known_extensions", "autoload_known_extensions"):
            assert database.execute(f"SELECT current_setting('{name}')").fetchone() == (False,)
    assert list(tmp_path.iterdir()) == []
