"""BLEU-4, ROUGE-L and token recall of many pairs at once, equal to nltk, rouge-score and LLaVA-Med.

A text is split at white space once; what each metric's tokenizer makes of a word is looked up, not
computed again, and the counting runs compiled. Definitions and sources: `TOKENIZERS`.
"""

from __future__ import annotations

import re
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lumen_hpc.metrics import recall as published

TOKENIZERS = {
    "bleu4": "nltk sentence_bleu, uniform to 4-grams, SmoothingFunction().method1; white-space tokens, case kept",
    "bleu4_corpus": "nltk corpus_bleu, unsmoothed; white-space tokens, case kept",
    "rouge_l": "rouge-score rougeL F-measure, lower-cased runs of a-z and 0-9, no stemmer",
    "recall": "LLaVA-Med calculate_f1score recall after its normalize_word",
    "recall_clipped": "the same words, each counted at most as often as in the reference",
}
_EPSILON = 0.1  # nltk's method1: stands in for a count of zero matches
_PAIRS_AT_ONCE = 16_384  # pairs encoded at a time: bounds memory, not results
_ALPHANUMERIC = re.compile("[a-z0-9]+")


@dataclass(frozen=True)
class Lexical:
    """Per-pair scores, each float64 [n] in 0 to 1, and the counts that corpus BLEU needs."""

    bleu4: np.ndarray
    rouge_l: np.ndarray
    recall: np.ndarray
    recall_clipped: np.ndarray
    matches: np.ndarray
    """Clipped n-gram matches, int32 [n, 4]."""
    lengths: np.ndarray
    """White-space tokens of answer and reference, int32 [n, 2]."""


def lexical(answers: Sequence[str], references: Sequence[str]) -> Lexical:
    """Scores `answers[i]` against `references[i]`; see `TOKENIZERS` for the definitions.

    Raises ValueError when the two differ in length. About 12 µs a pair of 25 words on one core, plus the texts' own
    quadratic share when they are long; memory beyond the texts is about 60 bytes a pair.
    """
    if len(answers) != len(references):
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    from lumen_hpc.metrics.compiled import counting

    vocabulary = _Vocabulary()
    parts = []
    for start in range(0, max(1, len(answers)), _PAIRS_AT_ONCE):
        chunk = answers[start : start + _PAIRS_AT_ONCE], references[start : start + _PAIRS_AT_ONCE]
        texts = [text for pair in zip(*chunk, strict=True) for text in pair]
        counts: np.ndarray = np.zeros((len(chunk[0]), _COLUMNS), np.int64)
        counting().count_pairs(*vocabulary.encode(texts), *vocabulary.tables(), counts)
        for row, answer, reference in _pairs_with_many_periods(*chunk):
            counts[row, _RECALL] = _recall_counts(published.words(answer), published.words(reference))
        parts.append(_scores(counts))
    return Lexical(*map(np.concatenate, zip(*parts, strict=True)))


def corpus_bleu(matches: np.ndarray, lengths: np.ndarray) -> float:
    """nltk's unsmoothed corpus BLEU-4 of pairs, each given by its counts [n, 4] and [n, 2]; 0 to 1."""
    answer, reference = lengths.sum(0, dtype=np.int64).tolist()
    totals = np.maximum(1, lengths[:, :1] - np.arange(4)).sum(0)
    match_counts = matches.sum(0, dtype=np.int64)
    if match_counts[0] == 0:
        return 0.0
    precision = np.where(match_counts > 0, match_counts / totals, sys.float_info.min)
    return float(min(1.0, np.exp(1 - reference / answer)) * np.exp(np.log(precision).mean()))


