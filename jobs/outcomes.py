"""What happened to the patients: MIMIC-IV's tables become outcomes and the state at every study's time.

Reads prepare/studies.jsonl and MIMIC-IV where it is (or writes phantom tables in the same layout first), and writes
states.jsonl, outcomes.jsonl, faults.jsonl and counts.json (docs/outcomes.md). One CPU job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.config.schema import Settings


def enabled(settings: Settings) -> bool:
    """Where there is MIMIC-IV, or phantoms are asked to have it."""
    data = settings.data
    return data.phantom.mimic_iv if data.source == "phantom" else bool(data.mimic_iv)


def external(settings: Settings) -> list[str]:
    """MIMIC-IV's tables that are there; phantoms have none outside the run."""
    if settings.data.source == "phantom" or not settings.data.mimic_iv:
        return []
    from lumen_hpc.data.table_files import find
    from lumen_hpc.outcomes.mimic_iv import TABLES

    return [str(path) for table in TABLES if (path := find(settings.data.mimic_iv, table))]


STAGE = Stage(
    name="outcomes",
    paper="",
    about="what happened after each study, and what was known at its time",
    resources="cpu",
    settings=("seed", "data", "outcomes"),
    after=("prepare",),
    enabled=enabled,
    needs="data.mimic_iv=FOLDER, or of phantoms data.phantom.mimic_iv=true",
    external=external,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row for each file written, with its hash."""
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.outcomes import phantom_tables
    from lumen_hpc.outcomes.write import FILES, write

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        data, outcome_settings, prepare_folder = task.settings.data, task.settings.outcomes, task.run.path("prepare")
        folder = Path(data.mimic_iv)
        if data.source == "phantom":
            study_times = phantom_tables.study_times(read_jsonl(prepare_folder / "studies.jsonl"))
            folder = phantom_tables.write_tables(
                task.folder / "mimiciv",
                prepare_folder / "phantom" / "truth.jsonl",
                study_times,
                task.settings.seed,
                effect=data.phantom.effect,
            )
        counts = write(
            task.folder,
            prepare_folder / "studies.jsonl",
            folder,
            memory_gb=outcome_settings.memory_gb,
            threads=outcome_settings.threads,
        )
        faults = sum(counts["faults"].values())
        print(f"{counts['studies']} studies of {counts['patients']} patients; {faults} faults, each in counts.json")
        if unmatched := counts["faults"]["patient not in MIMIC-IV"]:
            print(f"{unmatched} of the patients are not in MIMIC-IV: their outcomes and laboratory values are unknown")
        for name in FILES:
            yield task.artefact(task.folder / name)

    return process
