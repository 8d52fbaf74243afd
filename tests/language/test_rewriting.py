"""Rewriting with unfaithful engines: no unfaithful sentence reaches a row, and equal questions are requested once."""

from __future__ import annotations

import itertools
import runpy

import pytest

from lumen_hpc.config.schema import EngineSettings, Rewrite
from lumen_hpc.data.diff_vqa import TEMPLATES
from lumen_hpc.errors import UserError
from lumen_hpc.language import prompting, sentences
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.facts import check
from lumen_hpc.language.protocol import Completion
from lumen_hpc.language.rewriting import order_by_request, rewrite
from lumen_hpc.metrics.closed import first_yes_no

EDEMA = "is there evidence of edema in this image?"
NEW_EDEMA = "the main image has an additional finding of edema than the reference image. "


class Scripted:
    """Answers each conversation with the next of its scripted texts; records its calls."""

    name, source = "scripted", "llm"

    def __init__(self, *texts: str) -> None:
        self.texts, self.calls, self.options = texts, [], []

    def chat(self, conversations, *, max_tokens, temperature, seed, choices=None):
        self.calls.append((list(conversations), list(seed)))
        self.options.append((max_tokens, temperature))
        return [Completion(self.texts[min(len(self.calls), len(self.texts)) - 1]) for _ in conversations]


def question(number, kind="presence", text=EDEMA, answer="no", days=None):
    return {"question_id": f"q{number}", "type": kind, "question": text, "short_answer": answer, "interval_days": days}


def test_an_unfaithful_sentence_is_requested_again_with_another_seed_and_its_reason_kept():
    engine = Scripted("Edema is seen.", "No edema is seen.")
    (row,) = rewrite([question(1)], engine, Rewrite(), seed=0)
    assert row == {
        "question_id": "q1",
        "long_answer": "No edema is seen.",
        "source": "llm",
        "attempts": 2,
        "rejected": ["polarity or change: edema is present, not absent"],
    }
    assert engine.calls[0][1] != engine.calls[1][1]


def test_the_engine_gets_the_settings_of_the_rewriting_and_seeds_of_31_bits():
    engine = Scripted("No edema is seen.")
    list(
        rewrite([question(i) for i in range(200)], engine, Rewrite(variants=50, max_tokens=77, temperature=0.3), seed=0)
    )
    assert engine.options == [(77, 0.3)]
    (_, seeds), *_ = engine.calls
    assert 2**30 < max(seeds) < 2**31


def test_a_model_that_never_answers_is_an_error_and_not_a_run_of_fallbacks():
    asked = [question(i, text=f"is there {finding}?") for i, finding in enumerate(["edema", "nodule", "mass"] * 4)]
    for text in ("", "<think>Is there"):
        with pytest.raises(UserError, match=r"all 12 answers of scripted are empty.*rewrite\.max_tokens=128"):
            list(rewrite(asked, Scripted(text), Rewrite(variants=10**6), seed=0))
    assert {row["source"] for row in rewrite(asked, Scripted(""), Rewrite(), seed=0)} == {"fallback"}, "too few to tell"
    assert list(rewrite(asked, Scripted("No.", ""), Rewrite(variants=10**6, attempts=2), seed=0))


def test_after_the_last_attempt_the_grammars_sentence_replaces_it():
    (row,) = rewrite([question(1)], Scripted("Edema is seen."), Rewrite(attempts=3), seed=0)
    assert (row["source"], row["attempts"], len(row["rejected"])) == ("fallback", 3, 3)
    assert row["long_answer"] == "No, there is no evidence of edema in this image."


@pytest.mark.parametrize(
    ("answer", "text", "long_answer"),
    [
        ("yes", "Edema is present.", "Yes, edema is present."),
        ("yes", "Yes, there is edema.", "Yes, there is edema."),
        ("no", "Edema is not seen.", "No, edema is not seen."),
        ("no", "There is no evidence of edema in this image.", "No, there is no evidence of edema in this image."),
        ("no", "No edema is seen.", "No edema is seen."),
        ("no", "<think>Edema?</think>\n\nNo edema is seen.", "No edema is seen."),
        ("no", "Edema is seen?</think>No edema is seen.", "No edema is seen."),
        ("no", "The heart grows.", "No, there is no evidence of edema in this image."),
    ],
)
def test_every_closed_answer_opens_with_its_yes_or_no(answer, text, long_answer):
    (row,) = rewrite([question(1, answer=answer)], Scripted(text), Rewrite(attempts=1), seed=0)
    assert row["long_answer"] == long_answer and first_yes_no(row["long_answer"]) == answer


def test_equal_questions_are_requested_once_and_variants_separately():
    questions = [question(i) for i in range(40)]
    for variants in (1, 3):
        engine = Scripted("No edema is seen.")
        rows = list(rewrite(questions, engine, Rewrite(variants=variants), seed=0))
        assert [row["question_id"] for row in rows] == [f"q{i}" for i in range(40)]
        assert len(engine.calls) == 1
        assert len(set(engine.calls[0][1])) == len(engine.calls[0][0]) == variants


