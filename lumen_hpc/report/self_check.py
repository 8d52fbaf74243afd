"""Every evaluation checks its own text scores: pairs of the run are scored by nltk and rouge-score too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lumen_hpc.errors import UserError
from lumen_hpc.metrics.lexical import lexical

TOLERANCE = 1e-9


@dataclass(frozen=True)
class SelfCheck:
    pairs: int
    bleu4: float
    """Greatest difference from nltk's sentence_bleu."""
    rouge_l: float
    """Greatest difference from rouge-score's rougeL F-measure."""

    def __str__(self) -> str:
        if not self.pairs:
            return "The text scores of this run were not checked against nltk and rouge-score."
        greatest = max(self.bleu4, self.rouge_l)
        text = "0" if greatest <= TOLERANCE else f"{greatest:.2g}"
        return f"{self.pairs:,} pairs of this run were scored by nltk and rouge-score too: greatest difference {text}."


def self_check(answers: Mapping[str, Sequence[str]], references: Sequence[str], count: int, seed: int) -> SelfCheck:
    """Scores `count` seeded pairs of the models' answers and the long references by the peers as well.

    Raises UserError if any score differs by more than `TOLERANCE`: then no number of the report can be trusted.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_score.rouge_scorer import RougeScorer

    pairs = [(text, references[i]) for texts in answers.values() for i, text in enumerate(texts) if references[i]]
    order = np.random.default_rng(seed).permutation(len(pairs))[:count]
    sample = [pairs[i] for i in order]
    if not sample:
        return SelfCheck(0, 0.0, 0.0)
    ours = lexical(*map(list, zip(*sample, strict=True)))
    smooth, scorer = SmoothingFunction().method1, RougeScorer(["rougeL"])
    bleu = [sentence_bleu([reference.split()], text.split(), smoothing_function=smooth) for text, reference in sample]
    rouge = [scorer.score(reference, text)["rougeL"].fmeasure for text, reference in sample]
    check = SelfCheck(len(sample), float(np.abs(ours.bleu4 - bleu).max()), float(np.abs(ours.rouge_l - rouge).max()))
    if max(check.bleu4, check.rouge_l) > TOLERANCE:
        raise UserError(
            f"evaluate's own scores differ from the peers' on pairs of this run: BLEU-4 by {check.bleu4:.3g} from "
            f"nltk, ROUGE-L by {check.rouge_l:.3g} from rouge-score; the tables were not written"
        )
    return check
