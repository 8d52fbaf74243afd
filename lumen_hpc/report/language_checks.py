"""Checks of the language model: rewrites that passed the fact check, and the judge's canaries."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lumen_hpc.language.canaries import FIT, verdict
from lumen_hpc.proportions import wilson

EXAMPLES = 3
"""Sentences shown of a type and a kind of disagreement."""


@dataclass(frozen=True)
class Share:
    """k of n with its 95 % Wilson interval."""

    name: str
    group: str
    k: int
    n: int

    @property
    def value(self) -> float:
        return self.k / self.n

    @property
    def bounds(self) -> tuple[float, float]:
        return wilson(self.k, self.n)


@dataclass(frozen=True)
class Acceptance:
    """Rewrites by question type, and why sentences were rejected."""

    accepted: tuple[Share, ...]
    """Rows whose sentence passed the fact check; in the rest the grammar's own stands in."""
    reasons: tuple[tuple[str, int], ...]
    """(category of reason, rows), the commonest first; the part after a colon may quote a record."""
    verification: Verification | None = None
    """Rules and model side by side, where rewrite.verify=rules+llm asked both."""


@dataclass(frozen=True)
class Verification:
    """How the fact check and the language model itself judged the same sentences."""

    both: int
    neither: int
    rules_alone: int
    """Sentences that the rules accept and the model refuses."""
    model_alone: int
    examples: tuple[tuple[str, str, str], ...]
    """(type, who accepts it, sentence) of sentences on which they differ; text of records."""

    @property
    def disagreement(self) -> Share:
        differ = self.rules_alone + self.model_alone
        return Share("rules and model differ", "sentences", differ, differ + self.both + self.neither)


def acceptance(rows: Iterable[dict], texts: bool = False) -> Acceptance | None:
    """Counts rewrite rows ({source, attempts, rejected[, type, verified]}); None if there are none.

    `texts`: show sentences on which rules and model differ, which may quote records.
    """
    total: Counter[str] = Counter()
    accepted: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    verdicts: Counter[tuple[bool, bool]] = Counter()
    examples: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for row in rows:
        kind = row.get("type") or "question"
        total[kind] += 1
        passed = row["source"] != "fallback" or not row["rejected"]  # the grammar engine's sentences are no fallback
        accepted[kind] += passed
        for check in row.get("verified", ()):
            verdicts[check["rules"], check["model"]] += 1
            if texts and check["rules"] != check["model"]:
                examples[kind, "rules" if check["rules"] else "model"].setdefault(check["sentence"])
        reasons.update({part.partition(":")[0] for reason in row["rejected"] for part in reason.split("; ")})
    if not total:
        return None
    return Acceptance(
        tuple(Share("accepted", kind, accepted[kind], n) for kind, n in sorted(total.items())),
        tuple(reasons.most_common(12)),
        _verification(verdicts, examples) if verdicts else None,
    )


def _verification(verdicts: Counter, examples: dict[tuple[str, str], dict[str, None]]) -> Verification:
    return Verification(
        both=verdicts[True, True],
        neither=verdicts[False, False],
        rules_alone=verdicts[True, False],
        model_alone=verdicts[False, True],
        examples=tuple(
            (kind, judge, sentence)
            for (kind, judge), sentences in sorted(examples.items())
            for sentence in list(sentences)[:EXAMPLES]
        ),
    )


def unfit(scores: Mapping[str, Iterable[dict]]) -> list[str]:
    """A line for every judge that failed its canaries, with the kinds that it failed."""
    verdicts = verdict(row for rows in scores.values() for row in rows)
    return [
        f"Judge {name} is unfit and its scores mean little: of the canaries it passed "
        + ", ".join(f"{rate['passed']} of {rate['tried']} {kind}" for kind, rate in judge_verdict["kinds"].items())
        + f"; {FIT:.0%} of every kind is the least."
        for name, judge_verdict in verdicts.items()
        if not judge_verdict["fit"]
    ]


def canaries(scores: Mapping[str, Iterable[dict]]) -> list[Share]:
    """Pass rates of the judge's canaries (rows with `canary` and `passed`), by kind and judge."""
    passed_by_kind: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for rows in scores.values():
        for row in rows:
            if row.get("canary"):
                passed_by_kind[row["canary"], str(row.get("judge") or "judge")].append(bool(row["passed"]))
    return [Share(kind, judge, sum(passed), len(passed)) for (kind, judge), passed in sorted(passed_by_kind.items())]
