"""`python -m benchmarks.open_run [--questions 700703]`: a run's questions as a frame, ours beside pandas.read_json.

Ours reads through duckdb with known columns. Each runs in a process of its own, so that the memory is its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from lumen_hpc.data.records import write_jsonl

OURS = """
from lumen_hpc.analysis import COLUMNS, _read
frame = _read([path], {name: kind for name, (kind, _) in COLUMNS["questions"].items()})
"""
PEER = """
import pandas
frame = pandas.read_json(path, lines=True)
"""
MEASURE = """
import json, resource, sys, time
path = sys.argv[1]
import duckdb, pandas
began = time.perf_counter()
{code}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
print(json.dumps({{"seconds": time.perf_counter() - began, "peak_gb": peak, "rows": len(frame)}}))
"""


def rows(count: int):
    """Questions of the dataset's shape and lengths."""
    for k in range(count):
        difference = k % 4 == 0
        yield {
            "question_id": f"{k:016x}",
            "subject_id": 10_000_000 + k // 10,
            "study_id": 50_000_000 + k // 5,
            "ref_study_id": 50_000_000 + k // 5 - 1 if difference else None,
            "type": "difference" if difference else "abnormality",
            "question": "what has changed compared to the reference image?",
            "short_answer": "the main image is missing the findings of edema, lung opacity than the reference image. ",
            "closed": False,
            "interval_days": 17 if difference else None,
            "split": "train",
        }


def measure(code: str, path: Path) -> dict:
    process = subprocess.run(
        [sys.executable, "-c", MEASURE.format(code=code), str(path)], check=True, capture_output=True, text=True
    )
    return json.loads(process.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=700_703)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        write_jsonl(path, rows(options.questions))
        ours, peer = measure(OURS, path), measure(PEER, path)
    assert ours["rows"] == peer["rows"] == options.questions
    for name in ("seconds", "peak_gb"):
        print(f"{name:<8} ours {ours[name]:.2f}  pandas {peer[name]:.2f}  ratio {peer[name] / ours[name]:.1f}")


if __name__ == "__main__":
    main()
