"""The compiled counting under `lexical`: what two texts, given as token ids, have in common.

Compiled on first use (seconds); the machine code is kept for every run with this version of the file (compiled.py).
"""

# mypy: disable-error-code="var-annotated, assignment"
# numba infers the types here, and re-binds a name to another one where it must.

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def count_pairs(ids, ends, whole, rouge, rouge_ends, recall, recall_ends, counts):
    """Fills `counts` int64 [n, 13] for n pairs of texts, answer before reference.

    `ids` int32 are the words of all texts, text t ending at `ends[t + 1]`; `whole[w]` is BLEU's token of
    word w, and `rouge[rouge_ends[w] : rouge_ends[w + 1]]` ROUGE's tokens of it, `recall` likewise.
    Columns: 0-1 BLEU tokens of answer and reference, 2-5 clipped n-gram matches, 6-7 ROUGE tokens,
    8 their longest common subsequence, 9-10 recall's found and missed, 11 clipped, 12 reference words.
    """
    for pair in range(len(counts)):
        row = counts[pair]
        first = ids[ends[2 * pair] : ends[2 * pair + 1]]
        second = ids[ends[2 * pair + 1] : ends[2 * pair + 2]]
        row[0], row[1] = len(first), len(second)
        shared_ngrams(whole[first], whole[second], row[2:6])
        answer, reference = expand(first, rouge, rouge_ends), expand(second, rouge, rouge_ends)
        row[6], row[7] = len(answer), len(reference)
        row[8] = common_subsequence(answer, reference)
        found_and_missed(expand(first, recall, recall_ends), expand(second, recall, recall_ends), row[9:13])


@njit(cache=True, nogil=True)
def dropped_marks(text, ends, marks):
    """Which punctuation recall's normalisation drops from each text, as bits in the order of `marks`, int32 [n].

    `text` uint8 are all texts' bytes, text t ending at `ends[t]`; the rule is `recall.dropped_marks`, for ASCII digits.
    """
    bit = np.full(256, -1, np.int8)
    for k in range(len(marks)):
        bit[marks[k]] = k
    dropped = np.zeros(len(ends), np.int32)
    start = 0
    for t in range(len(ends)):
        for i in range(start, ends[t]):
            k = bit[text[i]]
            if k < 0:
                continue
            before = text[i - 1] if i > start else 0
            after = text[i + 1] if i + 1 < ends[t] else 0
            if before == 32 or after == 32:
                dropped[t] |= 1 << k
            if text[i] == 44 and 48 <= before <= 57 and 48 <= after <= 57:
                dropped[t] = (1 << len(marks)) - 1
                break
        start = ends[t]
    return dropped


@njit(cache=True, nogil=True)
def expand(words, tokens, ends):
    """The tokens of each word, one after another."""
    size = 0
    for word in words:
        size += ends[word + 1] - ends[word]
    expanded = np.empty(size, np.int32)
    at = 0
    for word in words:
        for k in range(ends[word], ends[word + 1]):
            expanded[at] = tokens[k]
            at += 1
    return expanded


@njit(cache=True, nogil=True)
def shared_ngrams(answer, reference, matches):
    """Adds to `matches` [4] the n-grams of `answer`, n = 1 to 4, each found in `reference` at a place of its own."""
    taken = np.zeros((4, len(reference)), np.bool_)
    for i in range(len(answer)):
        found = np.zeros(4, np.bool_)
        for j in range(len(reference)):
            for n in range(min(4, len(answer) - i, len(reference) - j)):
                if answer[i + n] != reference[j + n]:
                    break
                if not found[n] and not taken[n, j]:
                    found[n] = taken[n, j] = True
                    matches[n] += 1


@njit(cache=True, nogil=True)
def common_subsequence(answer, reference):
    """Length of the longest common subsequence."""
    row = np.zeros(len(reference) + 1, np.int32)
    for token in answer:
        diagonal = 0
        for j in range(len(reference)):
            above = row[j + 1]
            row[j + 1] = diagonal + 1 if token == reference[j] else max(above, row[j])
            diagonal = above
    return row[-1]


@njit(cache=True, nogil=True)
def found_and_missed(answer, reference, counts):
    """Fills `counts` [4]: tokens of `answer` that are in `reference`, tokens it misses, clipped matches, all of it."""
    taken = np.zeros(len(reference), np.bool_)
    present = np.zeros(len(reference), np.bool_)
    for token in answer:
        free = True
        shared = False
        for j in range(len(reference)):
            if reference[j] == token:
                shared = present[j] = True
                if free and not taken[j]:
                    taken[j] = True
                    free = False
        counts[0] += shared
    counts[1] = len(reference) - present.sum()
    counts[2] = taken.sum()
    counts[3] = len(reference)
