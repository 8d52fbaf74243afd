"""Rewrites and judges in the report: shares that passed, and judges that are unfit."""

from __future__ import annotations

from lumen_hpc.report import language_checks


def test_a_judge_that_fails_its_canaries_is_named_unfit():
    rows = [{"judge": name, "canary": "opposite", "passed": name == "good"} for name in ["good", "bad"] * 5]
    (line,) = language_checks.unfit({"lumen": rows})
    assert line.startswith("Judge bad is unfit") and "0 of 5 opposite" in line


def test_acceptance_and_canaries_are_shares_with_intervals():
    rows = [{"source": "llm", "attempts": 1, "rejected": []}] * 8
    rows += [
        {"source": "llm", "attempts": 2, "rejected": ["side"]},
        {"source": "fallback", "attempts": 3, "rejected": ["side: left; unknown words: foo"] * 3},
    ]
    accepted = language_checks.acceptance([row | {"type": "prediction"} for row in rows])
    assert (accepted.accepted[0].k, accepted.accepted[0].n) == (9, 10)
    assert accepted.reasons == (("side", 2), ("unknown words", 1))
    low, high = accepted.accepted[0].bounds
    assert 0.55 < low < 0.65 and 0.97 < high < 1
    assert language_checks.acceptance([]) is None
    (share,) = language_checks.canaries(
        {"m": [{"canary": "opposite", "passed": p, "judge": "j"} for p in (True, True, False)]}
    )
    assert (share.name, share.group, share.k, share.n) == ("opposite", "j", 2, 3)


def test_rules_and_model_side_by_side_show_sentences_only_where_texts_are_allowed():
    verdicts = [(True, True), (False, False), (False, True), (True, False), (True, False)]
    rows = [
        {"source": "llm", "rejected": [], "type": "presence",
         "verified": [{"rules": rules, "model": model} | ({"sentence": f"Sentence {i}."} if rules != model else {})]}
        for i, (rules, model) in enumerate(verdicts)
    ]  # fmt: skip
    found = language_checks.acceptance(rows, texts=True).verification
    assert (found.both, found.neither, found.model_alone, found.rules_alone) == (1, 1, 1, 2)
    assert (found.disagreement.k, found.disagreement.n) == (3, 5)
    assert found.examples == (
        ("presence", "model", "Sentence 2."),
        ("presence", "rules", "Sentence 3."),
        ("presence", "rules", "Sentence 4."),
    )
    assert language_checks.acceptance(rows).verification.examples == ()
    assert language_checks.acceptance([row | {"verified": []} for row in rows]).verification is None
