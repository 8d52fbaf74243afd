"""The baseline rows answer as their names say, out of the training records alone."""

from __future__ import annotations

import pytest

from lumen_hpc.data.diff_vqa import parse_difference
from lumen_hpc.language.sentences import sentence
from lumen_hpc.report.baselines import BASELINES, answers, interval, narrow
from tests.report import pretend


def row(id, kind, question, short, **more):
    known = {"closed": short in ("yes", "no"), "interval_days": None, "study_id": f"main-{id}", "ref_study_id": None}
    return {"question_id": id, "type": kind, "question": question, "short_answer": short, "long_answer": short,
            **known, **more}  # fmt: skip


WHAT = "what has changed compared to the reference image?"
NEW, NOTHING = "the main image has an additional finding of edema than the reference image.", "nothing has changed."


def test_majority_is_the_types_most_frequent_answer_and_question_only_that_of_the_question():
    learned = [row(f"l{k}", "presence", "is there edema?", "no") for k in range(5)]
    learned += [row(f"m{k}", "presence", "is there nodule?", "yes") for k in range(3)]
    questions = [row("q", "presence", "is there nodule?", "yes"), row("r", "presence", "is there hernia?", "yes")]
    rows = answers(questions, learned, {}, {})
    no = {id: sentence("presence", f"is there {name}?", "no") for id, name in (("q", "nodule"), ("r", "hernia"))}
    assert rows["majority"] == no
    yes = sentence("presence", "is there nodule?", "yes")
    assert rows["question"] == {"q": yes, "r": no["r"]}, "an unseen question: its template"


def test_narrowed_training_records_teach_the_same_and_hold_no_more_than_is_read():
    learned = [row(f"l{k}", "presence", "is there edema?", "yes", subject_id=k, sizes=[[8, 8]]) for k in range(3)]
    learned += [
        row(f"m{k}", "difference", WHAT, NEW, ref_study_id="r", interval_days=k, subject_id=1) for k in range(3)
    ]
    narrow_rows = narrow(iter(learned))
    assert narrow_rows == [{key: each[key] for key in narrow_rows[0]} for each in learned]
    assert {type(each["interval_days"]) for each in narrow_rows} == {type(None), int}, "1 day is not True"
    assert not narrow_rows[0].keys() & {"question_id", "long_answer", "sizes"}
    questions = [row("q", "presence", "is there edema?", "yes"), row("d", "difference", WHAT, NEW, ref_study_id="r")]
    studies = {"r": {"edema": {"level": "mild"}}}
    assert answers(questions, narrow_rows, studies, {}) == answers(questions, learned, studies, {})


def test_question_only_knows_how_far_ahead_a_prediction_is():
    learned = [row(f"l{k}", "prediction", "what will change?", NEW, interval_days=200 + k) for k in range(3)]
    learned += [row(f"m{k}", "prediction", "what next?", NOTHING, interval_days=1) for k in range(9)]
    questions = [row("far", "prediction", "and in 230 days?", NEW, interval_days=230),
             row("near", "prediction", "and tomorrow?", NEW, interval_days=1)]  # fmt: skip
    rows = answers(questions, learned, {}, {})["question"]
    assert rows == {"far": "Edema is expected to appear.", "near": "No change is expected."}
    assert [interval(days) for days in (None, 0, 1, 2, 400)] == [-1, 0, 1, 2, 7]


def test_reference_findings_name_the_changes_that_such_references_led_to():
    studies = {f"r{k}": {"edema": {"level": "mild"}} if k % 2 else {} for k in range(40)}
    resolved = "the main image is missing the finding of edema than the reference image."
    learned = [row(f"l{k}", "difference", WHAT, resolved if k % 2 else NOTHING, ref_study_id=f"r{k}", interval_days=9)
               for k in range(40)]  # fmt: skip
    questions = [row("a", "difference", WHAT, NOTHING, ref_study_id="r1", interval_days=9),
             row("b", "difference", WHAT, NOTHING, ref_study_id="r2", interval_days=9)]  # fmt: skip
    rows = answers(questions, learned, studies, {})["prior"]
    assert parse_difference(rows["a"]).resolved == ("edema",) and not parse_difference(rows["b"])


def test_experts_with_a_rule_compare_the_two_images_without_levels():
    questions = [row("q", "difference", WHAT, NOTHING, ref_study_id="r", study_id="s")]
    experts = {"r": {"Edema": 0.9, "Nodule": 0.6}, "s": {"Edema": 0.4, "Nodule": 0.8}}
    (text,) = answers(questions, [], {}, experts)["experts+rule"].values()
    change = parse_difference(text)
    assert (change.new, change.resolved, change.levels) == ((), ("edema",), ())
    assert "experts+rule" not in answers(questions, [], {}, {})


def test_without_training_records_nothing_is_learned_from_the_test_set():
    inputs = pretend.inputs(patients=4)
    questions = [record["meta"] for record in inputs.records]
    assert set(answers(questions, [], inputs.findings, {})) == {"reference", "persistence"}


@pytest.fixture(scope="module")
def rows(written):
    import csv

    with (written / "tables.csv").open(newline="") as stream:
        return {(r["block"], r["measure"], r["model"]): r for r in csv.DictReader(stream)}


def test_every_baseline_is_a_row_of_the_tables_and_compared_with_the_principal_model(rows):
    for name in BASELINES:
        assert ("difference", "change_f1", name) in rows
    assert float(rows["difference", "change_f1", "reference"]["value"]) == 1
    assert rows["difference", "change_f1", "reference"]["p"] == ""
    assert float(rows["difference", "change_f1", "persistence"]["value"]) == 0
    assert float(rows["difference", "change_f1", "persistence"]["minus_principal_high"]) < 0
    assert float(rows["difference", "bleu4", "reference"]["value"]) < 1, "nltk's BLEU of three equal words"
