"""Phantom MIMIC-IV tables: every fault planted, outcomes as drawn, and nothing of the future in the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from sklearn.metrics import roc_auc_score

from lumen_hpc.data import phantom_states as ps
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.outcomes.faults import KINDS
from lumen_hpc.outcomes.phantom_severity import oracle
from lumen_hpc.outcomes.phantom_tables import known_studies, study_times, write_tables
from lumen_hpc.outcomes.write import write

SPLITS = ("train", "test", "train", "val", "train", "test")
NOT_IN_TABLES = {
    "study without a clock time", "laboratory item of another name", "race of no known kind", "unknown age",
    "unknown sex", "flag of death unknown",
}  # fmt: skip
"""Planted by hand in small_mimic_iv; phantom patients keep their age and sex."""


def write_studies(folder: Path, patients: int, studies: int = 3) -> None:
    """truth.jsonl and studies.jsonl of phantom patients, without their images."""
    rng = np.random.default_rng(5)
    truth, rows = [], []
    for number in range(patients):
        states, day = ps.draw_first(rng), 0
        for order in range(studies):
            if order:
                days = ps.draw_days(rng)
                states, day = ps.draw_next(states, days, rng), day + days
            ids: dict[str, Any] = {"subject_id": 10_000_000 + number * 7, "study_id": 50_000_000 + number * 10 + order,
                                   "split": SPLITS[number % len(SPLITS)]}  # fmt: skip
            found = {name: state.record() for name, state in states.items() if state.present}
            truth.append({**ids, "order": order + 1, "day": day, "findings": found})
            taken = np.datetime64("2150-01-01T00:00:00") + np.timedelta64(day * 86_400 + int(rng.integers(86_400)), "s")
            rows.append({**ids, "taken_at": str(taken)})
    for name, lines in (("truth", truth), ("studies", rows)):
        (folder / f"{name}.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in lines))


def run(folder: Path, patients: int, **settings: Any) -> dict[str, Any]:
    """Studies, tables, and the stage on them; returns its counts."""
    folder.mkdir(exist_ok=True)
    write_studies(folder, patients)
    taken = study_times(read_jsonl(folder / "studies.jsonl"))
    write_tables(folder / "iv", folder / "truth.jsonl", taken, 0, **settings)
    return write(folder / "out", folder / "studies.jsonl", folder / "iv", memory_gb=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    run(folder, 1200)
    return folder


def test_every_fault_that_tables_can_have_is_planted(folder: Path) -> None:
    counts = orjson.loads((folder / "out" / "counts.json").read_bytes())["faults"]
    assert {kind for kind in KINDS if not counts[kind]} == NOT_IN_TABLES


def test_without_faults_the_tables_have_none_of_their_own(tmp_path: Path) -> None:
    counts = run(tmp_path, 60, faults=False)["faults"]
    possible = {"laboratory row without hadm_id", "study outside any stay", "patient without any admission"}
    assert {kind for kind, count in counts.items() if count} <= possible


def test_the_same_seed_writes_the_same_tables(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(tmp_path / name, 40)
    for path in (tmp_path / "a" / "iv").rglob("*.csv.gz"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def last_studies(folder: Path) -> tuple[list[Any], np.ndarray]:
    """What is known of each patient's last study, and intensive care within 48 hours of it."""
    known = known_studies(folder / "truth.jsonl", folder / "out" / "states.jsonl")
    last = {row["subject_id"]: row for row in read_jsonl(folder / "out" / "outcomes.jsonl")}
    rows = [row for row in last.values() if "value" in row["outcomes"]["icu_48h"] and row["study_id"] in known]
    return [known[row["study_id"]] for row in rows], np.array([row["outcomes"]["icu_48h"]["value"] for row in rows])


def test_oracles_on_the_stage_s_own_rows_reach_what_their_formulas_say(folder: Path) -> None:
    known, outcome = last_studies(folder)
    assert len(known) > 800
    full = oracle("three images and laboratory values", known, 1.0)
    assert 0.93 < roc_auc_score(outcome, full) < 0.97
    assert roc_auc_score(outcome, oracle("laboratory values", known, 1.0)) < 0.88
    assert outcome.mean() == pytest.approx(full.mean(), abs=0.05)


def test_the_last_known_value_is_not_the_later_one_that_tells_the_outcome(folder: Path) -> None:
    """After the study lactate lies 1.6 spreads up or down by the outcome; at its time no value tells as much."""
    known, outcome = last_studies(folder)
    found = [(study.labs["lactate"], value) for study, value in zip(known, outcome) if "lactate" in study.labs]
    values, outcomes = map(np.array, zip(*found))
    assert roc_auc_score(outcomes, values) < 0.75
