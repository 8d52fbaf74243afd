"""The plan's bytes a token of a layer, against those that torch saves on a small model of NVILA-8B's proportions."""

from __future__ import annotations

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils import checkpoint as recomputation
from torch.utils._pytree import tree_leaves

from lumen_hpc import nvila
from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.nvila import attention, layers
from lumen_hpc.nvila.new_config import official_config
from lumen_hpc.nvila.tiny import train_tokenizer
from lumen_hpc.training import activations, adapters

WIDTH, KV, MLP, VISION, VISION_MLP, TOKENS, RANK = 448, 64, 2368, 256, 960, 256, 8


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Is there an effusion in the left lung?"])


def model(tokenizer, dtype, rank):
    """The published widths divided by 8 (language model) and 4.5 (tower), of two layers each."""
    vision = {"hidden_size": VISION, "intermediate_size": VISION_MLP, "num_hidden_layers": 3, "num_attention_heads": 4,
              "image_size": 56, "patch_size": 14}  # fmt: skip
    llm = {"hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": 2, "num_attention_heads": 7,
           "num_key_value_heads": 1, "vocab_size": 2048}  # fmt: skip
    torch.manual_seed(0)
    found = nvila.NVILA(official_config(vision=vision, llm=llm, scales=(56, 112, 168)), tokenizer, kernel="sdpa")
    found = found.to(dtype).train()
    if rank:
        adapters.inject(found, Train(adapter=Adapter(kind="lora", rank=rank)), seed=0)
    return found


def call(chosen, part, dtype):
    """A layer of the part on 256 tokens, and the tensors it is given that are no layer's own."""
    if part == "vision_tower":
        x = torch.randn(TOKENS // 16, 16, VISION, dtype=dtype, requires_grad=True)
        return x, {"attention_mask": None}, ()
    x = torch.randn(1, TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    plan = attention.plan([attention.Span(0, 0, TOKENS)], 1, TOKENS, "sdpa", x.device)
    rotary = chosen.llm.model.rotary_emb(x, torch.arange(TOKENS)[None])
    return x, {"attention_mask": None, "position_embeddings": rotary, "plan": plan}, rotary


def saved_bytes(chosen, part, checkpointing, dtype):
    """Bytes of all storages that are kept between one layer's forward and backward pass, its input included."""
    layer = layers.layers(chosen)[part][0]
    x, options, others = call(chosen, part, dtype)
    strangers = {t.untyped_storage().data_ptr() for t in (*chosen.parameters(), *others)}
    kept = {x.untyped_storage().data_ptr(): x.untyped_storage()}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    caches = []

    def contexts():
        pair = layers.selective_contexts()
        caches.append(pair[0].storage)
        return pair

    if checkpointing == "selective":
        out = recomputation.checkpoint(layer, x, use_reentrant=False, context_fn=contexts, **options)
        for calls in caches[0].values():
            for place in tree_leaves(list(calls.values())):
                if isinstance(getattr(place, "val", None), torch.Tensor):
                    keep(place.val)
    else:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            out = layer(x, **options)
    assert out.requires_grad
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in strangers)


@pytest.mark.parametrize("rank", [0, RANK])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
@pytest.mark.parametrize("part", ["llm", "vision_tower"])
def test_the_plan_counts_what_a_layer_keeps_to_a_tenth(tokenizer, part, checkpointing, dtype, rank, monkeypatch):
    # On a GPU the mask of dropout is one byte a number; on a CPU only this function's is.
    monkeypatch.setattr(F, "dropout", lambda x, p, train, inplace: torch.native_dropout(x, p, train)[0])
    counted = saved_bytes(model(tokenizer, dtype, rank), part, checkpointing, dtype)
    size = dtype.itemsize
    if part == "llm":
        planned = activations.language_layer(checkpointing, width=WIDTH, kv=KV, mlp=MLP, size=size, rank=rank)
    else:
        planned = activations.vision_layer(checkpointing, width=VISION, mlp=VISION_MLP, size=size, rank=rank)
    assert planned * TOKENS == pytest.approx(counted, rel=0.1)


MEASURED_GB = {
    ("llm", "selective"): 18,
    ("llm", "none"): 26,
    ("vision_tower", "selective"): 36,
    ("vision_tower", "none"): 60,
}
"""Peak over that of full recomputation: compiled layers on one H200 in bf16, 2026-11-26 (benchmarks/gpu_smoke.md)."""


@pytest.mark.parametrize(("part", "checkpointing"), MEASURED_GB)
def test_the_plan_of_compiled_layers_is_what_a_gpu_took_to_a_tenth(part, checkpointing):
    def planned(checkpointing):
        if part == "llm":  # 14 of NVILA-8B's layers, 13,390 tokens
            layer = activations.language_layer(checkpointing, width=3584, kv=512, mlp=18944, size=2, compiled=True)
            return 14 * 13390 * layer
        return 27 * 68 * 1024 * activations.vision_layer(checkpointing, width=1152, mlp=4304, size=2, compiled=True)

    measured = MEASURED_GB[part, checkpointing]
    assert (planned(checkpointing) - planned("full")) / 1e9 == pytest.approx(measured, rel=0.1)
