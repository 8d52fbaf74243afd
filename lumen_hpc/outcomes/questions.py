"""Outcome questions: yes or no with a horizon, asked in many ways, as instruction records.

A record shows the image of a study, those of up to `instruct.max_images - 1` priors before it, and the lines of each
study's state. Its answer is a sentence that opens with yes or no, so that the model's probability of yes can be read at
its first token; with `instruct.findings_first` a line of each finding's state on each image comes before it. So that
one model can be asked with less information, some training records withhold it (`VARIANTS`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from lumen_hpc.config.schema import Instruct
from lumen_hpc.data import findings_line
from lumen_hpc.data.image_texts import ImageTexts
from lumen_hpc.data.instructions import Sources, image_sizes, kind, prompt
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic
from lumen_hpc.models import MODELS
from lumen_hpc.outcomes.features import last_studies
from lumen_hpc.outcomes.state_lines import clinical

Row = dict[str, Any]
TEST = "outcomes-test.jsonl"

# {h}: the horizon, as in "within 48 hours".
_WORDINGS = {
    "in_hospital_death": (
        "Will the patient die before leaving the hospital?",
        "Is death during this hospital stay expected?",
        "Is this patient going to die in the hospital?",
        "Will this hospital stay end in death?",
        "Is in-hospital death to be expected?",
        "Does this patient die during the current stay?",
        "Will the patient die during this admission?",
        "Is the patient expected to die before discharge?",
        "Will death occur before discharge from the hospital?",
        "Is a fatal course of this hospital stay expected?",
    ),
    "death": (
        "Will the patient die {h}?",
        "Is death expected {h}?",
        "Does the patient die {h} of this image?",
        "Is this patient going to die {h}?",
        "Will death occur {h}?",
        "Is a fatal course expected {h}?",
        "Should death be expected {h}?",
        "Is the patient expected to die {h}?",
        "Counted from this image, will the patient die {h}?",
        "Is it likely that the patient dies {h}?",
    ),
    "icu": (
        "Will the patient need intensive care {h}?",
        "Is admission to intensive care expected {h}?",
        "Will the patient be moved to intensive care {h}?",
        "Is this patient going to the intensive care unit {h}?",
        "Will an ICU admission follow {h}?",
        "Should intensive care be expected {h}?",
        "Is a transfer to the ICU expected {h}?",
        "Does the patient enter intensive care {h}?",
        "Is the patient expected to need the ICU {h}?",
        "Counted from this image, will intensive care begin {h}?",
    ),
    "ventilation": (
        "Will the patient need invasive ventilation {h}?",
        "Is intubation expected {h}?",
        "Will the patient be intubated {h}?",
        "Is this patient going to be ventilated invasively {h}?",
        "Will invasive ventilation begin {h}?",
        "Should intubation be expected {h}?",
        "Is the start of invasive ventilation expected {h}?",
        "Does the patient need a ventilator {h}?",
        "Is the patient expected to be intubated {h}?",
        "Counted from this image, will invasive ventilation follow {h}?",
    ),
    "discharge": (
        "Will the patient leave the hospital alive {h}?",
        "Is discharge expected {h}?",
        "Will the patient be discharged {h}?",
        "Is this patient leaving the hospital alive {h}?",
        "Will this hospital stay end in discharge {h}?",
        "Should discharge be expected {h}?",
        "Is the patient expected to leave the hospital {h}?",
        "Does the patient leave the hospital alive {h}?",
        "Is the patient well enough to be discharged {h}?",
        "Counted from this image, will the patient be discharged {h}?",
    ),
}
_HORIZONS = {"24h": "within 24 hours", "48h": "within 48 hours", "72h": "within 72 hours", "30d": "within 30 days",
             "365d": "within one year"}  # fmt: skip
_ANSWERS = {
    "in_hospital_death": ("Yes, death before discharge is expected.", "No, death before discharge is not expected."),
    "death": ("Yes, death is expected {h}.", "No, death is not expected {h}."),
    "icu": ("Yes, intensive care is expected {h}.", "No, intensive care is not expected {h}."),
    "ventilation": ("Yes, invasive ventilation is expected {h}.", "No, invasive ventilation is not expected {h}."),
    "discharge": ("Yes, discharge is expected {h}.", "No, discharge is not expected {h}."),
}

VARIANTS: dict[str, tuple[int | None, bool]] = {
    "all": (None, True),
    "no laboratory values": (None, False),
    "two images": (2, True),
    "one image": (1, True),
}
"""Variant → (most images; None: `instruct.max_images`, whether with laboratory values)."""
SHUFFLED = "shuffled images"
"""In the test file alone: everything as in `all`, but with the images of another patient."""
SHARES = {"all": 0.55, "no laboratory values": 0.15, "two images": 0.15, "one image": 0.15}
"""Shares of the training records."""


def wordings(outcome: str) -> tuple[str, ...]:
    """Every way in which an outcome is asked."""
    stem, horizon = _parts(outcome)
    return tuple(text.format(h=horizon) for text in _WORDINGS[stem])


def sentence(outcome: str, value: bool) -> str:
    """The long answer to an outcome question."""
    stem, horizon = _parts(outcome)
    return _ANSWERS[stem][0 if value else 1].format(h=horizon)


def _parts(outcome: str) -> tuple[str, str]:
    stem, _, horizon = outcome.rpartition("_")
    parts = (stem, _HORIZONS[horizon]) if horizon in _HORIZONS else (outcome, "")
    if parts[0] not in _WORDINGS or parts[0] not in _ANSWERS:
        raise UserError(f"{outcome}: no wordings or answers of '{parts[0]}' in lumen_hpc/outcomes/questions.py")
    return parts


def texts(states: Path, experts: Mapping[str, str], settings: Instruct) -> ImageTexts:
    """The text that follows each image, as `instruct.clinical`, `clinical_images` and `labs` ask for it.

    `states`: states.jsonl of stage outcomes, not read where no line is asked for; `experts`: study_id → their sentence.
    """
    parts = settings.clinical
    states_by_study = {str(row["study_id"]): row["state"] for row in read_jsonl(states)} if parts else {}
    parts_without_labs = [part for part in parts if part != "labs"]
    return ImageTexts(
        experts,
        {study: clinical(state, parts, settings.labs) for study, state in states_by_study.items()},
        {study: clinical(state, parts_without_labs) for study, state in states_by_study.items()},
        settings.clinical_images == "last",
    )


def records(outcomes: Iterable[Row], sources: Sources, settings: Instruct, seed: int) -> Iterator[tuple[str, Row]]:
    """(split, record) of every outcome question with a known value.

    Of a val or test patient the last study with a known outcome is asked about, which is the one that is judged. A
    train or val study has one record an outcome, all of the variant that a hash of seed and study draws, so that they
    share their images; a test study has one of every variant and one with another patient's images. Val studies are
    asked about in the test file too. Each draw hangs on ids alone, not on the order of rows.
    """
    rows = list(outcomes)
    strangers = _strangers(rows, seed)
    taken_at = {int(study["study_id"]): study["taken_at"] for study in sources.studies.values()}
    judged_studies = {
        outcome: last_studies([row for row in rows if row["outcomes"][outcome].get("value") is not None], taken_at)
        for outcome in settings.outcomes
    }
    for row in rows:
        study = sources.study(row["study_id"], f"of outcomes.jsonl, study {row['study_id']}")
        shown = [*sources.priors(study, settings.max_images - 1), study]
        training_variant = _variant(_hash_fraction(seed, row["study_id"]))
        for outcome in settings.outcomes:
            value = row["outcomes"][outcome].get("value")
            if value is None or (row["split"] != "train" and int(row["study_id"]) not in judged_studies[outcome]):
                continue
            ask = partial(_record, sources, row, outcome, value, _hash_fraction(seed, row["study_id"], outcome))
            for variant in tuple(VARIANTS) if row["split"] == "test" else (training_variant,):
                max_images, labs = VARIANTS[variant]
                yield row["split"], ask(variant, shown[-max_images:] if max_images else shown, labs=labs)
            if row["split"] == "val":  # asked about as test studies are, to recalibrate on
                yield "test", ask("all", shown)
            if row["split"] == "test" and (stranger_id := strangers.get(row["study_id"])):
                stranger = sources.study(stranger_id, "drawn to shuffle images")
                images_of = [*sources.priors(stranger, len(shown) - 1), stranger]
                yield "test", ask(SHUFFLED, shown[-len(images_of) :], images_of=images_of)


def _findings_line(sources: Sources, images_of: Sequence[Row]) -> tuple[str, Sequence[str]]:
    """The findings line of the images shown, and the findings that it names; empty where they are not all known."""
    if not sources.has_findings(images_of):
        return "", ()
    findings = [sources.state(str(study["study_id"])) for study in images_of]
    return findings_line.history_line(findings, sources.line), sources.line


def _record(
    sources: Sources, row: Row, outcome: str, value: bool, draw: float, variant: str, shown: list[Row],
    *, labs: bool = True, images_of: Sequence[Row] = (),
) -> Row:  # fmt: skip
    """One record about the studies `shown`; `images_of` are the studies whose images are shown in their place."""
    texts, images_of = sources.texts.of(shown, labs=labs, images_of=images_of), images_of or shown
    questions = wordings(outcome)
    name = f"outcome/{outcome}/{row['study_id']}"
    question = {"type": "outcome", "question": questions[int(draw * 1e6) % len(questions)], "interval_days": None}
    answer = sentence(outcome, value)
    line, names = _findings_line(sources, images_of)
    meta = {
        "question_id": name if variant == "all" else f"{name}/{variant}", "type": "outcome", "outcome": outcome,
        "variant": variant, "closed": True, "short_answer": "yes" if value else "no", "interval_days": None,
        "subject_id": row["subject_id"], "study_id": row["study_id"], "ref_study_id": None, "long_answer": answer,
        "question": question["question"], **({"line": list(names)} if line else {}), **image_sizes(images_of),
    }  # fmt: skip
    return {
        "id": meta["question_id"],
        "images": [study["image"] for study in images_of],
        "conversations": [
            {"from": "human", "value": prompt(shown, question, texts)},
            {"from": "gpt", "value": findings_line.join(line, answer) if line else answer},
        ],
        "meta": meta,
    }


def _hash_fraction(*parts: Any) -> float:
    """A number from 0 to 1 that hangs on `parts` alone."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _variant(draw: float) -> str:
    for name, share in SHARES.items():
        draw -= share
        if draw < 0:
            return name
    return "all"


