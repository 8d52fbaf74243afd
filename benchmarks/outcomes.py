"""Stage outcomes against pandas in chunks, on a look-alike of MIMIC-IV at 1 %, 5 % and 20 % of its size.

    python -m benchmarks.outcomes [SHARE ...]        # about 15 minutes and 6 GB of disk for all three

Each number is one fresh process: wall and CPU seconds with its imports, and its peak memory. The look-alike has 158
million laboratory rows at 100 %, sorted by patient as the real table is, gzipped, 35 % of them of the panel, and
227,835 studies of 40 % of the patients. The peer is what one writes with pandas: read labevents in chunks of a million
rows, keep the panel's rows of the studies' patients, join, sort, and take the last value of each analyte within 72
hours. It names no faults, makes no outcomes, and its values must be the same as ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sandbox.usage import explain

ROWS, PATIENTS, STUDIES = 158_000_000, 299_000, 227_835
SHARES = (0.01, 0.05, 0.20)


def write(folder: Path, share: float) -> Path:
    """The look-alike: studies.jsonl and MIMIC-IV's tables."""
    import duckdb

    from lumen_hpc.outcomes.mimic_iv import Writer
    from lumen_hpc.outcomes.panel import PANEL

    rows, patients, studies = (int(count * share) for count in (ROWS, PATIENTS, STUDIES))
    with Writer(folder / "iv") as writer:
        for analyte in PANEL:
            writer.add("hosp/d_labitems", {"itemid": analyte.itemid, "label": analyte.label})
    database = duckdb.connect(config={"threads": 2, "memory_limit": "2GB", "temp_directory": str(folder)})
    database.execute("SELECT setseed(0.5)")
    database.execute("CREATE TABLE panel (k INTEGER, itemid INTEGER, unit VARCHAR, low DOUBLE, high DOUBLE)")
    for k, analyte in enumerate(PANEL):
        low = max(analyte.lowest, 1)
        values = [k, analyte.itemid, analyte.unit, low, min(analyte.highest, low + 8)]
        database.execute("INSERT INTO panel VALUES (?, ?, ?, ?, ?)", values)
    # A patient has eight stays, 200 days apart; a stay's laboratory rows lie within six days.
    begin = "(TIMESTAMP '2150-01-01' + to_days(200 * (random() * 8)::INTEGER))"
    stay = f"{begin} + to_seconds((random() * 6 * 86400)::INTEGER)"
    out = "(FORMAT csv, HEADER true, COMPRESSION gzip)"
    database.execute(f"""
        COPY (
            WITH drawn AS (
                SELECT i, 10000000 + i * {patients} // {rows} AS subject_id, {stay} AS charted,
                       floor(random() * 16)::INTEGER AS k, random() < 0.35 AS of_panel, random() AS v
                FROM range({rows}) AS t(i))
            SELECT i AS labevent_id, subject_id, CASE WHEN v > 0.25 THEN 20000000 + subject_id % 1000000 END AS hadm_id,
                   i // 8 AS specimen_id, CASE WHEN of_panel THEN itemid ELSE 52000 + k * 7 END AS itemid,
                   'P' || (i % 90000) AS order_provider_id, charted AS charttime,
                   charted + to_seconds(1800 + (v * 7200)::INTEGER) AS storetime,
                   round(low + v * (high - low), 1) AS value,
                   round(low + v * (high - low), 1) AS valuenum, unit AS valueuom, low AS ref_range_lower,
                   high AS ref_range_upper, CASE WHEN v > 0.7 THEN 'abnormal' END AS flag, 'ROUTINE' AS priority,
                   CASE WHEN v > 0.8 THEN '___' END AS comments
            FROM drawn JOIN panel USING (k)
        ) TO '{folder}/iv/hosp/labevents.csv.gz' {out}""")
    database.execute(f"""
        COPY (SELECT 10000000 + i AS subject_id, 'F' AS gender, 60 AS anchor_age, 2150 AS anchor_year,
                     '2014 - 2016' AS anchor_year_group, NULL AS dod FROM range({patients}) AS t(i))
        TO '{folder}/iv/hosp/patients.csv.gz' {out}""")
    database.execute(f"""
        COPY (SELECT 10000000 + i AS subject_id, i * 8 + k AS hadm_id,
                     TIMESTAMP '2150-01-01' + to_days(200 * k) AS admittime,
                     TIMESTAMP '2150-01-07' + to_days(200 * k) AS dischtime, NULL AS deathtime, 'WHITE' AS race,
                     NULL AS edregtime, 0 AS hospital_expire_flag
              FROM range({patients}) AS t(i), range(8) AS s(k))
        TO '{folder}/iv/hosp/admissions.csv.gz' {out}""")
    database.execute(f"""
        COPY (SELECT 10000000 + (random() * 0.4 * {patients})::INTEGER AS subject_id, 50000000 + i AS study_id,
                     'test' AS split, strftime({stay}, '%Y-%m-%dT%H:%M:%S') AS taken_at FROM range({studies}) AS t(i))
        TO '{folder}/studies.jsonl' (FORMAT json)""")
    return folder


