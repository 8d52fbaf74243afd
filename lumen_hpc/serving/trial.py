"""Whether vLLM answers as the native engine does on this machine: both run a small random NVILA.

python -m lumen_hpc.serving.trial        prints `equal`, or how the two differ
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

QUESTIONS = ("What has changed?", "Is there a pneumothorax?", "What will change in 3 days?")
EQUAL = "equal"
TIMEOUT_S = 600
"""Seconds of a trial; half a minute is usual, most of it vLLM's start."""


def try_vllm() -> str:
    """Why vLLM must not answer here; empty if it may. The trial is a process of its own, with its own memory."""
    command = [sys.executable, "-m", __name__]
    try:
        trial = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"it did not answer within {TIMEOUT_S} s"
    lines = (trial.stdout + trial.stderr).strip().splitlines() or [f"it ended with code {trial.returncode}"]
    return "" if EQUAL in trial.stdout.splitlines() else lines[-1][:300]


def compare(folder: Path) -> str:
    """`equal`, or the first question about 0, 1 and 2 images whose greedy answers in float32 differ."""
    import numpy as np
    import torch

    from lumen_hpc import nvila
    from lumen_hpc.nvila.tiny import make_tiny
    from lumen_hpc.serving.vllm_answerer import VLLMModel

    sizes: dict[str, Any] = dict(
        image_size=56, patch_size=14, vision_width=64, vision_layers=3, width=128, layers=2, heads=2, kv_heads=1
    )
    nvila.save(make_tiny(QUESTIONS, aspect="dynamic_s2", projector="mlp_downsample", **sizes), folder)
    rng = np.random.default_rng(0)
    before, after = (rng.integers(0, 256, (120, 90 + 30 * n), dtype=np.uint8) for n in range(2))
    image_sets: tuple[list[Any], ...] = ([before, after], [after, before], [after], [])
    records = [
        {"images": images, "conversations": [{"from": "human", "value": "<image>" * len(images) + question}]}
        for images in image_sets
        for question in QUESTIONS
    ]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    native = nvila.load(folder, dtype=torch.float32, device=device).eval()
    inputs = native.preprocess(records, generation=True, inline=True)
    expected = [answer.ids for answer in native.generate(inputs, max_new_tokens=16)]
    model = VLLMModel(folder, dtype="float32", max_model_len=1024, gpu_memory=0.3)
    vllm_ids = [answer.ids for answer in model.generate(records, max_new_tokens=16)]
    for record, native_answer, vllm_answer in zip(records, expected, vllm_ids, strict=True):
        if native_answer != vllm_answer:
            prompt_text = record["conversations"][0]["value"]
            return f"a small model answers {prompt_text!r} with tokens {vllm_answer}, natively with {native_answer}"
    return EQUAL


def main() -> None:
    """Print the verdict and end at once: vLLM's processes may hang while they are torn down."""
    import argparse
    import os

    argparse.ArgumentParser(prog="python -m lumen_hpc.serving.trial", description=__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        verdict = compare(Path(folder) / "model")
    print(verdict, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
