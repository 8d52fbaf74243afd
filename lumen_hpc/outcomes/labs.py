"""The panel's laboratory values at each study's time: one streaming pass over labevents, then the last known values.

labevents is MIMIC-IV's largest table (158 million rows, 13 GB of text). One pass keeps the panel's rows of the run's
patients in the scratch database; values are then found patient group by patient group, so that memory is bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb

from lumen_hpc.outcomes.faults import NAMED_PER_KIND, Faults
from lumen_hpc.outcomes.panel import PANEL
from lumen_hpc.outcomes.tables import Tables, bad_id, id_in, no_id, of_the_run, readable

MAX_AGE_HOURS = 72
"""Oldest value [h before the study] that still describes the patient at its time."""
LOOKBACK_HOURS = 168
"""Oldest value [h before the study] that the last one is compared with."""
PATIENT_GROUPS = 16
"""Groups of patients that are joined one after another."""

FAULTS = {
    "c": "laboratory row without charttime",
    "s": "laboratory row without storetime",
    "t": "text in value without valuenum",
    "v": "laboratory row without value",
    "u": "laboratory row of another unit",
    "i": "laboratory value impossible",
}


def read_labs(tables: Tables, faults: Faults) -> None:
    """Fills the scratch table `labs` from labevents and names its faults.

    Needs the tables `patients_of_run(subject)` and `studies(place, subject, taken)`.
    """
    database = tables.database
    positions = _check_items(tables, faults)
    database.execute(
        "CREATE TABLE panel (item BIGINT, analyte UTINYINT, units VARCHAR[], lowest DOUBLE, highest DOUBLE)"
    )
    for place in positions:
        analyte = PANEL[place]
        database.execute(
            "INSERT INTO panel VALUES (?, ?, ?, ?, ?)",
            [analyte.itemid, place, list(analyte.units), analyte.lowest, analyte.highest],
        )
    # Compared as text, since 158 million casts would take longer; pandas may have written `50912.0`.
    items = ", ".join(f"'{PANEL[place].itemid}{end}'" for place in positions for end in ("", ".0")) or "''"
    of_the_panel = f"itemid IN ({items}) OR {no_id('itemid')}"
    with readable(tables.folder):
        database.execute(f"""
            CREATE TABLE labs AS
            WITH read AS (
                SELECT {id_in("labevent_id")} AS id, {id_in("subject_id")} AS subject, {id_in("itemid")} AS item,
                       {bad_id("hosp/labevents")} AS bad,
                       TRY_CAST(charttime AS TIMESTAMP) AS charted, TRY_CAST(storetime AS TIMESTAMP) AS stored,
                       value, TRY_CAST(valuenum AS DOUBLE) AS number, lower(trim(coalesce(valueuom, ''))) AS unit,
                       nullif(TRY_CAST(ref_range_lower AS DOUBLE), 'nan'::DOUBLE) AS low,
                       nullif(TRY_CAST(ref_range_upper AS DOUBLE), 'nan'::DOUBLE) AS high,
                       hadm_id IS NULL AS outside
                FROM {tables.scan("hosp/labevents")}
                WHERE ({of_the_panel}) AND {of_the_run("hosp/labevents")}
            )
            SELECT id, subject, analyte, charted, stored, number, unit, low, high, outside,
                   CASE WHEN bad IS NOT NULL THEN 'b' WHEN charted IS NULL THEN 'c' WHEN stored IS NULL THEN 's'
                        WHEN number IS NULL AND value IS NOT NULL THEN 't' WHEN number IS NULL THEN 'v'
                        WHEN NOT list_contains(units, unit) THEN 'u'
                        WHEN NOT number BETWEEN lowest AND highest THEN 'i' END AS fault
            FROM read LEFT JOIN panel USING (item) WHERE bad IS NOT NULL OR analyte IS NOT NULL""")
    tables.count_rejects("hosp/labevents")
    (bad,) = database.execute("SELECT count(*) FROM labs WHERE fault = 'b'").fetchone() or (0,)
    tables.count_bad_ids("hosp/labevents", bad, of_the_panel)
    database.execute("DELETE FROM labs WHERE fault = 'b'")
    _count_faults(database, faults)
    (charted,) = database.execute("SELECT count(charted) FROM labs").fetchone() or (0,)
    tables.require_times("hosp/labevents", faults.counts["laboratory row without charttime"], charted > 0)


def _check_items(tables: Tables, faults: Faults) -> list[int]:
    """Positions of the analytes whose id d_labitems knows under their label; the others are named."""
    rows = list(tables.fetch(f"SELECT {id_in('itemid')}, label FROM {tables.scan('hosp/d_labitems')}"))
    tables.count_rejects("hosp/d_labitems")
    tables.count_bad_ids("hosp/d_labitems", sum(item is None for item, _ in rows))
    labels = dict(rows)
    positions = []
    for place, analyte in enumerate(PANEL):
        label = labels.get(analyte.itemid) or ""
        if label.strip().lower() == analyte.label.lower():
            positions.append(place)
        else:
            faults("laboratory item of another name", "d_labitems", itemid=analyte.itemid, analyte=analyte.name)
    return positions


def _count_faults(database: duckdb.DuckDBPyConnection, faults: Faults) -> None:
    """Counts the faults of rows, and names the first of each kind by labevent_id."""
    for code, count in database.execute(
        "SELECT fault, count(*) FROM labs WHERE fault IS NOT NULL GROUP BY 1"
    ).fetchall():
        _name(database, faults, FAULTS[code], f"fault = '{code}'", count)
    (without_hadm,) = database.execute("SELECT count(*) FROM labs WHERE outside").fetchone() or (0,)
    if without_hadm:
        _name(database, faults, "laboratory row without hadm_id", "outside", without_hadm)
    (duplicates,) = database.execute("SELECT count(id) - count(DISTINCT id) FROM labs").fetchone() or (0,)
    if duplicates:
        is_duplicate = "id IS NOT NULL QUALIFY row_number() OVER (PARTITION BY id) > 1"
        _name(database, faults, "duplicate laboratory row", is_duplicate, duplicates)
    units: dict[int, list[tuple[str, int]]] = {}
    for place, unit, count in database.execute("SELECT analyte, unit, count(*) FROM labs GROUP BY ALL").fetchall():
        units.setdefault(place, []).append((unit, count))
    for place, unit_counts in sorted(units.items()):
        if len(unit_counts) > 1:
            counts = {unit or "(none)": count for unit, count in sorted(unit_counts)}
            faults("several units", "labevents", analyte=PANEL[place].name, itemid=PANEL[place].itemid, units=counts)


def _name(database: duckdb.DuckDBPyConnection, faults: Faults, kind: str, where: str, count: int) -> None:
    query = f"SELECT id FROM labs WHERE {where} ORDER BY id LIMIT {NAMED_PER_KIND}"
    ids = [labevent for (labevent,) in database.execute(query).fetchall()]
    for labevent in ids:
        faults(kind, "labevents", labevent_id=labevent)
    if count > len(ids):
        faults(kind, "labevents", count - len(ids))


def latest(tables: Tables) -> Iterator[tuple[int, dict[str, dict[str, Any]]]]:
    """(place of the study, its values by analyte) of every study that has any, in the order of the studies.

    Of each analyte: {value, unit, low, high (reference range of the row, null where it has none), level (high, low,
    normal or null), hours (before the study), change (against the value before, or null)}. Only rows with charttime
    and storetime at or before the study take part.
    """
    database = tables.database
    database.execute(
        "CREATE TABLE latest (place INTEGER, analyte UTINYINT, rank UTINYINT, number DOUBLE, low DOUBLE, high DOUBLE, "
        "hours DOUBLE)"
    )
    for group in range(PATIENT_GROUPS):
        database.execute(f"""
            INSERT INTO latest
            WITH known AS (
                SELECT place, analyte, number, low, high, date_diff('second', charted, taken) / 3600 AS hours,
                       dense_rank() OVER (PARTITION BY place, analyte
                                          ORDER BY charted DESC, stored DESC, id DESC, number DESC) AS rank
                FROM studies JOIN labs USING (subject)
                WHERE subject % {PATIENT_GROUPS} = {group} AND fault IS NULL AND charted <= taken AND stored <= taken
                  AND charted >= taken - INTERVAL {LOOKBACK_HOURS} HOUR
            )
            SELECT place, analyte, rank, number, low, high, hours FROM known WHERE rank <= 2""")
    study, values = -1, dict[str, dict[str, Any]]()
    for place, analyte, rank, number, low, high, hours in tables.fetch(
        "SELECT * FROM latest ORDER BY place, analyte, rank"
    ):
        if place != study:
            if values:
                yield study, values
            study, values = place, {}
        name = PANEL[analyte].name
        if rank == 1 and hours <= MAX_AGE_HOURS:
            values[name] = {
                "value": number, "unit": PANEL[analyte].unit, "low": low, "high": high,
                "level": level(number, low, high), "hours": round(hours, 1), "change": None,
            }  # fmt: skip
        elif rank == 2 and name in values:
            values[name]["change"] = round(values[name]["value"] - number, 6)
    if values:
        yield study, values


def level(number: float, low: float | None, high: float | None) -> str | None:
    """high, low or normal by the row's own reference range; None where it has none."""
    if low is None and high is None:
        return None
    return "high" if high is not None and number > high else "low" if low is not None and number < low else "normal"
