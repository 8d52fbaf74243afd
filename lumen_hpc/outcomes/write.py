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
from lumen_hpc.outcomes.outcomes import DEAD, NO_STAY, OUTCOMES, Film, outcomes_of, stay_of
from lumen_hpc.outcomes.panel import PANEL
from lumen_hpc.outcomes.state import state_of
from lumen_hpc.outcomes.tables import Tables, scratch

FILES = ("states.jsonl", "outcomes.jsonl", "faults.jsonl", "counts.json")


def write(folder: Path, studies: Path, mimic_iv: str | Path, *, memory_gb: float = 1.0, threads: int = 2) -> dict:
    """Writes a row a study into `folder` and returns the counts.

    Files: `states.jsonl` (what was known at the film: inputs), `outcomes.jsonl` (what came after it, and the race as
    recorded, for subgroups), `faults.jsonl` and `counts.json`. `studies` is prepare's studies.jsonl, whose order the
    rows keep. Raises UserError for a table or column that is not there, or a file that breaks off.
    """
    films = [_film(row) for row in read_jsonl(studies)]
    if not films:
        raise UserError(f"{studies} holds no study; run stage=prepare first")
    folder.mkdir(parents=True, exist_ok=True)
    faults = Faults()
    with scratch(folder, memory_gb, threads) as database:
        tables = Tables(mimic_iv, database, faults)
        _load_films(database, films)
        histories = read_histories(tables, {film.subject_id for film in films}, faults)
        read_labs(tables, faults)
        known, values = _write_rows(folder, films, histories, latest(tables), faults)
    faults.write(folder / "faults.jsonl")
    counts = {
        "studies": len(films),
        "patients": len(histories),
        "outcomes": {name: dict(sorted(known[name].items())) for name in OUTCOMES},
        "laboratory_values": {analyte.name: values[analyte.name] for analyte in PANEL},
        "faults": {kind: faults.counts[kind] for kind in KINDS},
    }
    write_json(folder / "counts.json", counts)
    return counts


def _film(row: dict[str, Any]) -> Film:
    taken = row["taken_at"]
    return Film(
        int(row["study_id"]), int(row["subject_id"]), row["split"], datetime.fromisoformat(taken), "T" in str(taken)
    )


def _load_films(database: Any, films: list[Film]) -> None:
    import pandas as pd

    frame = pd.DataFrame({
        "place": range(len(films)),
        "subject": [film.subject_id for film in films],
        "taken": pd.Series([film.at for film in films], dtype="datetime64[us]"),
    })  # fmt: skip
    database.register("frame", frame)
    columns = "place::INTEGER AS place, subject::BIGINT AS subject, taken"
    database.execute(f"CREATE TABLE films AS SELECT {columns} FROM frame")
    database.execute("CREATE TABLE patients_of_run AS SELECT DISTINCT subject FROM films")
    database.unregister("frame")


def _write_rows(
    folder: Path,
    films: list[Film],
    histories: dict[int, History],
    labs: Iterator[tuple[int, dict[str, Any]]],
    faults: Faults,
) -> tuple[dict[str, Counter[str]], Counter[str]]:
    """Writes both files; returns the outcomes counted by value or reason, and the values of each analyte."""
    known: dict[str, Counter[str]] = defaultdict(Counter)
    values: Counter[str] = Counter()
    place, found = next(labs, (len(films), {}))
    with ExitStack() as stack:
        states, outcomes = (stack.enter_context(atomic(folder / name)) for name in FILES[:2])
        for number, film in enumerate(films):
            history, of_film = histories[film.subject_id], {}
            if place == number:
                of_film = found
                place, found = next(labs, (len(films), {}))
            values.update(of_film.keys())
            ids = {"study_id": film.study_id, "subject_id": film.subject_id, "split": film.split}
            states.write(_line({**ids, "state": state_of(history, film.at, of_film)}))
            outcome = outcomes_of(history, film)
            outcomes.write(_line({**ids, "race": _race(history, film), "outcomes": outcome}))
            for name in OUTCOMES:
                known[name][_counted(outcome[name])] += 1
            _name_faults(history, film, outcome, faults)
    return known, values


def _name_faults(history: History, film: Film, outcome: dict[str, Any], faults: Faults) -> None:
    ids = {"subject_id": film.subject_id, "study_id": film.study_id}
    if not film.has_clock:
        faults("film without a clock time", "studies", **ids)
    if outcome["in_hospital_death"].get("unknown") == NO_STAY:
        faults("film outside any stay", "studies", **ids)
    if outcome["death_30d"].get("unknown") == DEAD:
        faults("death before a film", "studies", **ids)


def _counted(value: dict[str, Any]) -> str:
    """yes, no, known, or the reason why it is unknown."""
    if "unknown" in value:
        return str(value["unknown"])
    return {True: "yes", False: "no"}[value["value"]] if isinstance(value["value"], bool) else "known"


def _race(history: History, film: Film) -> str | None:
    """As the film's stay has it, else the patient's first admission."""
    stay = stay_of(history, film.at) or next(iter(history.admissions), None)
    return stay.race or None if stay else None


def _line(row: dict[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
