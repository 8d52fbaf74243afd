"""LoRA adapters: what learns, that merging changes no answer, and that a training resumes bit-equal."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from lumen_hpc import nvila
from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training import adapters, memory
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.predict import open_model
from tests.training import tiny, toy

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": []}


def model():
    return make_tiny(["Nothing has changed."], vision_width=32, width=32, layers=2, vision_layers=3)


def settings(**changes):
    return Train(adapter=Adapter(**LORA), **changes)


@pytest.mark.parametrize("parts", [["llm"], ["vision_tower"], ["projector"], ["vision_tower", "projector", "llm"]])
def test_adapters_alone_learn_and_as_many_as_the_plan_counts(parts, tmp_path):
    chosen = model()
    folder = nvila.save(chosen, tmp_path / "model")
    train = settings(tune=parts)
    adapters.inject(chosen, train, seed=0)
    learning = {name: p.numel() for name, p in chosen.named_parameters() if p.requires_grad}
    assert learning and all(".lora_" in name for name in learning)
    assert {name.split(".")[0].replace("mm_", "") for name in learning} == set(parts)
    assert sum(learning.values()) == memory.learning_parameters(train, Sizes.read(folder))


def test_a_target_that_no_layer_has_is_refused():
    train = Train(adapter=Adapter(**{**LORA, "targets": ["query"]}))
    with pytest.raises(UserError, match=r"targets=\['query'\]"):
        adapters.inject(model(), train, seed=0)


def test_the_seed_alone_gives_new_adapters_their_values():
    def factors(seed):
        chosen = model()
        torch.manual_seed(torch.seed())  # what a rank has drawn before is its own
        before = torch.get_rng_state()
        adapters.inject(chosen, settings(), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        return torch.cat([p.flatten() for p in chosen.parameters() if p.requires_grad])

    one, again, other = factors(0), factors(0), factors(1)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_adapters_drop_as_they_are_told_to():
    chosen = model()
    adapters.inject(chosen, Train(adapter=Adapter(**LORA | {"dropout": 0.25})), seed=0)
    layers = {module.lora_dropout["default"].p for module in chosen.modules() if hasattr(module, "lora_dropout")}
    assert layers == {0.25}


def test_compiled_adapters_under_zero3_are_refused():
    with pytest.raises(UserError, match=r"does not compile adapters under train\.zero=3"):
        Learner(model(), settings(zero=3, checkpointing="none", compiled=True))


def test_merged_and_unmerged_logits_are_equal(tmp_path):
    plain, chosen = model(), model()
    batch = plain.preprocess([{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "No."}]}])
    adapters.inject(chosen, settings(), seed=0)
    before = plain(batch, logits="all").logits
    assert torch.equal(chosen(batch, logits="all").logits, before)  # new adapters change nothing
    torch.manual_seed(3)
    for name, parameter in chosen.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    unmerged = chosen(batch, logits="all").logits
    base, factors = adapters.split(chosen.state_dict())
    nvila.save(chosen, tmp_path / "final", adapters.merge(base, factors, adapters.scale(LORA)))
    merged = nvila.load(tmp_path / "final")(batch, logits="all").logits
    assert (unmerged - before).abs().max() > 1e-2
    assert (merged - unmerged).abs().max() < 1e-5

    adapters.save_peft(factors, Adapter(**LORA), tmp_path / "adapter")
    from peft import PeftModel

    again = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    assert (again(batch, logits="all").logits - unmerged).abs().max() < 1e-5


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    (folder / "dataset").mkdir()
    dataset = tiny.make(folder / "dataset")

    def run(name, **changes):
        return tiny.run(folder / name, dataset, adapter=LORA, learning_rate=1e-2, **changes)

    stopped = run("resumed", checkpoint_every=2) | {"stop_at": 3}
    toy.train(run("whole", checkpoint_every=2), stopped, run("resumed", checkpoint_every=2), script=tiny.__file__)
    moved = run("moved", zero=3, checkpoint_every=2)
    pair = run("zero3", zero=3), run("zero2", zero=2), moved | {"stop_at": 3}
    toy.train(*pair, world_size=2, script=tiny.__file__)
    toy.train(moved, script=tiny.__file__)  # from two processes to one
    return folder


def test_a_resumed_training_is_bit_equal(trained):
    assert toy.metrics(trained / "resumed") == toy.metrics(trained / "whole")
    assert json.loads((trained / "resumed" / "restarts.jsonl").read_text())["step"] > 0
    for part in ("llm", "vision_tower", "mm_projector"):
        one, other = (load_file(trained / name / "final" / part / "model.safetensors") for name in ("whole", "resumed"))
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["zero2", "zero3", "moved"])
def test_two_processes_and_a_change_of_their_number_equal_one(trained, name):
    assert toy.losses(trained / name) == pytest.approx(toy.losses(trained / "whole"), abs=1e-5)


@pytest.mark.parametrize("name", ["whole", "zero2", "zero3"])
def test_a_checkpoint_holds_adapters_alone_and_answers_as_the_merged_model(trained, name):
    checkpoint = max((trained / name / "checkpoints").glob("step-*"))
    base = sum(file.stat().st_size for file in (trained / "dataset" / "base").rglob("*.safetensors"))
    learned = sum(file.stat().st_size for file in (trained / name / "final" / "adapter").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in (checkpoint / "deepspeed").iterdir()) < 0.5 * base + 8 * learned
    one = nvila.load(trained / name / "final").state_dict()
    other = open_model(checkpoint, run=trained).state_dict()
    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)
