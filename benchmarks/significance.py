"""Whether the tables' tests hold the error rate that they state, on null data shaped like the paper's.

    python benchmarks/significance.py               # 2,000 simulated evaluations a line, about two minutes

Two models of equal skill answer the questions of the same patients. Each patient has several questions, and each model
does better or worse on a whole patient, as models do. Prints the share of evaluations in which each rule calls them
different at 5 %: the displayed star (patient-level permutation, and the interval of the difference excludes 0), the
interval alone, and the paper's Wilcoxon test, which takes questions as independent.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sandbox.null_data import NULLS, rejections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"{'null data':<34}{'star':>10}{'permutation':>14}{'interval':>12}{'Wilcoxon':>12}")
    for null in NULLS:
        shares = rejections(null, options.simulations, options.seed)
        print(f"{null.name:<34}{shares['star']:>10.3f}{shares['permutation']:>14.3f}"
              f"{shares['interval']:>12.3f}{shares['Wilcoxon']:>12.3f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
