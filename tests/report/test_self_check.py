"""Every evaluation scores pairs of its own with nltk and rouge-score, and fails where they differ."""

from __future__ import annotations

import numpy as np
import pytest

from lumen_hpc.errors import UserError
from lumen_hpc.report import self_check as module
from lumen_hpc.report.self_check import self_check

TEXTS = ["There is edema.", "Nothing has changed.", "The level of edema has changed from mild to severe.", ""] * 300


def test_a_thousand_pairs_agree_and_the_page_says_so(written):
    check = self_check({"a": TEXTS, "b": TEXTS[::-1]}, TEXTS, 1000, 0)
    assert check.pairs == 1000 and max(check.bleu4, check.rouge_l) <= 1e-9
    text = "1,000 pairs of this run were scored by nltk and rouge-score too: greatest difference 0."
    assert str(check) == text
    assert text in (written / "index.html").read_text() and text in (written / "tables.md").read_text()


@pytest.mark.parametrize("measure, peer", [("bleu4", "nltk"), ("rouge_l", "rouge-score")])
def test_a_score_that_differs_fails_the_evaluation(monkeypatch, measure, peer):
    honest = module.lexical

    def wrong(answers, references):
        scores = honest(answers, references)
        getattr(scores, measure)[np.argmax(getattr(scores, measure))] += 1e-6
        return scores

    monkeypatch.setattr(module, "lexical", wrong)
    with pytest.raises(UserError, match=f"by 1e-06 from {peer}"):
        self_check({"a": TEXTS}, TEXTS[::-1], 100, 0)


def test_switched_off_the_page_says_that_nothing_was_checked():
    assert "were not checked" in str(self_check({"a": TEXTS}, TEXTS, 0, 0))
