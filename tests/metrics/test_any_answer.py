"""Scoring ends on no answer: words dropped, doubled, reordered, cut, and other languages' letters."""

from __future__ import annotations

import random
from collections.abc import Iterator

from lumen_hpc.data.diff_vqa import is_closed
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.metrics.__main__ import score
from lumen_hpc.metrics.join import join
from sandbox.fact_cases import CASES

ANSWERS, WAYS = 5004, 6
WRAPPINGS = (
    '{"answer": "{}"}',
    '{"new": ["{}"], "level": {"from": 1, "to": null}}',
    "['{}']",
    "[[[[{}",
    "{{{}",
    "```json\n{}\n```",
    "| {} |\n|---|\n| x | {} |",
    "<think>{}",
    "<think>{}</think>{}",
    "<{}>",
    "**{}",
    "# {}\n- {}\n\n- {}:",
    "{} (yes), {} - no",
    "New findings: {}; {}. Resolved: none",
    "If {}, I cannot say whether {}?",
    "\\boxed{{}}",
    "{} \N{RIGHTWARDS ARROW} {}: {}",
    "\N{ZERO WIDTH SPACE}{}\u202e",
    "{}\\n{}",
    "- [x] {}\n- [ ] {}",
    "\ud83d{}",
    "&lt;{}&gt;&#x0;",
    "{}" + ":" * 500,
    "{}" + " -" * 500,
)


def bent(text: str, draw: random.Random) -> Iterator[str]:
    """A text without one word, with one twice, in another order, cut off, with a stray sign, and wrapped, cut too."""
    words = text.split() or [""]
    i = draw.randrange(len(words))
    yield " ".join(words[:i] + words[i + 1 :])
    yield " ".join(words[: i + 1] + words[i:])
    yield " ".join(draw.sample(words, len(words)))
    yield text[: draw.randrange(len(text) + 1)]
    yield text.replace(
        " ", draw.choice(("\n- ", "/", " … ", "\x00", "\N{COMBINING ACUTE ACCENT} ", " мягкий ", "?! ")), 1
    )
    wrapped = draw.choice(WRAPPINGS).replace("{}", text)
    yield wrapped[: draw.randrange(len(wrapped) + 1)] if draw.random() < 0.5 else wrapped


def test_no_answer_ends_the_scoring_and_every_score_is_a_share():
    draw = random.Random(5)
    cases = [case for case in read_jsonl(CASES) if case["short_answer"].strip()]
    references, answers = [], []
    for case in draw.choices(cases, k=ANSWERS // WAYS):
        for text in bent(case["long_answer"], draw):
            name = f"q{len(answers)}"
            references.append(case | {"question_id": name, "closed": is_closed(case["short_answer"])})
            answers.append({"question_id": name, "answer": text})
    joined = join(references, answers)
    assert len(joined.questions) > 0.9 * ANSWERS
    (block,) = score(joined).values()
    scores = [value for each in (block, *block["types"].values()) for name, value in each.items() if name != "n"]
    assert all(0 <= value <= 1 + 1e-9 for value in scores if isinstance(value, float))
    assert 0 < block["change_f1"] < 1 and 0 < block["accuracy_polarity"] < 1