def test_a_difference_brings_its_predictions_with_it():
    asked = question(1, "difference", "what has changed compared to the reference image?", NEW_EDEMA, days=12)
    rows = list(rewrite([asked], open_engine(EngineSettings()), Rewrite(predictions_per_pair=2), seed=0))
    assert [row.get("type") for row in rows] == [None, "prediction", "prediction"]
    for row in rows[1:]:
        assert row["source_question_id"] == "q1" and "12 days" in row["question"]
        assert check("prediction", row["question"], NEW_EDEMA, row["long_answer"]) == []


def test_the_same_day_gives_no_prediction():
    asked = question(1, "difference", "what has changed compared to the reference image?", NEW_EDEMA, days=0)
    assert len(list(rewrite([asked], open_engine(EngineSettings()), Rewrite(), seed=0))) == 1


def test_an_answer_that_the_grammar_cannot_read_is_named_by_id_and_never_by_text():
    asked = question("77", "difference", "what has changed compared to the reference image?", "secret words", days=1)
    with pytest.raises(UserError, match="question q77") as caught:
        list(rewrite([asked], open_engine(EngineSettings()), Rewrite(), seed=0))
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None


def test_equal_questions_are_adjacent_whatever_their_order():
    questions = [question(i, answer="yes" if i % 3 else "no") for i in range(30)]
    answers = [questions[i]["short_answer"] for i in order_by_request(questions)]
    assert sum(a != b for a, b in itertools.pairwise(answers)) == 1
    order = order_by_request(questions)
    assert [i for i in order if i % 3 == 0] == list(range(0, 30, 3)), "equal ones keep their order"
    assert sorted(order_by_request(questions)) == list(range(30))


def test_the_static_part_of_a_prompt_comes_first_and_is_the_same_for_a_type():
    first, second = (prompting.rewrite_prompt("presence", EDEMA, answer) for answer in ("yes", "no"))
    assert first[:-1] == second[:-1] and first[0]["role"] == "system"
    assert first[-1]["content"].splitlines() == ["Type: presence", f"Question: {EDEMA}", "Short answer: yes"]


def test_a_type_of_question_without_examples_names_the_file_that_lacks_them(monkeypatch):
    monkeypatch.setattr(prompting, "TYPES", (*prompting.TYPES, "cause"))
    with pytest.raises(UserError, match=r"prompts/rewrite\.yaml has no examples of type cause"):
        prompting.rewrite_prompt("cause", "what causes the edema?", "heart failure")


def test_a_template_without_a_sentence_is_refused(monkeypatch):
    monkeypatch.setitem(TEMPLATES, "cause", ("what causes the {finding}?",))
    with pytest.raises(NotImplementedError, match=r"'what causes the \{finding\}\?' has no sentence"):
        runpy.run_path(sentences.__file__)


def test_a_prediction_is_requested_with_rules_of_its_own():
    asked = prompting.rewrite_prompt("prediction", "What will change within 3 days?", NEW_EDEMA)
    assert "a prediction with exactly the same content" in asked[0]["content"]
    assert "is expected to" in asked[2]["content"]


def test_the_prompts_own_examples_are_faithful():
    prompt = prompting.read_prompt("rewrite")
    assert len(prompt["examples"]) == 8
    for kind, examples in prompt["examples"].items():
        for asked, short_answer, sentence in examples:
            assert check(kind, asked, short_answer, sentence) == [], sentence


class Verifier(Scripted):
    """Replies yes or no to every sentence, beside its scripted ones."""

    def __init__(self, reply, *texts):
        super().__init__(*texts)
        self.reply = reply

    def chat(self, conversations, *, max_tokens, temperature, seed, choices=None):
        if choices is None:
            return super().chat(conversations, max_tokens=max_tokens, temperature=temperature, seed=seed)
        assert temperature == 0 and choices == ("yes", "no")
        return [Completion(self.reply, (1.0, 0.0)) for _ in conversations]


def test_a_verifier_that_accepts_everything_does_not_loosen_the_rules():
    (row,) = rewrite([question(1)], Verifier("yes", "Edema is seen."), Rewrite(attempts=1, verify="rules+llm"), seed=0)
    assert row["source"] == "fallback"
    assert row["rejected"][0].endswith("; the model accepts what the rules refuse")
    assert row["verified"] == [{"rules": False, "model": True, "sentence": "Edema is seen."}]


def test_only_what_rules_and_verifier_accept_passes():
    settings = Rewrite(attempts=2, verify="rules+llm")
    (row,) = rewrite([question(1)], Verifier("no", "No edema is seen."), settings, seed=0)
    assert (row["source"], row["rejected"]) == ("fallback", ["the model refuses what the rules accept"] * 2)
    (row,) = rewrite([question(1)], Verifier("yes", "No edema is seen."), settings, seed=0)
    assert row["verified"] == [{"rules": True, "model": True}]
    assert (row["long_answer"], row["source"], row["rejected"]) == ("No edema is seen.", "llm", [])


def test_the_rule_engine_stands_in_for_a_verifier():
    asked = [question(i) for i in range(3)]
    rows = list(rewrite(asked, open_engine(EngineSettings()), Rewrite(verify="rules+llm"), seed=0))
    assert [row["rejected"] for row in rows] == [[], [], []]
