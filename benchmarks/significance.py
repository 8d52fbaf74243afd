"""Whether the tables' tests and intervals hold the rates that they state, on null data shaped like the paper's.

    python benchmarks/significance.py               # 2,000 simulated evaluations a line, about two minutes
    python benchmarks/significance.py coverage      # of intervals over few patients, about four minutes
    python benchmarks/significance.py auroc         # of intervals of AUROC

Two models of equal skill answer the questions of the same patients. Each patient has several questions, and each model
does better or worse on a whole patient, as models do. Prints the share of evaluations in which each rule calls them
different at 5 %: the displayed star (patient-level permutation, and the interval of the difference excludes 0), the
interval alone, and the paper's Wilcoxon test, which takes questions as independent. `coverage` prints the share of
evaluations whose 95 % interval holds the true value, by a plain percentile interval and by the tables' own; `auroc` the
same for test sets with few cases.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sandbox.null_data import NULLS, auroc_coverage, coverage, rejections

PATIENTS = (10, 20, 50)
TEST_SETS = ((30, 0.3), (60, 0.15), (150, 0.1), (574, 0.15))
COVERED = ("correlated questions", "strongly correlated questions", "micro F1, correlated")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("tests", "coverage", "auroc"), default="tests")
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.what == "coverage":
        return print_coverage(options.simulations, options.seed)
    if options.what == "auroc":
        return print_auroc_coverage(options.simulations, options.seed)
    print(f"{'null data':<34}{'star':>10}{'permutation':>14}{'interval':>12}{'Wilcoxon':>12}")
    for null in NULLS:
        shares = rejections(null, options.simulations, options.seed)
        print(f"{null.name:<34}{shares['star']:>10.3f}{shares['permutation']:>14.3f}"
              f"{shares['interval']:>12.3f}{shares['Wilcoxon']:>12.3f}", flush=True)  # fmt: skip


def print_coverage(simulations: int, seed: int) -> None:
    rules = ("plain value", "value", "plain difference", "difference")
    print(f"{'data':<34}{'patients':>10}" + "".join(f"{rule:>18}" for rule in rules))
    for null in (null for null in NULLS if null.name in COVERED):
        for patients in PATIENTS:
            shares = coverage(null, patients, simulations, seed)
            cells = "".join(f"{shares[rule]:>18.3f}" for rule in rules)
            print(f"{null.name:<34}{patients:>10}{cells}", flush=True)


def print_auroc_coverage(simulations: int, seed: int) -> None:
    print(f"{'patients':>10}{'prevalence':>12}{'plain':>10}{'interval':>10}")
    for patients, prevalence in TEST_SETS:
        shares = auroc_coverage(patients, prevalence, simulations, seed)
        print(f"{patients:>10}{prevalence:>12}{shares['plain']:>10.3f}{shares['interval']:>10.3f}", flush=True)


if __name__ == "__main__":
    main()