class _Vocabulary:
    """Words of texts as ids, and per id what BLEU, ROUGE and recall take the word for.

    Recall treats a word by the marks its whole text drops, so there is one dictionary per set of marks (as bits).
    """

    def __init__(self) -> None:
        self._by_marks: dict[int, _Words] = {}
        self._tokens: dict[str, int] = {}
        self._whole = array("i")
        self._rouge, self._rouge_ends = array("i"), array("i", [0])
        self._recall, self._recall_ends = array("i"), array("i", [0])

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all words, int32 [words], and where each text ends among them, int64 [texts + 1]."""
        ids, ends = array("i"), [0]
        for text, marks in zip(texts, _dropped_bits(texts), strict=True):
            if marks not in self._by_marks:
                self._by_marks[marks] = _Words(self, marks)
            ids.extend(map(self._by_marks[marks].__getitem__, text.split()))
            ends.append(len(ids))
        return np.array(ids, np.int32), np.array(ends, np.int64)

    def tables(self) -> tuple[np.ndarray, ...]:
        """BLEU's token of each word, then ROUGE's and recall's tokens with where each word's end."""
        return tuple(np.array(table, np.int32) for table in
                     (self._whole, self._rouge, self._rouge_ends, self._recall, self._recall_ends))  # fmt: skip

    def add(self, word: str, dropped: str) -> int:
        token = self._tokens.setdefault
        lower = word.lower()
        self._rouge.extend(token(part, len(self._tokens)) for part in _ALPHANUMERIC.findall(lower))
        self._recall.extend(token(part, len(self._tokens)) for part in published.normalize(lower, dropped))
        self._rouge_ends.append(len(self._rouge))
        self._recall_ends.append(len(self._recall))
        self._whole.append(token(word, len(self._tokens)))
        return len(self._whole) - 1


class _Words(dict):
    """Word → id, added when first seen."""

    def __init__(self, vocabulary: _Vocabulary, marks: int) -> None:
        self._vocabulary = vocabulary
        self._dropped = "".join(mark for k, mark in enumerate(published.MARKS) if marks >> k & 1)

    def __missing__(self, word: str) -> int:
        self[word] = self._vocabulary.add(word, self._dropped)
        return self[word]


def _dropped_bits(texts: list[str]) -> list[int]:
    """`recall.dropped_marks` of each text as bits, in the order of `recall.MARKS`."""
    from lumen_hpc.metrics.compiled import counting

    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([len(text) for text in encoded])
    marks = np.frombuffer(published.MARKS.encode(), np.uint8)
    dropped = counting().dropped_marks(np.frombuffer(b"".join(encoded), np.uint8), ends, marks).tolist()
    for k, text in enumerate(texts):
        if not text.isascii() and "," in text:  # its digits need not be ASCII
            places = map(published.MARKS.index, published.dropped_marks(text))
            dropped[k] = sum(1 << place for place in places)
    return dropped


# Columns of `counting.count_pairs`; the first six are BLEU's lengths and matches.
_ROUGE, _RECALL, _COLUMNS = slice(6, 9), slice(9, 13), 13


def _scores(counts: np.ndarray) -> tuple[np.ndarray, ...]:
    """The fields of `Lexical`, out of counts."""
    lengths, matches = counts[:, 0:2], counts[:, 2:6]
    answer, reference = lengths[:, 0], lengths[:, 1]
    total = np.maximum(1, lengths[:, :1] - np.arange(4))
    precision = np.where(matches > 0, matches, _EPSILON) / total
    brevity = np.exp(np.minimum(0, 1 - reference / np.maximum(1, answer)))
    bleu4 = np.where(matches[:, 0] > 0, brevity * np.exp(np.log(precision).mean(1)), 0.0)
    answer, reference, common = counts[:, _ROUGE].T
    rouge_l = _ratio(2 * common, answer + reference)
    recalled, missed, clipped, in_reference = counts[:, _RECALL].T
    scores = bleu4, rouge_l, _ratio(recalled, recalled + missed), _ratio(clipped, in_reference)
    return *scores, matches.astype(np.int32), lengths.astype(np.int32)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(1, whole)


def _pairs_with_many_periods(answers: Sequence[str], references: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    for row, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        if max(answer.count("."), reference.count(".")) > published.PERIODS_A_PASS:
            yield row, answer, reference


def _recall_counts(answer: list[str], reference: list[str]) -> tuple[int, int, int, int]:
    answer_counts, reference_counts = Counter(answer), Counter(reference)
    recalled = sum(answer_counts[word] for word in reference_counts)
    missed = sum(count for word, count in reference_counts.items() if word not in answer_counts)
    return recalled, missed, (answer_counts & reference_counts).total(), reference_counts.total()
