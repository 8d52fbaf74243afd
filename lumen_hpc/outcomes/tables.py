"""MIMIC-IV's tables as they are on disk, csv or csv.gz, streamed by DuckDB with their columns found by name.

Releases 2.x and 3.x differ in columns that are not read here. Every field is read as text and cast where it is used,
so that a value that cannot be cast is seen and counted. Memory is bounded: DuckDB spills to the scratch folder.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb

from lumen_hpc.data.csv_files import CsvFile
from lumen_hpc.errors import UserError
from lumen_hpc.files import GZIP, open_regular
from lumen_hpc.outcomes.faults import NAMED_PER_KIND, Faults
from lumen_hpc.outcomes.mimic_iv import TABLES, files

FUSED_ROW = "\\n[0-9]+,[0-9]{5,}"
"""The beginning of a row in a field that swallowed it: two ids. `12,300` in a comment has fewer digits."""
WIDTH = {"MISSING COLUMNS", "TOO MANY COLUMNS"}
BROKEN_LINES = "a quote that is never closed takes the rows after it, or lines end in two ways (LF and CRLF)"
MISSING = ("", "NULL", "null", "\\N", "NaN", "nan", "NaT", "None", "<NA>")
"""Texts of a missing value: the release leaves the field empty; databases and pandas write the others."""
FEWEST_TIMES = 20
"""So many rows without a readable time, and none with one, are no accident."""
_ID = "[1-9][0-9]{0,17}([.]0)?"
"""An id: digits, or as pandas writes a column of ids in which one is missing."""


def no_id(column: str) -> str:
    """SQL that is true where a text is no id, or is missing."""
    return f"NOT coalesce(regexp_full_match({column}, '{_ID}'), false)"


def id_in(column: str) -> str:
    """SQL of an id as a number, null for any other text: a cast alone rounds 10000001.5 and reads ' 1' and 1e7."""
    return f"CASE WHEN regexp_full_match({column}, '{_ID}') THEN TRY_CAST({column} AS BIGINT) END"


def bad_id(table: str) -> str:
    """SQL of the first column of a row that should hold an id and does not; null for a good row.

    Any id may be missing, except those of the patient and the item.
    """
    ids = [column for column in TABLES[table] if column.endswith("id")]
    conditions = {column: f"NOT regexp_full_match({column}, '{_ID}')" for column in ids}
    conditions |= {column: no_id(column) for column in ids if column in ("subject_id", "itemid")}
    cases = " ".join(f"WHEN {condition} THEN '{column}'" for column, condition in conditions.items())
    return f"CASE {cases} END"


def of_the_run(table: str) -> str:
    """SQL that is true for the run's patients (table `patients_of_run`), and for rows without a patient's id."""
    if "subject_id" not in TABLES[table]:
        return "true"
    subject = id_in("subject_id")
    return f"({subject} IS NULL OR {subject} IN (SELECT subject FROM patients_of_run))"


class Tables:
    """A scratch database that reads the tables of one MIMIC-IV folder."""

    def __init__(self, folder: str | Path, database: duckdb.DuckDBPyConnection, faults: Faults) -> None:
        self.folder, self.database, self._faults = Path(folder).expanduser(), database, faults
        self._paths = {path.name.split(".")[0]: path for path in files(self.folder)}

    def has(self, table: str) -> bool:
        """Whether an optional table is there."""
        return table.split("/")[1] in self._paths

    def scan(self, table: str) -> str:
        """SQL that reads a table: every column as text, `MISSING` as null.

        Raises UserError for a column that is read and not there, or there twice. Rows that cannot be read wait in
        `reject_errors` (`count_rejects`). A field may span lines; one that holds whole rows, between two stray quotes,
        ends the query.
        """
        path = self._paths[table.split("/")[1]]
        header = CsvFile(path, TABLES[table]).read_header()
        # Any other column may have any name: pandas' index has none, and DuckDB knows no capitals.
        header = [name if name in TABLES[table] else f"column {number}" for number, name in enumerate(header)]
        columns = ", ".join(f"{_sql_text(column)}: 'VARCHAR'" for column in header)
        has_newline = " OR ".join(f"contains({_sql_name(column)}, chr(10))" for column in header)
        has_fused_row = " OR ".join(f"regexp_matches({_sql_name(column)}, '{FUSED_ROW}')" for column in header)
        compression = "'gzip'" if _is_gzip(path) else "'none'"
        first_id = f"coalesce(TRY_CAST({_sql_name(header[0])} AS BIGINT)::VARCHAR, 'no number')"
        message = f"'{table}: a stray quote joins rows into one, the row that begins with '"
        return (
            f"(SELECT * FROM read_csv({_sql_text(glob.escape(str(path)))}, header = true, auto_detect = false, "
            f"columns = {{{columns}}}, compression = {compression}, delim = ',', quote = '\"', escape = '\"', "
            f"nullstr = [{', '.join(map(_sql_text, MISSING))}], store_rejects = true, rejects_limit = 0) "
            f"WHERE CASE WHEN {has_newline} THEN CASE WHEN {has_fused_row} THEN error({message} || {first_id}) "
            "ELSE true END ELSE true END)"
        )

    def rows(self, table: str, select: str) -> Iterator[tuple[Any, ...]]:
        """Rows (subject_id, *select) of a table, of the run's patients (table `patients_of_run`) alone."""
        query = f"SELECT {bad_id(table)}, {id_in('subject_id')}, {select} FROM {self.scan(table)} "
        bad_ids = 0
        for column, *row in self.fetch(query + f"WHERE {of_the_run(table)}"):
            if column:
                bad_ids += 1
            else:
                yield tuple(row)
        self.count_rejects(table)
        self.count_bad_ids(table, bad_ids)

    def fetch(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Rows of a query, a block at a time. UserError for a file that breaks off."""
        with readable(self.folder):
            cursor = self.database.execute(query)
            while block := cursor.fetchmany(10_000):
                yield from block

    def require_times(self, table: str, unreadable: int, any_readable: bool) -> None:
        """Raises UserError for a table of whose times none can be read: its events would count as never."""
        if unreadable >= FEWEST_TIMES and not any_readable:
            raise UserError(
                f"data.mimic_iv={self.folder}: {table}: none of {unreadable} times can be read; MIMIC-IV writes them "
                "as 2150-03-10 12:30:15, spreadsheets do not; download the file again"
            )

    def count_bad_ids(self, table: str, count: int, condition: str = "true") -> None:
        """Counts rows with a bad id, and names the first by number, for which the table is read once more.

        `condition`: SQL of which rows these are.
        """
        if not count:
            return
        self.database.execute("SET preserve_insertion_order = true")  # or rows would have any number
        numbered = f"(SELECT row_number() OVER () AS row, * FROM {self.scan(table)})"
        where = f"{bad_id(table)} IS NOT NULL AND {of_the_run(table)} AND ({condition})"
        named_rows = list(
            self.fetch(f"SELECT row, {bad_id(table)} FROM {numbered} WHERE {where} LIMIT {NAMED_PER_KIND}")
        )
        self.database.execute("SET preserve_insertion_order = false")
        unreadable_rows = self.database.execute("SELECT DISTINCT line - 1 FROM reject_errors ORDER BY 1").fetchall()
        self.database.execute("DELETE FROM reject_errors")
        for row, column in named_rows:
            for (earlier,) in unreadable_rows:
                row += earlier <= row  # a row that could not be read has a number too
            self._faults("bad id", table, row=row, column=column)
        if count > len(named_rows):
            self._faults("bad id", table, count - len(named_rows))

    def count_rejects(self, table: str) -> None:
        """Counts and names the lines that the last scan could not read."""
        lines = self.database.execute("SELECT DISTINCT line, error_type FROM reject_errors ORDER BY line").fetchall()
        for line, error in lines:
            if error == "UNQUOTED VALUE":
                raise UserError(
                    f"data.mimic_iv={self.folder}: {table}, row {line - 1}: {BROKEN_LINES}; download the file again"
                )
            reason = "number of fields" if error in WIDTH else str(error).lower()
            self._faults("row unreadable", table, row=line - 1, reason=reason)  # row 1 is the first below the header
        self.database.execute("DELETE FROM reject_errors")


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turns DuckDB's error about a broken file into a UserError: its first line, since others may quote a row."""
    try:
        yield
    except (duckdb.IOException, duckdb.InvalidInputException) as error:
        message = str(error).splitlines()[0].removeprefix("Invalid Input Error: ")
        if "state machine" in message:
            message = BROKEN_LINES
        raise UserError(f"data.mimic_iv={folder}: {message}; download the file again") from None


@contextmanager
def scratch(folder: Path, memory_gb: float, threads: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in a temporary folder under `folder` that takes at most so much memory and is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".scratch-") as place:
        settings: dict[str, Any] = {
            "memory_limit": f"{memory_gb}GB", "threads": threads, "preserve_insertion_order": False,
            "temp_directory": place, "autoinstall_known_extensions": False, "autoload_known_extensions": False,
        }  # fmt: skip
        database = duckdb.connect(str(Path(place) / "scratch.duckdb"), config=settings)
        try:
            yield database
        finally:
            database.close()


def _is_gzip(path: Path) -> bool:
    """By its first bytes, as prepare goes: a browser unpacks a download and keeps its name."""
    with open_regular(path) as stream:
        return stream.read(len(GZIP)) == GZIP


def _sql_name(column: str) -> str:
    """A column's name in SQL."""
    return '"' + column.replace('"', '""') + '"'


def _sql_text(text: str) -> str:
    """A text in SQL."""
    return "'" + text.replace("'", "''") + "'"
