"""What an answer says, as the report's reader reads it: finding, change and level, for the page's chips."""

from __future__ import annotations

from lumen_hpc.metrics.change import Reader

Fact = dict[str, str]
"""`finding`, `change` (present, new, resolved, worse, better, other level, nothing) and `level` where one is named."""

_READER = Reader([])
_DIRECTIONS = {1: "worse", -1: "better", 0: "other level"}


def read_facts(answer: str, kind: str) -> list[Fact]:
    """The facts of an answer to a `diagnostic`, `difference` or `prediction` question; empty if none was read.

    `answer` has no findings line.
    """
    if kind == "diagnostic":
        level = _READER.level(answer)
        return [{"finding": name, "change": "present", "level": level} for name in sorted(_READER.findings(answer))]
    change = _READER.change(answer, kind)
    if change is None:
        return []
    if not change:
        return [{"finding": "", "change": "nothing", "level": ""}]
    facts = [{"finding": name, "change": "new", "level": ""} for name in change.new]
    facts += [{"finding": name, "change": "resolved", "level": ""} for name in change.resolved]
    for level_change in change.levels:
        levels = f"{level_change.before} → {level_change.after}"
        facts.append({"finding": level_change.finding, "change": _DIRECTIONS[level_change.direction], "level": levels})
    for direction in ("worse", "better"):
        facts += [{"finding": name, "change": direction, "level": ""} for name in getattr(change, direction, ())]
    return facts
