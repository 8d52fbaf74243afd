"""Every hand-made case, checked once: none is judged wrongly, and all that the grammar holds reads some sentence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import pytest

from lumen_hpc.data.diff_vqa import TEMPLATES
from lumen_hpc.language import clauses, findings, parsing, reader
from lumen_hpc.language.facts import check
from lumen_hpc.language.reader import read
from sandbox.fact_cases import CASES, check_cases, count_outcomes
from tests.language.test_reader import ASKED, KINDS, ONE_SIDED, SENTENCES, UNCLAIMED


def _phrases(found: Iterable[parsing.Phrase]) -> Iterator[parsing.Phrase]:
    """Phrases and all that they are made of."""
    for phrase in found:
        yield phrase
        yield from _phrases([*phrase.parts, *phrase.adjuncts])


@dataclass
class Checked:
    """Every case with the check's reasons; the rows of the phrases and clauses that read any sentence of the cases or
    of reader_kinds.yaml; and the lines of the marks that held for none."""

    cases: list[tuple[dict, list[str]]] = field(default_factory=list)
    rows: set[parsing.Row | tuple[str, int]] = field(default_factory=set)
    unheld: dict[str, list] = field(default_factory=lambda: dict(parsing.grammar().marks))

    def strict_parses(self, phrases: list[parsing.Phrase]) -> list[list[parsing.Clause]]:
        self.rows |= {(phrase.kind, phrase.row) for phrase in _phrases(phrases) if phrase.parts}
        parses = _strict_parses(phrases)
        self.rows |= {clause.table_row for parse in parses for clause in parse}
        return parses

    def derive_marks(self, table: str, marks: set[str]) -> set[str]:
        found = parsing.derive_marks(table, marks)
        if lines := self.unheld[table]:
            self.unheld[table] = [line for line in lines if not line[1] <= found or line[2] & found]
        return found


_strict_parses = parsing.strict_parses


@pytest.fixture(scope="module")
def checked() -> Checked:
    checked = Checked()
    with (
        patch.object(parsing, "strict_parses", checked.strict_parses),
        patch.object(clauses, "derive_marks", checked.derive_marks),
        patch.object(findings, "derive_marks", checked.derive_marks),
    ):
        read.cache_clear()
        for kind, question, answer, text in SENTENCES:
            check(kind, question, answer, text)
        for kind in KINDS:
            for text in kind["faithful"] + kind["unfaithful"]:
                read(text, ASKED[kind["asked"]][0])
        for text in UNCLAIMED:
            read(text, "presence", lenient=True)
        for text in ("The main image no longer shows edema.", "The main image is missing edema."):
            read(text, "prediction", lenient=True)
        for text in ONE_SIDED:
            read(text, "difference", lenient=True)
        checked.cases = check_cases(CASES)
    return checked


def test_the_hand_made_set_covers_every_type_and_is_mostly_unfaithful(checked):
    kinds = Counter(case["type"] for case, _ in checked.cases)
    assert len(checked.cases) >= 300
    assert set(kinds) == {*TEMPLATES, "prediction"} and min(kinds.values()) >= 30
    assert sum(not case["faithful"] for case, _ in checked.cases) >= len(checked.cases) / 2


def test_no_unfaithful_sentence_passes_and_95_percent_of_the_faithful_do(checked):
    counts, wrong = count_outcomes(checked.cases)
    assert [case["long_answer"] for case, reasons in wrong if not reasons] == []
    faithful = {passed: sum(n for (_, f, p), n in counts.items() if f and p == passed) for passed in (True, False)}
    assert faithful[True] / (faithful[True] + faithful[False]) >= 0.95


def test_every_doubt_refuses_some_sentence_on_its_own(checked):
    source = "".join(Path(module.__file__).read_text() for module in (reader, clauses, findings))
    doubts = set(re.findall(r'"((?:it|its|what it) [a-z][^"]+)"', source))
    doubts |= parsing.doubts({name for table in parsing.grammar().marks.values() for name, *_ in table}).keys()
    alone: Counter = Counter()
    for case, reasons in checked.cases:
        if not case["faithful"]:
            alone.update(reasons if len(reasons) == 1 else ())
    assert len(doubts) > 20
    assert {doubt for doubt in doubts if not alone[f"unclear: {doubt}"]} == set()


def test_every_row_of_the_grammar_reads_some_sentence(checked):
    assert [row for row in parsing.grammar().rows if row not in checked.rows] == []
    rows = [(kind, row) for kind, _, pattern in parsing.grammar().phrases for row in range(1, pattern.groups + 1)]
    adjuncts = "Adjuncts"  # these leave only what they hold
    assert [row for row in rows if row not in checked.rows and row[0] != adjuncts] == []


def test_every_mark_holds_in_some_sentence(checked):
    names = {name for table in parsing.grammar().marks.values() for name, *_ in table}
    doubtful = {*parsing.doubts(names), "-> unclear"}  # one sentence that needs it is enough
    assert [line for lines in checked.unheld.values() for line in lines if line[0] not in doubtful] == []
