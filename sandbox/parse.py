"""Shows how the reader takes a text apart, to see what a new wording lacks.

    python -m sandbox.parse KIND TEXT

KIND is a question type, such as difference. Of each sentence it prints the phrases, with `?` for unknown words, and the
row of grammar.yaml that reads each clause; then what the whole text says.
"""

from __future__ import annotations

import sys

from lumen_hpc.language import parsing
from lumen_hpc.language.reader import read, sentences_of
from lumen_hpc.language.words import words
from sandbox.usage import explain


def format_phrase(phrase: parsing.Phrase) -> str:
    """`N(the edema)`; a word of no phrase as it is."""
    if phrase.kind == "word":
        return "".join(word.text if word.roles else f"{word.text}?" for word in phrase.words)
    beside = "".join(f" +{format_phrase(adjunct)}" for adjunct in phrase.adjuncts)
    return f"{phrase.kind}({' '.join(word.text for word in phrase.words)}){beside}"


def describe_parse(kind: str, text: str) -> list[str]:
    """Lines on how a text is read as an answer to a question of this type."""
    lines = []
    for sentence in sentences_of(words(text, ahead=kind == "prediction")):
        phrases = parsing.phrases_of(sentence)
        parses = parsing.strict_parses(phrases)
        lines += ["phrases  " + " ".join(map(format_phrase, phrases))]
        lines += [
            f"clause   {clause.table_row.rule}: {clause.table_row.pattern}" for parse in parses for clause in parse
        ]
        if not parses:
            known_phrases = [phrase for phrase in phrases if all(word.roles for word in phrase.words)]
            clause_texts = (
                " ".join(map(format_phrase, clause.parts)) for clause in parsing.lenient_parse(known_phrases)
            )
            lines += ["no complete parse; leniently:", *(f"clause   {clause}" for clause in clause_texts)]
    facts = read(text, kind)
    lines += [f"says     {name}: {state}" for name, state in facts.findings.items()]
    return lines + [f"refused  {reason}" for reason in (*facts.unread, *facts.problems)]


if __name__ == "__main__":
    explain(__doc__, minimum=2)
    print("\n".join(describe_parse(sys.argv[1], " ".join(sys.argv[2:]))))
