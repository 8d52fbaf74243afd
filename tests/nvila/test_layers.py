"""Recomputation and compilation change no number, and a layer compiles to one graph."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import attention, layers
from lumen_hpc.nvila.tiny import make_tiny
from tests.nvila.conftest import make_family

VARIANTS = [
    ("flex", "none", False),
    ("sdpa", "full", False),
    ("sdpa", "selective", False),
    ("flex", "selective", False),
    ("flex", "full", True),
    ("flex", "selective", True),
    ("flex", "none", True),
]


def step(records, kernel, checkpointing, compiled):
    """Loss and gradients of a packed batch that shares images and is padded to a multiple."""
    torch._dynamo.reset()
    model = make_family("s2").train()
    model.kernel = kernel
    model.prepare_layers(checkpointing, compiled=compiled)
    samples = model.preprocess(records).samples
    batch = nvila.pack([samples[:2], samples[2:3], samples[3:]], multiple=64 if compiled else 1)
    loss = model(batch).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def plain(records):
    return step(records, "sdpa", "none", False)


@pytest.mark.parametrize(("kernel", "checkpointing", "compiled"), VARIANTS)
def test_every_variant_has_the_loss_and_gradients_of_the_plain_one(records, plain, kernel, checkpointing, compiled):
    loss, gradients = step(records, kernel, checkpointing, compiled)
    assert loss == pytest.approx(plain[0], abs=1e-5)
    assert gradients.keys() == plain[1].keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, plain[1][name], atol=1e-5), name


def inputs(model, records, *, backwards=False):
    """What one layer of each part is called with; `backwards`: other spans of the same total length."""
    samples = model.preprocess(records).samples
    groups = [samples[:2], samples[2:3], samples[3:]]
    batch = nvila.pack(groups[::-1] if backwards else groups, multiple=64)
    caught = {}

    def catch(part):
        def hook(module, args, kwargs):
            caught[part] = (args, kwargs)

        return hook

    hooks = [
        chosen[0].register_forward_pre_hook(catch(part), with_kwargs=True)
        for part, chosen in layers.layers(model).items()
    ]
    model(batch)
    for hook in hooks:
        hook.remove()
    return caught


@pytest.mark.parametrize("part", ["vision_tower", "llm"])
def test_a_layer_is_one_graph_and_a_new_batch_does_not_compile_again(records, part):
    torch._dynamo.reset()
    model = make_family("resize").train()
    model.kernel = "flex"
    args, kwargs = inputs(model, records)[part]
    chosen = layers.layers(model)[part]
    explained = torch._dynamo.explain(chosen[0])(*args, **kwargs)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons

    torch._dynamo.reset()
    graphs = []
    model.prepare_layers("full", compiled=True, backend=lambda graph, example: graphs.append(graph) or graph.forward)
    for backwards in (False, True):
        args, kwargs = inputs(model, records, backwards=backwards)[part]
        for layer in chosen:
            layer(*args, **kwargs)
    assert len(graphs) <= 2 * len(layers.layers(model)), f"compiled {len(graphs)} times"


def test_every_length_compiles_once_for_all_layers_and_any_number_of_tiles_at_once():
    torch._dynamo.reset()
    model = make_tiny(["a text"], width=32, layers=3, vision_width=32, vision_layers=4).train()
    model.kernel, graphs = "flex", []
    model.prepare_layers("full", compiled=True, backend=lambda graph, example: graphs.append(graph) or graph.forward)
    chosen = layers.layers(model)
    lengths, tiles = range(128, 9 * 128, 128), range(1, 5)
    for length in lengths:
        x = torch.randn(1, length, 32, requires_grad=True)
        plan = attention.plan([attention.Span(0, 0, 100)], 1, length, "flex", x.device)
        rotary = model.llm.model.rotary_emb(x, torch.arange(length)[None])
        for layer in chosen["llm"]:
            x = layer(x, attention_mask=None, position_embeddings=rotary, plan=plan)
    for count in tiles:
        x = torch.randn(count, 16, 32, requires_grad=True)
        for layer in chosen["vision_tower"]:
            x = layer(x, attention_mask=None)
    assert len(graphs) == len(lengths) + 2  # any number of tiles is one graph, and a single tile another


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.counts[operator._schema.name] += 1
        return operator(*args, **(kwargs or {}))


def operators(records, kernel, checkpointing="none"):
    model = make_family("resize").train()
    model.kernel = kernel
    model.prepare_layers(checkpointing)
    args, kwargs = inputs(model, records)["llm"]
    args = [args[0].detach().requires_grad_()]
    with Operators() as seen:
        model.llm.model.layers[0](*args, **kwargs).sum().backward()
    return seen.counts


def test_one_attention_call_a_layer_takes_the_place_of_one_for_each_span(records):
    spans, flex = operators(records, "sdpa"), operators(records, "flex")
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert spans[attention] == 5  # a shared beginning, its two questions, and two samples
    assert flex.total() < 0.8 * spans.total()


def test_selective_recomputation_repeats_no_matrix_product(records):
    products = [
        sum(n for name, n in operators(records, "flex", how).items() if name in ("aten::mm", "aten::addmm"))
        for how in ("none", "selective", "full")
    ]
    assert products[0] == products[1] < products[2]


def test_an_unknown_recomputation_is_refused(tiny):
    with pytest.raises(UserError, match="checkpointing='some'"):
        tiny.prepare_layers("some")


def test_padding_to_a_multiple_counts_no_token(tiny, records):
    samples = tiny.preprocess(records).samples
    padded = nvila.pack([[sample] for sample in samples], multiple=128)
    assert padded.token_ids.numel() % 128 == 0 and padded.tokens == sum(map(len, samples))
