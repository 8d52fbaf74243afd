"""The rule-based judge, the canaries that test any judge, and agreement between two."""

from __future__ import annotations

import csv

import pytest

from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.config.schema import EngineSettings, Judge, Rewrite
from lumen_hpc.data import phantom
from lumen_hpc.language.canaries import INJECTIONS, KINDS, Canary, make_canaries, swap_sides, verdict
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.judge import SCORES, agreement, score
from lumen_hpc.language.protocol import Completion
from lumen_hpc.language.rewriting import rewrite
from lumen_hpc.language.sentences import sentence

FINDINGS = ("edema", "pleural effusion", "consolidation", "nodule", "cardiomegaly", "pneumonia")


def items():
    """Questions of every kind with their grammar sentences as references, and as a model's answers."""
    asked = [("view", "which view is this image taken?", "PA view"), ("view", "is this AP view?", "no")]
    for i, finding in enumerate(FINDINGS):
        other = FINDINGS[(i + 1) % len(FINDINGS)]
        side = ("left", "right")[i % 2]
        asked += [
            ("presence", f"is there evidence of {finding} in this image?", ("yes", "no")[i % 2]),
            ("location", f"where is the {finding}?", f"in the {side} lower lobe"),
            ("level", f"what level is the {finding}?", ("mild", "severe")[i % 2]),
            ("abnormality", "what abnormalities are seen in this image?", f"{finding}, {other}"),
            (
                "difference",
                "what has changed compared to the reference image?",
                f"the main image has an additional finding of {finding} than the reference image. "
                f"the level of {other} has changed from mild to severe. ",
            ),
            (
                "prediction",
                "What will have changed in this radiograph after 3 days?",
                f"the main image is missing the finding of {finding} than the reference image. ",
            ),
        ]
    for number, (kind, question, short_answer) in enumerate(asked):
        reference = sentence(kind, question, short_answer)
        yield {
            "question_id": f"q{number}",
            "model": "lumen",
            "type": kind,
            "question": question,
            "short_answer": short_answer,
            "long_answer": reference,
            "answer": reference,
        }


class Constant:
    """A judge that gives one score to everything."""

    source = "llm"

    def __init__(self, score: str) -> None:
        self.name, self.score = f"always {score}", score

    def chat(self, conversations, *, max_tokens, temperature, seed, choices=None):
        assert temperature == 0 and list(choices) == list(SCORES)
        return [Completion(self.score, tuple(float(c == self.score) for c in choices)) for _ in conversations]


def test_the_rule_based_judge_passes_every_canary():
    rows = list(score(items(), open_engine(EngineSettings()), Judge(canaries=10), seed=0))
    judged = verdict(rows)["grammar"]
    assert judged["untried"] == []
    assert {kind: rate["rate"] for kind, rate in judged["kinds"].items()} == dict.fromkeys(KINDS, 1.0)
    assert judged["fit"] and all(rate["tried"] >= 5 for rate in judged["kinds"].values())


def test_the_rule_based_judge_passes_every_canary_on_phantoms_ground_truth(tmp_path):
    folder = phantom.write(tmp_path, Phantom(patients=30, size=64, dicom_every=0), seed=1)
    questions = []
    with next(folder.rglob("mimic_pair_questions.csv")).open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            days = 30 if row["question_type"] == "difference" else None
            question = {"question_id": f"q{number}", "type": row["question_type"], "interval_days": days}
            questions.append(question | {"question": row["question"], "short_answer": row["answer"]})
    known = {question["question_id"]: question for question in questions}
    engine = open_engine(EngineSettings())
    truths = []
    for row in rewrite(questions, engine, Rewrite(), seed=0):
        assert row["rejected"] == []
        item = known[row.get("source_question_id", row["question_id"])] | row
        truths.append(item | {"model": "truth", "long_answer": row["long_answer"], "answer": row["long_answer"]})
    rows = list(score(truths, engine, Judge(canaries=40), seed=0))
    assert {row["score"] for row in rows if "canary" not in row} == {10}
    kinds = verdict(rows)["grammar"]["kinds"]
    assert {kind: (rate["passed"], rate["tried"]) for kind, rate in kinds.items()} == dict.fromkeys(KINDS, (40, 40))


@pytest.mark.parametrize("constant", ["10", "1", "5"])
def test_a_judge_that_gives_one_score_to_everything_is_unfit(constant):
    rows = list(score(items(), Constant(constant), Judge(), seed=0))
    assert not verdict(rows)[f"always {constant}"]["fit"]


def test_scores_come_in_order_one_an_item_and_canaries_after_them():
    given = list(items())
    rows = list(score(given, open_engine(EngineSettings()), Judge(canaries=2), seed=0))
    assert [row["question_id"] for row in rows if "canary" not in row] == [item["question_id"] for item in given]
    assert set(rows[0]) == {"question_id", "model", "score", "expected_score", "judge"}
    assert {row["score"] for row in rows if "canary" not in row} == {10}
    assert all("canary" in row for row in rows[len(given) :])


def test_an_empty_answer_scores_lowest():
    empty = next(items()) | {"answer": ""}
    assert (
        next(iter(score([empty], open_engine(EngineSettings(kind="grammar")), Judge(canaries=1), seed=0)))["score"] == 1
    )


def test_no_row_holds_an_items_text():
    rows = list(score(items(), open_engine(EngineSettings()), Judge(), seed=0))
    assert not any(finding in str(row) for row in rows for finding in FINDINGS)