def _strangers(rows: Sequence[Row], seed: int) -> dict[Any, Any]:
    """study_id of each test study → that of the next other test patient, in a circle of seeded order."""
    test_rows = sorted(
        (row for row in rows if row["split"] == "test"), key=lambda row: _hash_fraction(seed, "other", row["study_id"])
    )
    strangers = {}
    for position, row in enumerate(test_rows):
        next_rows = (test_rows[(position + step) % len(test_rows)] for step in range(1, len(test_rows)))
        if other := next((other for other in next_rows if other["subject_id"] != row["subject_id"]), None):
            strangers[row["study_id"]] = other["study_id"]
    return strangers


def write(folder: Path, records: Iterable[tuple[str, Row]]) -> list[Path]:
    """Writes the record files of every model that trains on outcomes, from LUMEN's files and the outcome records.

    Needs lumen-{train,val}.jsonl in `folder`. Returns the files written, the test records' last.
    """
    split_records: dict[str, list[bytes]] = {"train": [], "val": [], "test": []}
    for split, record in records:
        split_records[split].append(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    paths = []
    for model in MODELS.values():
        if "outcome" not in model.trains_on:
            continue
        for split in ("train", "val"):
            paths.append(folder / f"{model.name}-{split}.jsonl")
            with atomic(paths[-1]) as out:
                for record in read_jsonl(folder / f"lumen-{split}.jsonl"):
                    if kind(record) in model.trains_on:
                        out.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
                out.writelines(split_records[split])
    with atomic(folder / TEST) as out:
        out.writelines(split_records["test"])
    return [*paths, folder / TEST]
