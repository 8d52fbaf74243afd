"""A training step on LUMEN's mixture: packing against padding, shared pictures against separate, head memory.

    python benchmarks/nvila_step.py [--samples 48]

A tiny NVILA (dynamic_s2) at a quarter of the real lengths: 769 tokens for a 4x3 radiograph instead of 3,073, texts of
about 50 instead of 200, so pictures stay 94 % of a sequence. Mixture in the paper's proportions (section 2.1): 129,231
images with 428,995 diagnostic questions, 43,381 difference questions on two images and as many prediction questions on
one; sizes of radiographs as in MIMIC-CXR, mostly 4x3, some 3x4 and 3x3 grids. The padding peer is transformers' own:
rows padded at the right, an attention mask, sdpa; its head runs on supervised places too. Padded rows with our spans,
which never attend padding, stand beside it.
Forward and backward, float32, one thread, processor time; tokens are those of the samples, never padding.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lumen_hpc import nvila
from lumen_hpc.nvila import attention
from lumen_hpc.nvila.chat import IGNORE
from lumen_hpc.nvila.tiny import make_tiny

WORDS = "is there a pleural effusion edema nodule in the left right upper lower lung what has changed normal yes no"
GRIDS = {(306, 255): 0.62, (255, 306): 0.23, (256, 256): 0.15}
"""(height, width) [px] and share of a radiograph, a tenth of real sizes: the grids are the same."""


class Mixture:
    """Seeded draws of LUMEN's records, grouped by their pictures."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)

    def picture(self) -> np.ndarray:
        height, width = list(GRIDS)[self.rng.choice(len(GRIDS), p=list(GRIDS.values()))]
        return self.rng.integers(0, 256, (height, width), dtype=np.uint8)

    def record(self, pictures: list[np.ndarray]) -> dict:
        def text(low: int, high: int) -> str:
            return " ".join(self.rng.choice(WORDS.split(), self.rng.integers(low, high)))

        turns = [{"from": "human", "value": text(8, 24)}, {"from": "gpt", "value": text(5, 20)}]
        return {"images": pictures, "conversations": turns}

    def groups(self, samples: int) -> list[list[dict]]:
        """Images with their questions and pairs with their difference question, evenly in the paper's proportions."""
        pairs, questions = 43_381 / 129_231, (428_995 + 43_381) / 129_231
        groups: list[list[dict]] = []
        image = 0
        while sum(map(len, groups)) < samples:
            picture = [self.picture()]
            count = int((image + 1) * questions) - int(image * questions)
            groups.append([self.record(picture) for _ in range(count)])
            if int((image + 1) * pairs) > int(image * pairs):
                groups.append([self.record([self.picture(), self.picture()])])
            image += 1
        return groups


def padded_as_transformers(model: nvila.NVILA, batch: nvila.Batch) -> torch.Tensor:
    """Loss of a padded batch through transformers' own masks and sdpa."""
    embeds, _ = model.embed(batch)
    model.llm.config._attn_implementation = "sdpa"
    hidden = model.llm.model(inputs_embeds=embeds, attention_mask=batch.attention_mask, use_cache=False)[0]
    model.llm.config._attn_implementation = attention.NAME
    labels = batch.labels[:, 1:]
    learned = labels != IGNORE
    return F.cross_entropy(model.llm.lm_head(hidden[:, :-1][learned]), labels[learned])


def ours(model: nvila.NVILA, batch: nvila.Batch) -> torch.Tensor:
    return model(batch).loss


def seconds(model: nvila.NVILA, batches: list[nvila.Batch], loss=ours) -> float:
    """Processor time of forward and backward passes of all batches, after one to warm up."""
    loss(model, batches[0]).backward()
    start = time.process_time()
    for batch in batches:
        model.zero_grad(set_to_none=True)
        loss(model, batch).backward()
    return time.process_time() - start


def peak_bytes(model: nvila.NVILA, batch: nvila.Batch, logits: str) -> int:
    """Growth of resident memory at the peak of a step (Linux with glibc)."""
    model(batch, logits=logits).loss.backward()
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)

    def kilobytes(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS:")
    model(batch, logits=logits).loss.backward()
    return (kilobytes("VmHWM:") - before) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=48)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes: dict[str, Any] = dict(image_size=128, patch_size=8, vision_width=48, vision_layers=2, width=128, layers=4)
    model = make_tiny([WORDS], aspect="dynamic_s2", projector="mlp_downsample", **sizes).train()
    prepared = [model.preprocess(group).samples for group in Mixture().groups(options.samples)]
    singles = [sample for group in prepared for sample in group]
    order = np.random.default_rng(1).permutation(len(singles))[: options.samples]
    shuffled = [singles[i] for i in order]
    tokens = sum(map(len, shuffled))
    image = sum(model.config.image_tokens(block) for s in shuffled for block in s.blocks)
    print(f"{len(shuffled)} samples, {tokens:,} tokens, {image / tokens:.0%} of them pictures")

    print("\ntokens per second, and packing against each way of padding")
    print(f"{'micro-batch':>12}{'waste':>7}{'packed':>9}{'as transformers':>17}{'ratio':>7}{'spans':>9}{'ratio':>7}")
    for size in (2, 4, 8, 16):
        parts = [shuffled[i : i + size] for i in range(0, len(shuffled), size)]
        padded = [nvila.pad(part) for part in parts]
        packed = [nvila.pack([[sample] for sample in part]) for part in parts]
        waste = 1 - tokens / sum(batch.token_ids.numel() for batch in padded)
        assert abs(padded_as_transformers(model, padded[0]) - ours(model, packed[0])) < 1e-4
        fast, spans = seconds(model, packed), seconds(model, padded)
        slow = seconds(model, padded, padded_as_transformers)
        print(f"{size:12}{waste:7.0%}{tokens / fast:9,.0f}{tokens / slow:17,.0f}{slow / fast:7.2f}", end="")
        print(f"{tokens / spans:9,.0f}{spans / fast:7.2f}")

    total = sum(map(len, singles))
    separate = [nvila.pack([[sample] for sample in group]) for group in prepared]
    together = [nvila.pack([group]) for group in prepared]
    stored = sum(batch.token_ids.numel() for batch in together)
    slow, fast = seconds(model, separate), seconds(model, together)
    print(f"\n{len(singles)} questions on {len(prepared)} images or pairs, both packed")
    print(f"separate  {total:9,} tokens {slow:7.1f} s")
    print(f"shared    {stored:9,} tokens {fast:7.1f} s   {total / stored:.2f}x fewer tokens, {slow / fast:.2f}x faster")

    config = replace(model.config, llm=model.config.llm | {"vocab_size": 32_000})
    del model
    big = nvila.NVILA(config).train()
    batch = nvila.pack([[sample] for sample in shuffled[:6]])
    print(f"\nhead over 32,000 words, {batch.token_ids.numel():,} tokens, {batch.supervised} supervised")
    some, every = (peak_bytes(big, batch, logits) for logits in ("supervised", "all"))
    print("peak growth of a step:", end=" ")
    print(f"all logits {every / 2**20:,.0f} MiB, supervised only {some / 2**20:,.0f} MiB, ratio {every / some:.2f}")


if __name__ == "__main__":
    main()
