"""Section 2.1: from the datasets' files to studies and questions, with counts beside the paper's.

Reads MIMIC-CXR and Medical-Diff-VQA where they are (or writes phantoms in the same layout first) and writes
studies.jsonl, questions.jsonl, left_out.jsonl, rejected.jsonl and counts.json. One CPU job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.question_counts import PREPARED_BY
from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.config.data_schema import Data
from lumen_hpc.config.schema import Settings
from lumen_hpc.data import table_files

FILES = ("studies.jsonl", "questions.jsonl", "left_out.jsonl", "rejected.jsonl", "counts.json")


def external(settings: Settings) -> list[str]:
    """The dataset's tables, where they exist; none for phantoms."""
    data = settings.data
    if data.source == "phantom":
        return []
    folders = (
        (data.mimic_cxr, table_files.MIMIC_CXR),
        (data.diff_vqa, table_files.DIFF_VQA),
        (data.mimic_iv, (table_files.PATIENTS,)),
    )
    paths = (table_files.find(folder, table) for folder, tables in folders if folder for table in tables)
    return [str(path) for path in paths if path]


STAGE = Stage(
    name="prepare",
    paper="2.1",
    about="dataset files to studies and questions",
    resources="cpu",
    settings=PREPARED_BY,
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
            phantoms = phantom.write(task.folder / "phantom", data.phantom, task.settings.seed, replace=True)
            yield task.artefact(phantoms / phantom.MARKER)  # pictures may differ where no table does
            data = official(data, phantoms)
        counts = prepare(data, task.settings.prepare, task.settings.seed, task.folder)
        rejected, left_out = counts["rejected"]["questions"], sum(counts["left_out"].values())
        print(f"{counts['read']} questions read: {counts['kept']} kept, {left_out} left out, {rejected} rejected")
        bad_rows = counts["rejected"]["rows_by_kind"]
        for description, count_by_kind in (("left out", counts["left_out"]), ("bad rows", bad_rows)):
            if kinds := _comma_separated(count_by_kind):
                print(f"{description}: {kinds}")
        if "image missing or broken" in bad_rows:
            print(f"images are checked once: after a repair, remove {task.folder} and run the stage again")
        for line in release_lines(counts["release"]):
            print(line)
        images = ", ".join(f"{count} {kind}" for kind, count in counts["studies"]["image_files"].items())
        size = counts["studies"]["median_size"]  # shows whether someone has scaled the images down
        median = f", the median {size[0]} x {size[1]} px" if size else ""
        print(f"{counts['studies']['asked_about']} images: {images}{median}")
        if not data.mimic_iv:
            print("sex and age of the patients are unknown: MIMIC-CXR has neither; data.mimic_iv=FOLDER gives them")
        elif (known_count := counts["studies"]["with_sex_and_age"]) < counts["studies"]["asked_about"]:
            print(f"sex and age are known of {known_count} of {counts['studies']['asked_about']} studies")
        for line in warnings(counts):
            print(f"warning: {line}")
        for name in FILES:
            yield task.artefact(task.folder / name)

    return process


def _comma_separated(counts: dict[str, int]) -> str:
    """Counts above 0 with their names, most first."""
    return ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in Counter(counts).most_common() if count)


def warnings(counts: dict[str, Any]) -> Iterator[str]:
    """What is odd about the input but loses no question."""
    for warning, count in counts["studies"]["image_warnings"].items():
        yield f"{count} images: {warning}"
    if copies := counts["images_in_two_splits"]["count"]:
        first = counts["images_in_two_splits"]["first"][0]
        yield (
            f"{copies} images (the first: study {first}) are also those of studies in another split: a model may be "
            "tested on what it was trained on; leave their questions out (counts.json names the first of them)"
        )
    if two_dates := counts["studies"]["with_two_dates"]:
        yield f"{two_dates} studies have images of different dates; the date of the image that was chosen counts"
    if counts["studies"]["images_not_frontal"] == counts["studies"]["asked_about"]:
        code = "ViewCodeSequence_CodeMeaning"
        yield f"no image is PA or AP by its {code}: the first image of each study is read, which may be a lateral one"
    if counts["studies"]["without_time"] == counts["studies"]["asked_about"]:
        yield "no StudyTime can be read (HHMMSS.fff, HH:MM:SS): the order of a day's studies and all hours are unknown"
    if differences := _comma_separated({**counts["studies"]["mimic_all"], "rows": 0}):
        yield f"mimic_all differs from the metadata, which counts: {differences}"
    if unlisted_images := counts["test_images_in_mimic_split"]["not listed"]:
        yield f"{unlisted_images} test images are not in MIMIC-CXR's table of splits"


def official(data: Data, folder: Path) -> Data:
    """The settings that read generated phantoms as what they imitate."""
    return replace(
        data,
        mimic_cxr=str(folder / "mimic-cxr-jpg"),
        mimic_cxr_dicom=str(folder / "mimic-cxr"),
        diff_vqa=str(folder / "medical-diff-vqa"),
    )
