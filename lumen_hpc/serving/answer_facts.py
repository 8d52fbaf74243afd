"""What an answer says, as the report's reader reads it: finding, change and level, for the page's chips."""

from __future__ import annotations

from lumen_hpc.data.findings_line import strip
from lumen_hpc.metrics.change import Reader

Fact = dict[str, str]
"""`finding`, `change` (present, new, resolved, worse, better, other level, nothing) and `level` where one is named."""

_READER = Reader([])
_WAYS = {1: "worse", -1: "better", 0: "other level"}


def read_facts(answer: str, kind: str) -> list[Fact]:
    """The facts of an answer to a `diagnostic`, `difference` or `prediction` question; empty if none was read."""
    text = strip(answer)
    if kind == "diagnostic":
        level = _READER.level(text)
        return [{"finding": name, "change": "present", "level": level} for name in sorted(_READER.findings(text))]
    change = _READER.change(text, kind)
    if change is None:
        return []
    if not change:
        return [{"finding": "", "change": "nothing", "level": ""}]
    facts = [{"finding": name, "change": "new", "level": ""} for name in change.new]
    facts += [{"finding": name, "change": "resolved", "level": ""} for name in change.resolved]
    for each in change.levels:
        levels = f"{each.before} → {each.after}"
        facts.append({"finding": each.finding, "change": _WAYS[each.direction], "level": levels})
    for way in ("worse", "better"):
        facts += [{"finding": name, "change": way, "level": ""} for name in getattr(change, way, ())]
    return facts
