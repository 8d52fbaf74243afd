"""Stage outcomes: states and outcomes of every study of a run, in files of their own, with every fault counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic, write_json
from lumen_hpc.outcomes.faults import KINDS, Faults
from lumen_hpc.outcomes.histories import History, read_histories
from lumen_hpc.outcomes.labs import latest, read_labs
from lumen_hpc.outcomes.outcomes import AFTER_DEATH, NO_STAY, OUTCOMES, Study, outcomes_of, stay_of
from lumen_hpc.outcomes.panel import PANEL
from lumen_hpc.outcomes.state import state_of
from lumen_hpc.outcomes.tables import Tables, scratch

FILES = ("states.jsonl", "outcomes.jsonl", "faults.jsonl", "counts.json")


def write(folder: Path, studies: Path, mimic_iv: str | Path, *, memory_gb: float = 1.0, threads: int = 2) -> dict:
    """Writes a row per study into `folder` and returns the counts.

    Files: `states.jsonl` (what was known at its time: inputs), `outcomes.jsonl` (what came after it, and the race as
    recorded, for subgroups), `faults.jsonl` and `counts.json`. `studies` is prepare's studies.jsonl, whose order the
    rows keep. Raises UserError for a table or column that is not there, a file that breaks off, or tables of other
    patients alone.
    """
    run_studies = [_study(row) for row in read_jsonl(studies)]
    if not run_studies:
        raise UserError(f"{studies} holds no study; run stage=prepare first")
    folder.mkdir(parents=True, exist_ok=True)
    faults = Faults()
    with scratch(folder, memory_gb, threads) as database:
        tables = Tables(mimic_iv, database, faults)
        _load_studies(database, run_studies)
        histories = read_histories(tables, {study.subject_id for study in run_studies}, faults)
        if not any(history.known for history in histories.values()):
            raise UserError(
                f"data.mimic_iv={mimic_iv}: hosp/patients has none of the run's {len(histories)} patients; give the "
                "whole MIMIC-IV (its open demo has 100 patients)"
            )
        read_labs(tables, faults)
        outcome_counts, lab_counts = _write_rows(folder, run_studies, histories, latest(tables), faults)
    faults.write(folder / "faults.jsonl")
    counts = {
        "studies": len(run_studies),
        "patients": len(histories),
        "outcomes": {name: dict(sorted(outcome_counts[name].items())) for name in OUTCOMES},
        "laboratory_values": {analyte.name: lab_counts[analyte.name] for analyte in PANEL},
        "faults": {kind: faults.counts[kind] for kind in KINDS},
    }
    write_json(folder / "counts.json", counts)
    return counts


def _study(row: dict[str, Any]) -> Study:
    taken_at = row["taken_at"]
    return Study(
        int(row["study_id"]),
        int(row["subject_id"]),
        row["split"],
        datetime.fromisoformat(taken_at),
        "T" in str(taken_at),
    )


def _load_studies(database: Any, studies: list[Study]) -> None:
    import pandas as pd

    frame = pd.DataFrame({
        "place": range(len(studies)),
        "subject": [study.subject_id for study in studies],
        "taken": pd.Series([study.at for study in studies], dtype="datetime64[us]"),
    })  # fmt: skip
    database.register("frame", frame)
    columns = "place::INTEGER AS place, subject::BIGINT AS subject, taken"
    database.execute(f"CREATE TABLE studies AS SELECT {columns} FROM frame")
    database.execute("CREATE TABLE patients_of_run AS SELECT DISTINCT subject FROM studies")
    database.unregister("frame")


def _write_rows(
    folder: Path,
    studies: list[Study],
    histories: dict[int, History],
    labs: Iterator[tuple[int, dict[str, Any]]],
    faults: Faults,
) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Writes both files; returns the outcomes counted by value or reason, and the values of each analyte."""
    outcome_counts: dict[str, Counter[str]] = defaultdict(Counter)
    lab_counts: Counter[str] = Counter()
    lab_place, lab_values = next(labs, (len(studies), {}))
    with ExitStack() as stack:
        states, outcomes = (stack.enter_context(atomic(folder / name)) for name in FILES[:2])
        for place, study in enumerate(studies):
            history, study_labs = histories[study.subject_id], {}
            if lab_place == place:
                study_labs = lab_values
                lab_place, lab_values = next(labs, (len(studies), {}))
            lab_counts.update(study_labs.keys())
            ids = {"study_id": study.study_id, "subject_id": study.subject_id, "split": study.split}
            states.write(_line({**ids, "state": state_of(history, study.at, study_labs)}))
            outcome = outcomes_of(history, study)
            outcomes.write(_line({**ids, "race": _race(history, study), "outcomes": outcome}))
            for name in OUTCOMES:
                outcome_counts[name][_count_key(outcome[name])] += 1
            _name_faults(study, outcome, faults)
    return outcome_counts, lab_counts


def _name_faults(study: Study, outcome: dict[str, Any], faults: Faults) -> None:
    ids = {"subject_id": study.subject_id, "study_id": study.study_id}
    if not study.has_clock:
        faults("study without a clock time", "studies", **ids)
    if outcome["in_hospital_death"].get("unknown") == NO_STAY:
        faults("study outside any stay", "studies", **ids)
    if outcome["death_30d"].get("unknown") == AFTER_DEATH:
        faults("death before a study", "studies", **ids)


def _count_key(value: dict[str, Any]) -> str:
    """yes, no, known, or the reason why it is unknown."""
    if "unknown" in value:
        return str(value["unknown"])
    return {True: "yes", False: "no"}[value["value"]] if isinstance(value["value"], bool) else "known"


def _race(history: History, study: Study) -> str | None:
    """The group of the study's stay, else of the patient's first admission."""
    stay = stay_of(history, study.at) or next(iter(history.admissions), None)
    return stay.race or None if stay else None


def _line(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
