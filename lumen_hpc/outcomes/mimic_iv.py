"""MIMIC-IV's tables as the releases lay them out: which files and columns are read, and how phantoms are written."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lumen_hpc.data.table_files import find, require, require_visible
from lumen_hpc.files import repeatable_text

Row = Mapping[str, Any]

TABLES: dict[str, tuple[str, ...]] = {
    "hosp/patients": ("subject_id", "gender", "anchor_age", "anchor_year", "dod"),
    "hosp/admissions": (
        "subject_id", "hadm_id", "admittime", "dischtime", "deathtime", "race", "edregtime", "hospital_expire_flag",
    ),
    "hosp/d_labitems": ("itemid", "label"),
    "hosp/labevents": (
        "labevent_id", "subject_id", "hadm_id", "itemid", "charttime", "storetime", "value", "valuenum", "valueuom",
        "ref_range_lower", "ref_range_upper",
    ),
    "icu/icustays": ("subject_id", "hadm_id", "stay_id", "intime", "outtime"),
    "icu/procedureevents": ("subject_id", "stay_id", "starttime", "endtime", "itemid"),
    "ed/edstays": ("subject_id", "stay_id", "intime", "outtime"),
}  # fmt: skip
"""Table → the columns that are read."""
OPTIONAL = ("ed/edstays",)

COLUMNS = {
    "hosp/patients": "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
    "hosp/admissions": (
        "subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,admit_provider_id,admission_location,"
        "discharge_location,insurance,language,marital_status,race,edregtime,edouttime,hospital_expire_flag"
    ),
    "hosp/d_labitems": "itemid,label,fluid,category",
    "hosp/labevents": (
        "labevent_id,subject_id,hadm_id,specimen_id,itemid,order_provider_id,charttime,storetime,value,valuenum,"
        "valueuom,ref_range_lower,ref_range_upper,flag,priority,comments"
    ),
    "icu/icustays": "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los",
    "icu/procedureevents": (
        "subject_id,hadm_id,stay_id,caregiver_id,starttime,endtime,storetime,itemid,value,valueuom,location,"
        "locationcategory,orderid,linkorderid,ordercategoryname,ordercategorydescription,patientweight,"
        "statusdescription,originalamount,originalrate"
    ),
    "ed/edstays": "subject_id,hadm_id,stay_id,intime,outtime,gender,race,arrival_transport,disposition",
}
"""Table → its header in release 3.1."""
NOT_IN_2_0 = {"admit_provider_id", "order_provider_id", "caregiver_id"}
"""Columns that came with release 2.1 and later."""


def files(folder: str | Path) -> list[Path]:
    """Every file that the stage reads; UserError naming the first required table that is not there, or there twice.

    An optional one in a folder that this user may not list is no missing one either.
    """
    for table in OPTIONAL:
        require_visible("data.mimic_iv", Path(folder).expanduser() / Path(table).parent)
    paths = [(find if table in OPTIONAL else require)(folder, table) for table in TABLES]
    return [path for path in paths if path]


class Writer:
    """Writes a MIMIC-IV folder, row by row, in the columns of a release; columns not given stay empty."""

    def __init__(self, folder: Path, release: str = "3.1", compressed: bool = True, tables: Iterable[str] = COLUMNS):
        """`release`: 2.0 or 3.1. `compressed`: csv.gz (dateless, so that files repeat bit for bit) or csv."""
        assert release in ("2.0", "3.1"), release
        self._stack = ExitStack()
        self._writers: dict[str, csv.DictWriter] = {}
        self._texts: dict[str, io.TextIOWrapper] = {}
        for table in tables:
            columns = COLUMNS[table].split(",")
            if release == "2.0":
                columns = [column for column in columns if column not in NOT_IN_2_0]
            path = folder / f"{table}.csv{'.gz' * compressed}"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = self._texts[table] = self._stack.enter_context(repeatable_text(path))
            self._writers[table] = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
            self._writers[table].writeheader()

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, table: str, *rows: Row) -> None:
        """Adds rows; a time may be a datetime."""
        self._writers[table].writerows(rows)

    def line(self, table: str, text: str) -> None:
        """Adds a raw line, so that tests and phantoms can hold a broken one."""
        self._texts[table].write(text + "\n")
