"""The fact check: does a long answer say what the short answer says, and nothing else?"""

from __future__ import annotations

from lumen_hpc.language.sentences import sentence


def check(kind: str, question: str, short_answer: str, long_answer: str) -> list[str]:
    """Reasons why a long answer is not faithful to its short answer; empty if it is (sections 2.2 and 2.4)."""
    said = _words(long_answer)
    if not said:
        return ["it is empty"]
    return [] if said == _words(sentence(kind, question, short_answer)) else ["it is not the grammar's sentence"]


def score(kind: str, question: str, reference: str, answer: str) -> int:
    """How far an answer states the reference's facts, 1 (contradicts, or shares none) to 10 (equal)."""
    reference_words, answer_words = _words(reference), _words(answer)
    if reference_words == answer_words:
        return 10
    if ("no" in reference_words or "not" in reference_words) != ("no" in answer_words or "not" in answer_words):
        return 1
    shared = len(set(reference_words) & set(answer_words))
    return 1 + round(8 * 2 * shared / (len(set(reference_words)) + len(set(answer_words))))


def _words(text: str) -> list[str]:
    return text.lower().replace(".", " ").replace(",", " ").split()
