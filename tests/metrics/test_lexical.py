"""Lexical scores equal their published implementations on every kind of text."""

import random

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, corpus_bleu, sentence_bleu
from rouge_score.rouge_scorer import RougeScorer

from lumen_hpc.metrics import lexical as module
from lumen_hpc.metrics import recall
from lumen_hpc.metrics.lexical import lexical

WORDS = """the a an no none one ten yes effusion effusions, left-sided 1,2 3.5 4. .5 .. (small) "mild" moderate edema;
    dont couldnt've don't Pneumothorax CARDIOMEGALY üñî Σας İx ΑΣ K a/b < > @ \u3000 , 肺炎 ẞ resolved. e\u0301 ٣,٤ \x1c
""".split(" ")  # noqa: SIM905 (the blanks are the point)


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)

    def text() -> str:
        words = [rng.choice(WORDS) for _ in range(rng.choice([0, 1, 1, 2, 3, 5, 12, 25, 40]))]
        return (
            rng.choice(["", "", " ", "\t"])
            + rng.choice([" ", " ", "  ", "\n", "\x85"]).join(words)
            + rng.choice(["", ". "])
        )

    texts = [(text(), text()) for _ in range(count)]
    # Overlapping pairs, as real answers are: the reference with some words changed.
    for k in range(0, count, 2):
        words = texts[k][1].split(" ")
        texts[k] = (" ".join(rng.choice(WORDS) if rng.random() < 0.2 else word for word in words), texts[k][1])
    long = " ".join(rng.choice(WORDS) for _ in range(1200))
    return [*texts, ("", ""), ("a", "a"), (long, long[::-1]), (long, long + " edema"), ("x. " * 70 + "none", "x 0 y")]


def scored(texts):
    return lexical([answer for answer, _ in texts], [reference for _, reference in texts])


def test_bleu_and_rouge_equal_nltk_and_rouge_score_on_ten_thousand_pairs():
    texts = pairs(10_000)
    scores = scored(texts)
    rouge, smooth = RougeScorer(["rougeL"]), SmoothingFunction().method1
    for i, (answer, reference) in enumerate(texts):
        bleu = sentence_bleu([reference.split()], answer.split(), smoothing_function=smooth)
        assert abs(scores.bleu4[i] - bleu) < 1e-12, (answer, reference)
        assert abs(scores.rouge_l[i] - rouge.score(reference, answer)["rougeL"].fmeasure) < 1e-12, (answer, reference)


@pytest.mark.parametrize("count", [1, 7, 400])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_corpus_bleu_equals_nltk(count):
    texts = pairs(count, seed=count)
    scores = scored(texts)
    theirs = corpus_bleu([[reference.split()] for _, reference in texts], [answer.split() for answer, _ in texts])
    assert module.corpus_bleu(scores.matches, scores.lengths) == pytest.approx(theirs, abs=1e-12)


def test_corpus_bleu_of_nothing_in_common_is_zero():
    scores = lexical(["a b", ""], ["c d", "e"])
    assert module.corpus_bleu(scores.matches, scores.lengths) == 0


def test_recall_equals_its_plain_definition_on_every_pair():
    texts = pairs(2_000, seed=3)
    scores = scored(texts)
    assert scores.recall == pytest.approx([recall.recall(*pair) for pair in texts], abs=1e-12)
    assert scores.recall_clipped == pytest.approx([recall.clipped_recall(*pair) for pair in texts], abs=1e-12)


def test_scores_do_not_depend_on_what_is_scored_beside_them(monkeypatch):
    texts = pairs(300, seed=5)
    together = scored(texts)
    monkeypatch.setattr(module, "_PAIRS_AT_ONCE", 7)
    separate = scored(texts)
    for name in ("bleu4", "rouge_l", "recall", "recall_clipped"):
        assert np.array_equal(getattr(together, name), getattr(separate, name)), name


def test_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 answers for 1 references"):
        lexical(["a", "b"], ["a"])


def test_nothing_to_score_is_nothing():
    assert len(lexical([], []).bleu4) == 0