def test_the_same_shard_gives_the_same_rows():
    first, second = (list(score(items(), open_engine(EngineSettings()), Judge(), seed=4)) for _ in range(2))
    assert first == second


def test_the_expected_score_is_the_mean_over_the_choices():
    class Torn(Constant):
        def chat(self, conversations, **_):
            return [Completion("10", (0.2, *[0.0] * 8, 0.8)) for _ in conversations]

    (row,) = score(list(items())[:1], Torn("10"), Judge(canaries=0), seed=0)
    assert (row["score"], row["expected_score"]) == (10, 8.2)


def test_a_judge_that_padding_or_an_order_moves_fails_those_canaries():
    def chat(conversations, **_):
        texts = [str(conversation) for conversation in conversations]
        return [
            Completion("10", (*[0.0] * 9, 1.0)) if "with great care" in text else Completion("1", (1.0, *[0.0] * 9))
            for text in texts
        ]

    judge = Constant("1")
    judge.chat = chat
    kinds = verdict(score(items(), judge, Judge(), seed=0))["always 1"]["kinds"]
    assert kinds["padded"]["passed"] == 0 < kinds["padded"]["tried"] and kinds["injected"]["rate"] == 1


def test_two_judges_of_one_name_stay_two():
    """An engine is called by the last part of its model's path: a/final and b/final."""
    one, other = Constant("10"), Constant("3")
    other.name = one.name
    rows = list(score(list(items()), one, Judge(), seed=0, second=other))
    assert {row["judge"]: row["score"] for row in rows} == {"always 10": 10, "always 10, second": 3}
    assert agreement(rows)["difference"] == 7 and len(verdict(rows)) == 2


def test_agreement_of_two_judges_leaves_canaries_out():
    given = [dict(item, answer="No edema is seen.") if i % 2 else item for i, item in enumerate(items())]
    rows = list(score(given, open_engine(EngineSettings()), Judge(), seed=0, second=Constant("10")))
    both = agreement(rows)
    assert both["judges"] == ["grammar", "always 10"]
    assert both["answers"] == len(given)
    assert both["tau"] is None and both["difference"] < 0
    assert agreement(row for row in rows if row["judge"] == "grammar") == {}
    assert both == agreement([row for row in rows if "canary" not in row])


def test_agreement_counts_answers_within_a_point():
    scores = {"a": (5, 5), "b": (5, 6), "c": (5, 3), "d": (9, 8)}
    rows = [
        {"question_id": id, "model": "lumen", "judge": judge, "score": score}
        for id, pair in scores.items()
        for judge, score in zip(("one", "other"), pair, strict=True)
    ]
    assert agreement(rows)["within_one"] == 3 / 4 and agreement(rows)["difference"] == (0 - 1 + 2 + 1) / 4


def test_judges_without_a_common_answer_have_no_agreement():
    """Of two models, each judged by another, `within one point 0.000` would be said of no answer."""
    rows = [{"question_id": "a", "model": model, "judge": model, "score": 5} for model in ("ft", "lumen")]
    assert agreement(rows) == {}


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [("opposite", 1, 2), ("side", 1, 3), ("shuffled", 1, 4), ("paraphrase", 8, 10), ("identity", 9, 10)],
)
def test_a_canary_is_passed_by_the_scores_of_its_kind_alone(kind, least, most):
    canary = Canary(kind, {}, "answer")
    assert [score for score in range(1, 11) if canary.passed(score, 5.5)] == list(range(least, most + 1))


@pytest.mark.parametrize("kind", ["padded", "injected"])
def test_padding_and_orders_may_gain_less_than_half_a_point(kind):
    canary = Canary(kind, {}, "answer", bare="answer")
    assert canary.passed(10, 2.0, 2.0) and canary.passed(10, 2.49, 2.0) and canary.passed(10, 1.0, 2.0)
    assert not canary.passed(1, 2.5, 2.0) and not canary.passed(1, 9.0, 2.0)


@pytest.mark.parametrize(("passed", "tried", "fit"), [(9, 10, True), (10, 10, True), (8, 9, False), (17, 19, False)])
def test_a_judge_is_fit_that_passes_nine_in_ten_of_every_kind(passed, tried, fit):
    rows = [{"judge": "it", "canary": "side", "passed": number < passed} for number in range(tried)]
    rows += [{"judge": "it", "canary": "identity", "passed": True}] * 100
    assert verdict(rows)["it"]["fit"] == fit


def test_every_order_to_the_judge_is_tried():
    injected = [canary for canary in make_canaries(list(items()), 50, seed=0) if canary.kind == "injected"]
    tails = {canary.answer.removeprefix(canary.bare) for canary in injected}
    assert tails == {order.format(answer="") for order in INJECTIONS}


def test_the_reference_of_another_question_is_one_of_another_type():
    """Two questions about one image are often answered alike: `Yes, it is there.`"""
    alike = [item for item in items() if item["type"] == "presence"]
    assert {canary.kind for canary in make_canaries(alike, 50, seed=0)} == {"opposite", "paraphrase", "identity"}


@pytest.mark.parametrize(
    ("text", "swapped"),
    [
        ("Left lower lobe, left base.", "Right lower lobe, right base."),
        ("The RIGHT lung.", "The LEFT lung."),
        ("On the left and right.", ""),
        ("The heart is large; nothing is leftover.", ""),
    ],
)
def test_sides_are_swapped_in_whatever_case_and_only_where_there_is_one(text, swapped):
    assert swap_sides(text) == swapped
