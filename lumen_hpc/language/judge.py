"""Scores answers against the long answers, 1 to 10 (section 2.5), with canaries among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lumen_hpc.config import schema
from lumen_hpc.language import prompting
from lumen_hpc.language.canaries import Canary, make_canaries
from lumen_hpc.language.protocol import Completion, Engine

SCORES = tuple(str(score) for score in range(1, 11))


def score(
    items: Iterable[dict], engine: Engine, judge: schema.Judge, seed: int, second: Engine | None = None
) -> Iterator[dict]:
    """Judges a shard of answers, and `judge.canaries` canaries of each kind derived from the same shard.

    `items`: {"question_id", "model", "type", "question", "short_answer", "long_answer", "answer"}.
    Yields {"question_id", "model", "score" (int 1-10), "expected_score" (Σ s·p(s)), "judge"} for each item in order,
    then the same with "canary" (its kind) and "passed" for each canary; with a second judge, the same again by it.
    The `question` is the bare question, as the dataset words it. Temperature is 0, equal material is judged once, and
    no row contains an item's text.
    """
    items = list(items)
    canaries = make_canaries(items, judge.canaries, seed)
    judges_by_name = {engine.name: engine}
    if second:  # an engine is called by the last part of its model's path: two folders `final` are two judges
        judges_by_name[f"{second.name}, second" if second.name == engine.name else second.name] = second
    for name, scorer in judges_by_name.items():
        scores = _scores(scorer, items, canaries, seed)
        for item in items:
            yield _row(item, name, scores[_key(item, item["answer"])])
        for canary in canaries:
            completion = scores[_key(canary.item, canary.answer)]
            bare_completion = scores[_key(canary.item, canary.bare)] if canary.bare else completion
            passed = canary.passed(int(completion.text), _expected_score(completion), _expected_score(bare_completion))
            yield _row(canary.item, name, completion) | {"canary": canary.kind, "passed": passed}


def agreement(rows: Iterable[dict]) -> dict:
    """Agreement of two judges on the same answers: Kendall's tau-b, share within a point, mean difference.

    Takes judge rows of all shards; canaries are left out. Returns {"judges", "answers", "tau", "within_one",
    "difference"}, tau None where a judge gave one score to everything; an empty dict if no two judges scored an answer.
    """
    from scipy.stats import kendalltau

    scores: dict[str, dict[tuple, int]] = {}
    for row in rows:
        if not row.get("canary"):
            scores.setdefault(row["judge"], {})[row["question_id"], row["model"]] = row["score"]
    if len(scores) != 2:
        return {}
    (first, first_scores), (second, second_scores) = scores.items()
    common_keys = sorted(first_scores.keys() & second_scores.keys())
    if not common_keys:  # each model was judged by another
        return {}
    pairs = [(first_scores[key], second_scores[key]) for key in common_keys]
    tau = kendalltau(*zip(*pairs, strict=True)).statistic
    return {
        "judges": [first, second],
        "answers": len(pairs),
        "tau": None if tau != tau else float(tau),
        "within_one": sum(abs(a - b) <= 1 for a, b in pairs) / len(pairs),
        "difference": sum(a - b for a, b in pairs) / len(pairs),
    }


def _scores(judge: Engine, items: list[dict], canaries: list[Canary], seed: int) -> dict[tuple, Completion]:
    """The judge's completion for every distinct (type, question, long answer, answer) of the shard."""
    answers = [(item, item["answer"]) for item in items] + [(canary.item, canary.answer) for canary in canaries]
    answers += [(canary.item, canary.bare) for canary in canaries if canary.bare]
    keys = list(dict.fromkeys(_key(item, answer) for item, answer in answers))
    completions = judge.chat(
        [prompting.judge_prompt(*key) for key in keys], max_tokens=2, temperature=0.0, seed=seed, choices=SCORES
    )
    return dict(zip(keys, completions, strict=True))


def _key(item: dict, answer: str) -> tuple[str, str, str, str]:
    return item["type"], item["question"], item["long_answer"], answer


def _expected_score(completion: Completion) -> float:
    return sum(int(score) * p for score, p in zip(SCORES, completion.choice_probabilities, strict=True))


def _row(item: dict, judge: str, completion: Completion) -> dict:
    return {
        "question_id": item["question_id"],
        "model": item["model"],
        "score": int(completion.text),
        "expected_score": round(_expected_score(completion), 6),
        "judge": judge,
    }
