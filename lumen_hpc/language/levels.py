"""Levels of a finding, and `from … to …` between them."""

from __future__ import annotations

from lumen_hpc.data.diff_vqa import severity
from lumen_hpc.language.parsing import Phrase

Levels = frozenset[tuple[str, ...]]
_RANKED = {"tiny": "minimal", "slight": "mild", "minor": "mild", "extensive": "severe", "marked": "severe"}
"""Words for a level by such as the dataset's ranks hold; they lack all but `minor`, which they rank with minimal."""


def level_of(phrase: Phrase) -> str:
    """The level that a phrase names: `mild to moderate`."""
    ranks = [" ".join(rank.roles("lvl")) for rank in ([phrase] if phrase.kind == "Rank" else phrase.all("Rank"))]
    return " to ".join(rank for rank in ranks if rank)


def readings(phrase: Phrase) -> Levels:
    """Every way to read `from A to B to C` as (before, after)."""
    ends: dict[str, list[str]] = {"from": [], "to": []}
    marker = first = ""
    for part in phrase.parts:
        if part.word is not None and part.word.text in ends:
            marker = part.word.text
            first = first or marker
        elif part.kind in ("Rank", "Level"):
            ends[marker].append(level_of(part))
    if first == "to" or len(ends["from"]) > 1:
        return frozenset({(" to ".join(ends["from"]), " to ".join(ends["to"]))})
    chain = [*ends["from"], *ends["to"]]
    return frozenset((" to ".join(chain[:k]), " to ".join(chain[k:])) for k in range(1, len(chain)))


def rise(before: str, after: str) -> int:
    """+1 where the level rises, -1 where it falls, 0 where the words do not tell."""
    first, last = (severity(" ".join(_RANKED.get(word, word) for word in level.split())) for level in (before, after))
    return 0 if first is None or last is None else (last > first) - (last < first)
