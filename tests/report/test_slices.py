"""Slices of the results, and experts given or withheld."""

from __future__ import annotations

import numpy as np
import pytest

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.report import slices
from lumen_hpc.report.results import Results


def test_slices_partition_their_block_and_warn_of_small_n(inputs, results):
    groups = slices.slices(results, inputs.studies)
    assert {each.by for each in groups} >= {"question type", "interval (days)", "changes in the reference", "view"}
    by_days = [each for each in groups if (each.by, each.block) == ("interval (days)", "difference")]
    counts = [cell.n for each in by_days for cell in each.cells if (cell.measure, cell.model) == ("rouge_l", "lumen")]
    assert sum(counts) == 40
    assert all(each.small for each in by_days)  # 40 questions in several groups: each below 30
    assert not any(each.small for each in groups if max(cell.n for cell in each.cells) >= 30)


def test_where_nothing_changed_a_wrong_claim_is_one_of_many(inputs, results):
    """F1 over no facts would be 0 for a model with one wrong claim, and nothing for one without any."""
    groups = [each for each in slices.slices(results, inputs.studies) if each.by == "changes in the reference"]
    assert [each.group for each in groups if each.block == "difference"] == ["0", "1", "2", "3 or more"]
    unchanged = next(each for each in groups if (each.block, each.group) == ("difference", "0"))
    where = [i for i in np.flatnonzero(results.where("difference")) if not results.truth(i)]
    for model in ("lumen", "ft+rule", "ft"):
        (cell,) = (cell for cell in unchanged.cells if (cell.model, cell.measure) == (model, "direction"))
        answers = [results.joined.answers[model][i].lower() for i in where]
        assert cell.n == len(where) > 3
        assert cell.value == pytest.approx(np.mean([answer == "nothing has changed." for answer in answers]))
    assert not any(cell.measure == "change_f1" for cell in unchanged.cells)


def test_sex_and_age_are_sliced_where_they_are_known(inputs, results):
    people = [({"sex": "F", "age": 39}), {"sex": "M", "age": 80}, {"age": float("nan")}, {"age": -1}, {"sex": None}]
    studies = [row | people[k % len(people)] for k, row in enumerate(inputs.studies)]
    found = slices.slices(results, studies)
    groups = {by: {each.group for each in found if each.by == by} for by in ("sex", "age (years)")}
    assert groups == {"sex": {"F", "M"}, "age (years)": {"under 40", "80 and over"}}
    assert not any(each.by in groups for each in slices.slices(results, inputs.studies))


def test_days_and_years_are_binned_as_their_labels_say():
    days = {"before": [-3, -1], "0": [0], "1–7": [1, 7], "8–30": [8, 30], "31–90": [31, 90], "91–365": [91, 365],
            "over 365": [366, 4000]}  # fmt: skip
    years = {"under 40": [0, 39], "40–59": [40, 59], "60–79": [60, 79], "80 and over": [80, 91]}
    columns = [[(group, value) for group, values in bins.items() for value in values] for bins in (days, years)]
    rows = [{"question_id": str(k), "type": "difference", "question": "what has changed?", "closed": False,
             "short_answer": "nothing has changed.", "subject_id": k, "study_id": k, "interval_days": day}
            for k, (_, day) in enumerate(columns[0])]  # fmt: skip
    answers = [{"question_id": row["question_id"], "model": "lumen", "answer": "nothing has changed."} for row in rows]
    results = Results(rows, answers, [], Evaluate(bootstrap=20), 0, models=["lumen"])
    studies = [{"study_id": k, "age": age} for k, (_, age) in enumerate(columns[1])]
    groups = slices.slices(results, studies)
    for by, bins in (("interval (days)", days), ("age (years)", years)):
        assert {each.group: each.cells[0].n for each in groups if each.by == by} == {g: len(bins[g]) for g in bins}
        assert [each.group for each in groups if each.by == by] == list(bins)


def test_age_and_race_are_sliced_as_the_experts_predict_them_since_the_model_is_told_so(inputs, results):
    race = [{"Asian": 0.1, "Black": 0.7, "White": 0.2}, {"Asian": 0.1, "Black": 0.1, "White": 0.8}]
    experts = {row["study_id"]: {"pathologies": {}, "age": 30 + 60 * (k % 2), "race": race[k % 2]}
               for k, row in enumerate(inputs.studies[1::2])}  # fmt: skip
    groups = slices.slices(results, inputs.studies, experts)
    assert {each.group for each in groups if each.by == "race by the expert"} == {"Black", "White"}
    assert {each.group for each in groups if each.by == "age by the expert (years)"} == {"under 40", "80 and over"}


def test_experts_on_and_off_are_compared_on_the_same_questions(inputs, results):
    asked = [row for row in inputs.answers["lumen"] if not row.get("control")][:60]
    off = [row | {"control": "no_experts", "answer": "no idea"} for row in asked]
    groups = slices.experts(results, {"lumen": off, "ft": asked})
    given, withheld = (
        next(s for s in groups if (s.group, s.block) == (g, "diagnostic")) for g in ("given", "withheld")
    )
    assert [cell.n for cell in given.cells] == [cell.n for cell in withheld.cells]
    assert {cell.model for cell in given.cells + withheld.cells} == {"lumen"}
    (with_them,), (without,) = ([c.value for c in s.cells if c.measure == "rouge_l"] for s in (given, withheld))
    assert with_them > 0.8 > 0.1 > without
    assert slices.experts(results, {"ft": asked}) == []
