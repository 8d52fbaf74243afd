"""Sections 2.2 to 2.4: questions, long answers, expert predictions and intervals become instruction records.

Reads prepare, experts and rewrite; writes {ft,lumen}-{train,val}.jsonl and lumen-test.jsonl, which every model answers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from lumen_hpc.cluster.stage import Shard, Stage, Task
from lumen_hpc.config.schema import Settings
from lumen_hpc.data.image_texts import ImageTexts
from lumen_hpc.data.table_files import ENTITIES


def external(settings: Settings) -> list[str]:
    """The dataset's findings, where records are made of them; phantoms have none outside the run."""
    data, reads_findings = settings.data, settings.instruct.findings_first or settings.instruct.timelines
    path = Path(data.diff_vqa).expanduser() / ENTITIES
    return [str(path)] if data.source == "mimic" and reads_findings and os.path.exists(path) else []


STAGE = Stage(
    name="instruct",
    paper="2.2-2.4",
    about="instruction records for each model and split",
    resources="cpu",
    settings=("seed", "data", "instruct", "experts.in_prompt", "experts.thresholds"),
    after=("prepare", "outcomes", "experts", "rewrite"),
    external=external,
)


def _expert_sentences(task: Task) -> dict[str, str]:
    """study_id → the experts' sentence about it; none where `instruct.expert_text` is off."""
    from lumen_hpc.experts.confidence_words import sentences

    return sentences(task.run.rows("experts"), task.settings.experts) if task.settings.instruct.expert_text else {}


def _texts(task: Task) -> ImageTexts:
    """What follows each image: the experts' sentence, and the lines that `instruct.clinical` asks for."""
    from lumen_hpc.outcomes.questions import texts

    return texts(task.run.path("outcomes") / "states.jsonl", _expert_sentences(task), task.settings.instruct)


def _outcomes(task: Task, texts: ImageTexts) -> list[Path]:
    """Writes the records of the models that train on outcomes, and the outcome questions of the test split."""
    from lumen_hpc.data import timelines
    from lumen_hpc.data.findings_line import read_findings
    from lumen_hpc.data.instructions import Sources
    from lumen_hpc.data.records import read_jsonl
    from lumen_hpc.outcomes import questions

    run, settings = task.run, task.settings
    folder = run.path("outcomes")
    sources = Sources.read(run.path("prepare"), [], texts, settings.instruct, run.diff_vqa)
    rows = read_jsonl(folder / "outcomes.jsonl")
    records = questions.records(rows, sources, settings.instruct, settings.seed)
    if settings.instruct.timelines:
        findings = sources.findings or read_findings(run.diff_vqa)
        studies = list(sources.studies.values())
        records = chain(records, timelines.records(studies, findings, sources, settings.instruct, settings.seed))
    return questions.write(task.folder, records)


def work(task: Task) -> Callable[[Shard], Iterator[dict[str, Any]]]:
    """Yields a row with the digest of each file of records."""
    from lumen_hpc.data import instructions

    def process(shard: Shard) -> Iterator[dict[str, Any]]:
        run, texts = task.run, _texts(task)
        paths, left_out = instructions.write(
            task.folder,
            prepared=run.path("prepare"),
            rewrites=run.rows("rewrite"),
            settings=task.settings.instruct,
            texts=texts,
            diff_vqa=run.diff_vqa,
        )
        if left_out:
            print(f"{len(left_out)} prediction questions of the test split are left out, since an image that they show "
                  f"has the pixels of the one that they ask about (the first: {left_out[0]})")  # fmt: skip
        if task.settings.instruct.outcomes:
            paths += _outcomes(task, texts)
        for path in paths:
            yield task.artefact(path)

    return process
