"""Answers a second of `predict.engine` native and vllm, on one machine in one run.

    python -m benchmarks.predict [FOLDER] [RECORDS] [TOKENS] [REPEATS]

FOLDER is a checkpoint and RECORDS a run's instruct/lumen-test.jsonl; without them a random NVILA of 20 M parameters
(tower of 192, language model of 512) is asked 48 questions about 16 pairs of 448 px pictures, in float32. An answer has
TOKENS tokens (32; less where the model stops). The engines take turns, REPEATS (3) times; the fastest counts. Loading
is left out.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from sandbox.usage import explain

QUESTIONS = ("What has changed?", "Is there a pneumothorax?", "What will change in 3 days?")
BATCH = 16


def stand_in(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A random model and the questions that it is asked."""
    import numpy as np
    from PIL import Image

    from lumen_hpc import nvila
    from lumen_hpc.nvila.tiny import make_tiny

    sizes: dict[str, Any] = dict(
        image_size=112, patch_size=14, vision_width=192, vision_layers=6, width=512, layers=8, heads=8, kv_heads=2
    )
    model = make_tiny(QUESTIONS, aspect="dynamic_s2", projector="mlp_downsample", **sizes)
    rng = np.random.default_rng(0)
    records = []
    for _ in range(BATCH):
        pair = [Image.fromarray(rng.integers(0, 256, (448, 448), dtype=np.uint8)) for _ in range(2)]
        for question in QUESTIONS:
            text = f"reference image: <image>\nmain image: <image>\n{question}"
            records.append({"images": pair, "conversations": [{"from": "human", "value": text}]})
    return nvila.save(model, folder / "model"), records


def main() -> None:
    import torch

    from lumen_hpc.data.records import Records
    from lumen_hpc.serving.vllm_answerer import VLLMModel
    from lumen_hpc.training.predict import NativeAnswerer, open_model

    given = sys.argv[1:]
    tokens, repeats = int((*given[2:3], "32")[0]), int((*given[3:4], "3")[0])
    with tempfile.TemporaryDirectory() as scratch:
        if len(given) > 1:
            folder, records = Path(given[0]), list(Records(Path(given[1])))
        else:
            folder, records = stand_in(Path(scratch))
        native = NativeAnswerer(open_model(folder), batch_tokens=32768)
        served = VLLMModel(folder, dtype="bfloat16" if torch.cuda.is_available() else "", max_num_seqs=BATCH)
        best = dict.fromkeys(("native", "vllm"), 0.0)
        answers = {}
        for turn in range(1, repeats + 1):
            for name, engine in (("native", native), ("vllm", served)):
                begun = time.perf_counter()
                answers[name] = [answer.ids for answer in engine.generate(records, max_new_tokens=tokens)]
                rate = len(records) / (time.perf_counter() - begun)
                best[name] = max(best[name], rate)
                print(f"turn {turn}: {name} {rate:.2f} answers/s", flush=True)
    equal = sum(one == other for one, other in zip(answers["native"], answers["vllm"], strict=True))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    length = sum(map(len, answers["native"])) / len(records)
    print(f"{len(records)} questions, {length:.0f} tokens an answer, {device}: {equal} answers equal")
    for name, rate in best.items():
        print(f"{name:<8}{rate:8.2f} answers/s")
    print(f"vllm / native {best['vllm'] / best['native']:.2f}")


if __name__ == "__main__":
    explain(__doc__)
    main()
