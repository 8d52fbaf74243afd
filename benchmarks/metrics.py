"""All lexical metrics against rouge-score and nltk, and a whole evaluation's worth of pairs.

    python benchmarks/metrics.py                    # 471,000 pairs, about a minute
    python benchmarks/metrics.py --pairs 20000      # a quick look

The pairs are sentences about two radiographs of 25 words on average, as models answer. Peers score a sample of them,
ours all of them; all are one process on one core, in the same run. `recall` has no compiled peer: LLaVA-Med's
definition in plain Python stands in. Rates are by processor
time. Memory is this process's own peak, read before any peer is imported.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import time
from collections.abc import Callable

FINDINGS = ("pleural effusion", "edema", "atelectasis", "consolidation", "pneumothorax", "cardiomegaly", "lung opacity",
            "rib fracture", "nodule", "vascular congestion", "pneumonia", "hernia")  # fmt: skip
WORDS = (  # noqa: SIM905
    "small moderate severe left-sided right bilateral new resolved again slightly improved (unchanged) basilar lower "
    "lobe compared with the prior of 3.5 cm"
).split()


def pairs(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Answers and references, about a fifth of the words differing."""
    rng = random.Random(seed)
    answers, references = [], []
    for _ in range(count):
        words = ["The", "main", "image", "shows", rng.choice(FINDINGS) + ","]
        words += [rng.choice(WORDS if rng.random() < 0.7 else FINDINGS) for _ in range(rng.randint(6, 28))]
        changed = [rng.choice(WORDS) if rng.random() < 0.2 else word for word in words]
        references.append(" ".join(words) + ".")
        answers.append(" ".join(changed) + ".")
    return answers, references


def seconds(run: Callable[[], object]) -> float:
    """Processor time, which other programs on the machine do not lengthen."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=471_000)
    parser.add_argument("--sample", type=int, default=4_000, help="pairs that the peers score")
    chosen = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core for everybody

    from lumen_hpc.metrics.lexical import lexical

    answers, references = pairs(chosen.pairs)
    texts = peak_mb()
    first = seconds(lambda: lexical(answers[:100], references[:100]))
    start = time.perf_counter()
    ours = seconds(lambda: lexical(answers, references))
    wall = time.perf_counter() - start
    peak = peak_mb()
    words = sum(len(text.split()) for text in answers[:10_000]) / min(10_000, len(answers))
    print(
        f"{len(answers):,} pairs of {words:.0f} words: {wall:.2f} s ({ours:.2f} s of processor), "
        f"{len(answers) / ours:,.0f} pairs/s on one core; "
        f"peak {peak:.0f} MB, of which {texts:.0f} MB before scoring; first call {first:.1f} s (compiling or loading)"
    )

    sample = slice(0, chosen.sample)
    peers = theirs(answers[sample], references[sample])
    n = len(answers[sample])
    together = ours * n / len(answers)
    print(f"\n{'on ' + format(n, ',') + ' pairs':<34}{'pairs/s':>10}{'ours':>10}{'ratio':>8}")
    for name, spent in peers.items():
        print(f"{name:<34}{n / spent:>10,.0f}{n / together:>10,.0f}{spent / together:>7.1f}x")


def theirs(answers: list[str], references: list[str]) -> dict[str, float]:
    """Seconds that each peer needs; `ours` is everything at once, whichever line it stands on."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_score.rouge_scorer import RougeScorer

    from lumen_hpc.metrics.recall import recall

    scorer, smooth = RougeScorer(["rougeL"]), SmoothingFunction().method1
    both = list(zip(answers, references))
    rouge = seconds(lambda: [scorer.score(reference, answer) for answer, reference in both])
    bleu = seconds(lambda: [sentence_bleu([r.split()], a.split(), smoothing_function=smooth) for a, r in both])
    plain = seconds(lambda: [recall(answer, reference) for answer, reference in both])
    return {
        "rouge-score (ROUGE-L)": rouge,
        "nltk (BLEU-4)": bleu,
        "rouge-score + nltk": rouge + bleu,
        "rouge-score + nltk + plain recall": rouge + bleu + plain,
    }


if __name__ == "__main__":
    main()
