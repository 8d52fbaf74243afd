"""The spread between trainings of one model: as many values as trainings, on the same questions."""

from __future__ import annotations

from statistics import stdev

import pytest

from lumen_hpc.config.schema import Evaluate
from lumen_hpc.data import findings_line
from lumen_hpc.report import assemble, seeds
from tests.report import pretend

ONCE = {"nvila": 0.15, "ft": 0.7, "lumen": 0.9}


@pytest.fixture(scope="module")
def inputs():
    own = pretend.inputs(patients=20)
    again = {f"lumen@{k}": pretend.inputs(patients=20, skill={"lumen": skill}) for k, skill in ((1, 0.6), (2, 1))}
    own.repeats = {name: list(each.answers["lumen"]) for name, each in again.items()}
    return own


@pytest.fixture(scope="module")
def results(inputs):
    return assemble.Results(
        assemble.questions(inputs.records),
        (row for rows in inputs.answers.values() for row in rows if not row.get("control")),
        (), Evaluate(bootstrap=20, permutations=20), 0, models=list(ONCE),
    )  # fmt: skip


def test_each_measure_has_a_value_a_training_the_runs_own_first(results, inputs):
    found = seeds.spreads(results, inputs.repeats)
    assert {each.model for each in found} == {"lumen"}
    assert {(each.block, each.measure) for each in found} >= {("difference", "change_f1"), ("prediction", "rouge_l")}
    for each in found:
        assert len(each.values) == 3
        assert each.values[0] == results.cell(each.block, each.measure, "lumen").value
        assert each.deviation == pytest.approx(stdev(each.values))
    right = next(each for each in found if (each.block, each.measure) == ("diagnostic", "rouge_l"))
    assert right.values[1] < right.values[0] < right.values[2] == 1


def test_a_training_without_values_leaves_the_others_their_numbers(results, inputs):
    found = seeds.spreads(results, {"lumen@2": inputs.repeats["lumen@2"]})
    assert all(list(each.by_training) == [0, 2] for each in found)
    trainings = [line.split(",")[3] for line in seeds.comma_separated(found).splitlines()[1:]]
    assert trainings == ["0", "2"] * len(found) != []


def test_further_trainings_are_scored_without_findings_line_and_control_tokens_as_the_runs_own_are(results, inputs):
    line = findings_line.difference_line(findings_line.StudyState(), findings_line.StudyState())
    rows = inputs.repeats["lumen@1"]
    raw = [row | {"answer": f"{findings_line.join(line, row['answer'])}<|im_end|>"} for row in rows]
    assert seeds.spreads(results, {"lumen@1": raw}) == seeds.spreads(results, {"lumen@1": rows})


def test_the_tables_and_the_page_show_the_spread(inputs, tmp_path):
    assemble.report(inputs, Evaluate(bootstrap=20, permutations=20, self_check=0, cases=2), 0, tmp_path)
    tables = (tmp_path / "tables.md").read_text()
    assert "## Between trainings" in tables and "| 3 |" in tables
    assert (tmp_path / "seeds.csv").read_text().startswith("model,block,measure,training,value")
    assert "Spread between trainings" in (tmp_path / "index.html").read_text()


def test_a_run_that_trained_once_has_no_such_table(results):
    assert seeds.markdown(seeds.spreads(results, {}), {}) == ""
