"""The small MIMIC-IV, read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from lumen_hpc.data.records import read_jsonl
from lumen_hpc.outcomes.write import write
from tests.outcomes import small_mimic_iv as small


class Small:
    """What the stage made of the small tables, by case."""

    def __init__(self, folder: Path) -> None:
        self.counts = orjson.loads((folder / "counts.json").read_bytes())
        self.named = list(read_jsonl(folder / "faults.jsonl"))
        rows = {int(row["subject_id"]): row for row in read_jsonl(folder / "outcomes.jsonl")}
        states = {int(row["subject_id"]): row for row in read_jsonl(folder / "states.jsonl")}
        self.outcomes: dict[str, dict[str, Any]] = {case: rows[s]["outcomes"] for case, s in small.SUBJECTS.items()}
        self.states: dict[str, dict[str, Any]] = {case: states[s]["state"] for case, s in small.SUBJECTS.items()}


@pytest.fixture(scope="session")
def read_small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("small")
    small.write(folder / "mimiciv", small.tables())
    write(folder / "outcomes", small.studies(folder / "studies.jsonl"), folder / "mimiciv", memory_gb=0.5)
    return Small(folder / "outcomes")