def ours(folder: Path, out: Path) -> dict[str, float]:
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.outcomes.write import write

    write(out, folder / "studies.jsonl", folder / "iv")
    values = [value["value"] for row in read_jsonl(out / "states.jsonl") for value in row["state"]["labs"].values()]
    return {"values": len(values), "sum": round(sum(values), 1)}


def chunks(folder: Path, out: Path) -> dict[str, float]:
    import pandas as pd

    from lumen_hpc.outcomes.panel import PANEL

    studies = pd.read_json(folder / "studies.jsonl", lines=True)
    studies["taken_at"] = pd.to_datetime(studies["taken_at"])
    items, patients = [analyte.itemid for analyte in PANEL], studies["subject_id"].unique()
    chunks_kept = []
    columns = ["labevent_id", "subject_id", "itemid", "charttime", "storetime", "valuenum"]
    for chunk in pd.read_csv(folder / "iv" / "hosp" / "labevents.csv.gz", usecols=columns, chunksize=1_000_000):
        chunk = chunk[chunk["itemid"].isin(items) & chunk["subject_id"].isin(patients)]
        for column in ("charttime", "storetime"):
            chunk[column] = pd.to_datetime(chunk[column])
        chunks_kept.append(chunk)
    labs = pd.concat(chunks_kept)
    # Patient group by patient group, or the join alone would not fit into memory.
    count, total = 0, 0.0
    for _, group in studies.groupby(studies["subject_id"] % 64):
        joined = group.merge(labs[labs["subject_id"].isin(group["subject_id"])], on="subject_id")
        age = joined["taken_at"] - joined["charttime"]
        in_window = (
            (age >= pd.Timedelta(0)) & (age <= pd.Timedelta(hours=72)) & (joined["storetime"] <= joined["taken_at"])
        )
        latest = joined[in_window].sort_values(["charttime", "storetime", "labevent_id"])
        latest = latest.groupby(["study_id", "itemid"])["valuenum"].last()
        count, total = count + len(latest), total + float(latest.sum())
    return {"values": count, "sum": round(total, 1)}


WAYS = {"ours": ours, "pandas in chunks": chunks}


def measure(way: str, folder: Path) -> dict[str, float]:
    """Wall seconds, peak MB and results of one way in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.outcomes", "--one", way, str(folder), out]
        start = time.perf_counter()
        lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return {"wall": time.perf_counter() - start, **json.loads(lines)}


def main(shares: list[float]) -> None:
    head = f"{'share':>6} {'rows':>12} {'':18} {'wall s':>8} {'CPU s':>8} {'peak MB':>8}"
    print(f"{head} {'M rows/CPU s':>12} {'ours is':>8}", flush=True)
    for share in shares:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            # In a process of its own too: a child's peak memory is at least that of its parent when it was started.
            subprocess.run([sys.executable, "-m", "benchmarks.outcomes", "--write", name, str(share)], check=True)
            results = {way: measure(way, folder) for way in WAYS}
        totals = {(result["values"], result["sum"]) for result in results.values()}
        assert len(totals) == 1, f"the values differ: {results}"
        for way, result in results.items():
            ratio = "" if way == "ours" else f"{result['cpu'] / results['ours']['cpu']:.1f}x"
            rows = int(ROWS * share)
            print(
                f"{share:>6.0%} {rows:>12,} {way:18} {result['wall']:8.1f} {result['cpu']:8.1f} {result['peak']:8.0f} "
                f"{rows / result['cpu'] / 1e6:12.2f} {ratio:>8}",
                flush=True,
            )


if __name__ == "__main__":
    explain(__doc__)
    if sys.argv[1:2] == ["--one"]:
        import resource

        result = WAYS[sys.argv[2]](Path(sys.argv[3]), Path(sys.argv[4]))
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({**result, "peak": used.ru_maxrss / 1024, "cpu": used.ru_utime + used.ru_stime}))
    elif sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]), float(sys.argv[3]))
    else:
        main([float(share) for share in sys.argv[1:]] or list(SHARES))
