"""Section 2.1: from the datasets' files to studies and questions, with counts beside the paper's.

Reads MIMIC-CXR and Medical-Diff-VQA where they are (or writes phantoms in the same layout first) and writes
studies.jsonl, questions.jsonl, left_out.jsonl, rejected.jsonl and counts.json. One CPU job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.config.data_schema import Data
from lumen_hpc.config.schema import Settings
from lumen_hpc.data import mimic_iv_files

FILES = ("studies.jsonl", "questions.jsonl", "left_out.jsonl", "rejected.jsonl", "counts.json")


def external(settings: Settings) -> list[str]:
    """The dataset's tables; phantoms have none."""
    data = settings.data
    if data.source == "phantom":
        return []
    folders = [Path(folder).expanduser() for folder in (data.mimic_cxr, data.diff_vqa) if folder]
    tables = [str(table) for folder in folders for table in sorted(folder.glob("mimic*.csv*"))]
    return [*tables, str(mimic_iv_files.require(data.mimic_iv, mimic_iv_files.PATIENTS))] if data.mimic_iv else tables


STAGE = Stage(
    name="prepare",
    paper="2.1",
    about="dataset files to studies and questions",
    resources="cpu",
    settings=("seed", "data", "prepare"),
    external=external,
)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row with the digest of each file written."""
    from lumen_hpc.data import phantom
    from lumen_hpc.data.counts import release_lines
    from lumen_hpc.data.prepare import prepare

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        data = task.settings.data
        if data.source == "phantom":
            made = phantom.write(task.folder / "phantom", data.phantom, task.settings.seed, replace=True)
            yield task.artefact(made / phantom.MARK)  # pictures may differ where no table does
            data = official(data, made)
        counts = prepare(data, task.settings.prepare, task.settings.seed, task.folder)
        rejected, left_out = counts["rejected"]["questions"], sum(counts["left_out"].values())
        print(f"{counts['read']} questions read: {counts['kept']} kept, {left_out} left out, {rejected} rejected")
        for line in release_lines(counts["release"]):
            print(line)
        images = ", ".join(f"{count} {kind}" for kind, count in counts["studies"]["image_files"].items())
        print(f"{counts['studies']['asked_about']} images: {images}")
        if not data.mimic_iv:
            print("sex and age of the patients are unknown: MIMIC-CXR has neither; data.mimic_iv=FOLDER gives them")
        for warning, count in counts["studies"]["image_warnings"].items():
            print(f"warning: {count} images: {warning}")
        for name in FILES:
            yield task.artefact(task.folder / name)

    return process


def official(data: Data, folder: Path) -> Data:
    """The settings that read generated phantoms as what they imitate."""
    return replace(
        data,
        mimic_cxr=str(folder / "mimic-cxr-jpg"),
        mimic_cxr_dicom=str(folder / "mimic-cxr"),
        diff_vqa=str(folder / "medical-diff-vqa"),
    )
