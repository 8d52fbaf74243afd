"""The transformers engine alone: what a model's folder brings along, and batches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lumen_hpc.config.schema import EngineSettings
from lumen_hpc.errors import UserError
from lumen_hpc.language import prompting, transformers_engine
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.judge import SCORES

QUESTIONS = [
    prompting.rewrite_prompt("presence", f"is there evidence of {finding} in this image?", "yes")
    for finding in ("edema", "a large right pleural effusion", "pneumonia")
]


def engine(folder):
    return open_engine(EngineSettings(kind="transformers", model=str(folder), dtype="float32", max_model_len=2048))


def greedy(engine, **more):
    return engine.chat(QUESTIONS, max_tokens=24, temperature=0.0, seed=0, **more)


@pytest.fixture(scope="module")
def plain(tiny):
    return engine(tiny)


@pytest.fixture
def copied(tiny, tmp_path):
    return shutil.copytree(tiny, tmp_path / "model")


def test_a_models_own_penalties_change_nothing(plain, copied):
    """vLLM has none either; Qwen2.5's generation_config.json comes with a penalty for repetition."""
    file = copied / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.3, "temperature": 0.7}))
    assert greedy(engine(copied)) == greedy(plain)


def test_weights_that_were_cut_off_are_named(copied):
    file = copied / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"cannot load engine\.model={copied}"):
        engine(copied)


def test_the_settings_number_format_is_that_of_the_weights(tiny):
    import torch

    for dtype, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32), ("auto", torch.float32)):
        settings = EngineSettings(kind="transformers", model=str(tiny), dtype=dtype, max_model_len=2048)
        assert open_engine(settings).model.dtype == expected


def test_mistrals_own_tokenizer_beside_the_usual_one_is_left_alone(plain, copied):
    """Their repositories hold both, and mistral_common would take the place of the folder's chat template."""
    mistral_common = pytest.importorskip("mistral_common")
    (vocabulary, *_) = sorted((Path(mistral_common.__file__).parent / "data").glob("tekken*.json"))
    shutil.copy(vocabulary, copied / "tekken.json")
    file = copied / "config.json"
    kind = {"model_type": "mistral", "architectures": ["MistralForCausalLM"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | kind))
    assert greedy(engine(copied)) == greedy(plain)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_are_drawn_from_the_models_distribution_at_the_temperature(temperature):
    import torch

    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    noise = transformers_engine._Noise(list(range(20_000)), temperature)
    for _ in range(2):  # the second token too
        drawn = noise(None, logits.expand(20_000, -1)).argmax(-1)
        shares = torch.bincount(drawn, minlength=4) / 20_000
        assert shares.tolist() == pytest.approx((logits / temperature).softmax(-1).tolist(), abs=0.015)


def test_a_sample_depends_on_its_own_seed_not_on_its_batch(plain):
    def sampled(conversations, seeds):
        return [it.text for it in plain.chat(conversations, max_tokens=16, temperature=0.8, seed=seeds)]

    together = sampled(QUESTIONS, [0, 1, 2])
    assert sampled(QUESTIONS[1:2], [1]) == together[1:2] != sampled(QUESTIONS[1:2], [7])


def test_a_text_ends_with_its_turn_and_at_a_whole_character(plain):
    """What a batch writes after the end of a shorter answer is padding, and max_tokens may cut a character."""
    ends = plain.model.generation_config.eos_token_id
    assert plain._until_end([5, 6, ends, 7, 8]) == [5, 6, ends] and plain._until_end([5, 6]) == [5, 6]
    half = plain.tokenizer.encode("Edema \N{SNOWMAN}", add_special_tokens=False)[:-1]
    plain_batch, plain._batch = plain._batch, lambda *_: [half]
    try:
        assert [it.text for it in plain.chat(QUESTIONS[:1], max_tokens=9, temperature=0.0, seed=0)] == ["Edema"]
    finally:
        plain._batch = plain_batch


def test_batches_change_no_answer(plain, monkeypatch):
    together, chosen = greedy(plain), greedy(plain, choices=SCORES)
    monkeypatch.setattr(transformers_engine, "BATCH_TOKENS", 1)
    assert [it.text for it in greedy(plain)] == [it.text for it in together]
    for ours, theirs in zip(greedy(plain, choices=SCORES), chosen, strict=True):
        assert ours.choice_probabilities == pytest.approx(theirs.choice_probabilities, abs=1e-5)
