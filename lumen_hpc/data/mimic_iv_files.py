"""The files of MIMIC-IV's tables: as the release packs them, or unpacked."""

from __future__ import annotations

from pathlib import Path

from lumen_hpc.errors import UserError

PATIENTS = "hosp/patients"
"""Sex and age, which MIMIC-CXR lacks."""


def find(mimic_iv: str | Path, table: str) -> Path | None:
    """The file of a table such as `hosp/patients` in MIMIC-IV's folder; None if there is none.

    Raises UserError where the table is there both packed and unpacked, since the two may differ.
    """
    folder = Path(mimic_iv).expanduser()
    found = [path for end in ("csv", "csv.gz") if (path := folder / f"{table}.{end}").is_file()]
    if len(found) == 2:
        raise UserError(f"data.mimic_iv={mimic_iv}: there is {found[0]} and {found[1].name}; remove one of the two")
    return found[0] if found else None


def require(mimic_iv: str | Path, table: str) -> Path:
    """As `find`; raises UserError if there is no such file."""
    if (path := find(mimic_iv, table)) is None:
        raise UserError(
            f"data.mimic_iv={mimic_iv}: there is no {table}.csv or .csv.gz; give the folder of MIMIC-IV that holds "
            "hosp/ and icu/"
        )
    return path
