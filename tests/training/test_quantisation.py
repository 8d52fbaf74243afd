"""Adapters over a base of 8 and 4 bits: what they merge into, and that a training keeps its guarantees."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lumen_hpc import nvila
from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training import adapters, memory, quantisation, sizing
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.predict import open_model
from tests.training import tiny, toy

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": []}
LOGITS = {4: 1e-5, 8: 0.1}
"""How far merged logits may be from unmerged ones: LLM.int8 rounds each product's inputs too."""


def model():
    return make_tiny(["Nothing has changed."], vision_width=32, width=32, layers=2, vision_layers=3)


def settings(bits, **changes):
    return Train(adapter=Adapter(**LORA, base_bits=bits), zero=1, **changes)


@pytest.mark.parametrize("bits", [8, 4])
def test_merged_and_unmerged_logits_are_as_near_as_the_format_allows(bits, tmp_path):
    plain = model()
    batch = plain.preprocess([{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "No."}]}])
    before = plain(batch, logits="all").logits
    learner = Learner(plain, settings(bits, checkpointing="none", compiled=False))
    torch.manual_seed(3)
    for name, parameter in learner.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=0.05)
    unmerged = plain(batch, logits="all").logits
    state = learner.renamed_for_export(quantisation.plain_state(learner.state_dict(), learner))
    base, factors = adapters.split(state)
    nvila.save(plain, tmp_path / "final", adapters.merge(base, factors, adapters.scale(LORA)))
    merged = nvila.load(tmp_path / "final")(batch, logits="all").logits
    assert (unmerged - before).abs().max() > 1e-2
    assert (merged - unmerged).abs().max() < LOGITS[bits]


@pytest.mark.parametrize("bits", [8, 4])
def test_as_many_weights_are_quantised_as_the_plan_counts(bits, tmp_path):
    chosen = model()
    folder = nvila.save(chosen, tmp_path / "model")
    train = settings(bits)
    quantisation.quantise(chosen, adapters.target_names(chosen, train), bits)
    layers = [module for module in chosen.modules() if quantisation.is_quantised(module)]
    assert sum(m.in_features * m.out_features for m in layers) == memory.adapted_weights(train, Sizes.read(folder))
    assert sum(m.weight.numel() * m.weight.element_size() * 8 // bits for m in layers) == sum(
        m.in_features * m.out_features for m in layers
    )


def test_bits_leave_less_of_a_weight_the_fewer_they_are():
    tensor = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    off = {bits: float((quantisation.rounded_weight(tensor, bits) - tensor).norm() / tensor.norm()) for bits in (8, 4)}
    assert 0 < off[8] < 0.02 < off[4] < 0.12


def test_what_cannot_be_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"train\.zero=3 does not take train\.adapter\.base_bits=4"):
        Train(adapter=Adapter(**LORA, base_bits=4), zero=3)
    with pytest.raises(UserError, match=r"train\.compiled=true does not compile"):
        Learner(model(), settings(4, checkpointing="none", compiled=True))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"base_bits=4 needs the package bitsandbytes"):
        quantisation.quantise(model(), [], 4)


def test_an_8b_model_learns_on_24_gb_with_its_tower_frozen():
    train = settings(4, tune=["projector", "llm"], token_budget=8192)
    assert sizing.resolve(train, 1, 24.0).checkpointing == "full"
    assert sizing.check_fit(train, 1, 24.0).memory_gb < 0.9 * 24
    with pytest.raises(UserError, match="does not fit"):
        sizing.check_fit(settings(16, tune=["projector", "llm"], token_budget=8192), 1, 24.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    (folder / "dataset").mkdir()
    dataset = tiny.make(folder / "dataset")

    def run(bits, name, **changes):
        adapter = {**LORA, "base_bits": bits}
        return tiny.run(folder / f"{name}{bits}", dataset, adapter=adapter, learning_rate=1e-2, **changes)

    alone = []
    for bits in (8, 4):
        resumed = run(bits, "resumed", checkpoint_every=2)
        alone += [run(bits, "whole", checkpoint_every=2), resumed | {"stop_at": 3}, resumed]
    toy.train(*alone, script=tiny.__file__)
    toy.train(*(run(bits, "zero2", zero=2) for bits in (8, 4)), world_size=2, script=tiny.__file__)
    return folder


@pytest.mark.parametrize("bits", [8, 4])
def test_a_training_over_a_quantised_base_keeps_its_guarantees(trained, bits):
    whole, resumed, zero2 = (trained / f"{name}{bits}" for name in ("whole", "resumed", "zero2"))
    losses = toy.losses(whole)
    assert losses[-1] < losses[0]
    assert toy.metrics(resumed) == toy.metrics(whole)
    assert toy.losses(zero2) == pytest.approx(losses, abs=1e-5 if bits == 4 else 1e-2)
    for part in ("llm", "vision_tower", "mm_projector"):
        one, other = (load_file(run / "final" / part / "model.safetensors") for run in (whole, resumed))
        assert all(torch.equal(one[key], other[key]) for key in one)
    checkpoint = max((whole / "checkpoints").glob("step-*"))
    answered = open_model(checkpoint, run=trained).state_dict()
    final = nvila.load(whole / "final").state_dict()
    assert final.keys() == answered.keys()
    assert all(torch.allclose(final[key], answered[key], atol=1e-6) for key in final)
