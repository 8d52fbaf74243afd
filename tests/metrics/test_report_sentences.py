"""Answers of several sentences: each is read for itself, whatever stands before it."""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest
import yaml

from lumen_hpc.metrics.change import Reader, facts

READER = Reader([])
SENTENCES = yaml.safe_load(Path(__file__).with_name("report_sentences.yaml").read_text())
ONE, TWO = SENTENCES["one image"], SENTENCES["two images"]
FINDINGS = ("edema", "pneumonia", "atelectasis", "pleural effusion", "pneumothorax", "consolidation", "nodule")


def filled(sentence: str, finding: str) -> str:
    return sentence.replace("{f}", finding).replace("{F}", finding.capitalize())


def changes(text: str) -> set:
    change = READER.change(text)
    return set() if change is None else facts(change)


def meant(said: str, finding: str) -> set:
    return {
        "new": {("new", finding)},
        "resolved": {("resolved", finding)},
        "worse": {("level", finding, "worse")},
        "better": {("level", finding, "better")},
    }.get(said, set())


@pytest.mark.parametrize("said, sentence", [(said, one) for said in ONE for one in ONE[said]])
def test_a_sentence_on_one_image(said, sentence):
    for finding in ("edema", "pleural effusion"):
        assert READER.findings(filled(sentence, finding)) == ({finding} if said == "present" else set())


@pytest.mark.parametrize("said, sentence", [(said, one) for said in TWO for one in TWO[said]])
def test_a_sentence_on_two_images(said, sentence):
    for finding in ("edema", "pleural effusion"):
        assert changes(filled(sentence, finding)) == meant(said, finding)


def drawn(sentences: dict[str, list[str]], seed: int) -> list[tuple[str, str, str]]:
    """Three sentences about three findings, as (what they say, finding, sentence)."""
    draw = random.Random(seed)
    said = draw.choices(list(sentences), k=3)
    return [(it, name, filled(draw.choice(sentences[it]), name)) for it, name in zip(said, draw.sample(FINDINGS, 3))]


def test_sentences_together_say_what_each_says():
    misread = []
    for sentences, seed in product((ONE, TWO), range(300)):
        three = drawn(sentences, seed)
        text = " ".join(sentence for _, _, sentence in three)
        if sentences is ONE:
            read, truth = READER.findings(text), {name for said, name, _ in three if said == "present"}
        else:
            read, truth = changes(text), set().union(*(meant(said, name) for said, name, _ in three))
        misread += [(text, read, truth)] if read != truth else []
    assert misread == []
