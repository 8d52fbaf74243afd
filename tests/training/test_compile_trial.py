"""A compiler is tried on the training's own layers before it is trusted."""

from __future__ import annotations

import re

import pytest
import torch

from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training.compile_trial import reason_for_plain_layers

LORA = Adapter(kind="lora", rank=4)


@pytest.fixture(autouse=True)
def anew(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()


def tried(backend, aspect="dynamic_s2", **settings) -> str:
    config = make_tiny(["a text"], aspect=aspect, width=32, layers=3, vision_width=32, vision_layers=4).config
    train = Train(**{"precision": "fp32", "zero": 2, "checkpointing": "full"} | settings)
    return reason_for_plain_layers(train, config, device="cpu", backend=backend)


FROZEN = {"tune": ["projector", "llm"]}


@pytest.mark.parametrize(
    "settings",
    [{}, {"checkpointing": "selective"}, {"adapter": LORA}, {"aspect": "resize"}, FROZEN, FROZEN | {"adapter": LORA}],
)
def test_layers_that_compile_are_trusted(settings):
    before = torch.get_rng_state()
    assert tried("aot_eager", **settings) == ""
    assert torch.equal(before, torch.get_rng_state())


def test_a_compiler_without_its_tools_is_named():
    def broken(graph, example):
        raise RuntimeError("no C compiler\nand more")

    assert re.search(r"cannot be compiled here \(.*no C compiler", tried(broken))


@pytest.mark.parametrize("settings", [{}, {"adapter": LORA}])
def test_a_compiler_that_computes_something_else_is_not_trusted(settings):
    def wrong(graph, example):
        return lambda *inputs: [y * torch.linspace(0.98, 1.02, y.shape[-1]) for y in graph(*inputs)]

    assert "losses of compiled layers differ from those of plain ones by " in tried(wrong, **settings)


@pytest.mark.parametrize("settings", [{}, {"adapter": LORA}])
def test_a_compiler_whose_gradients_are_others_is_not_trusted(settings):
    def flip(y):
        return y - 2 * (y - y.detach())  # the same value, the opposite gradient

    wrong = lambda graph, example: lambda *inputs: [flip(y) for y in graph(*inputs)]  # noqa: E731
    assert "gradients of compiled layers differ from those of plain ones by " in tried(wrong, **settings)


def test_a_compiler_that_fails_on_adapters_alone_is_found():
    def without_adapters(graph, example):
        if any("lora_A" in str(node.target) for node in graph.graph.nodes):
            raise AssertionError("a node of the backward pass is an output of the forward pass")
        return graph.forward

    assert tried(without_adapters) == ""
    assert "is an output of the forward pass" in tried(without_adapters, adapter=LORA)
