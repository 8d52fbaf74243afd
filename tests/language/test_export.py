"""The text Llama inside an Mllama: equal logits to the bit, from either naming of the checkpoint's tensors."""

from __future__ import annotations

import json

import pytest
import torch

import lumen_hpc.torchvision_compat  # noqa: F401  before transformers imports torchvision
from lumen_hpc.errors import UserError
from lumen_hpc.language.export_text_llama import export


@pytest.fixture(scope="module")
def mllama(tmp_path_factory):
    """A random Mllama with two cross-attention layers among six, saved in several files."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    torch.manual_seed(0)
    text = {
        "vocab_size": 96,
        "hidden_size": 64,
        "num_hidden_layers": 6,
        "cross_attention_layers": [1, 4],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "pad_token_id": 3,
        "bos_token_id": 1,
        "eos_token_id": [2, 4],
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    }
    vision = {
        "hidden_size": 32,
        "attention_heads": 2,
        "num_hidden_layers": 1,
        "num_global_layers": 1,
        "intermediate_size": 32,
        "vision_output_dim": 64,
        "image_size": 28,
        "patch_size": 14,
        "max_num_tiles": 1,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]],
    }
    model = MllamaForConditionalGeneration(MllamaConfig(text_config=text, vision_config=vision)).eval()
    for parameter in model.parameters():  # norms and gates away from their trivial starting values
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("mllama")
    model.save_pretrained(folder, max_shard_size="60KB")
    return model, folder


def logits(model, tokens):
    with torch.inference_mode():
        return model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def test_text_logits_are_equal_to_the_bit(mllama, tmp_path):
    from transformers import LlamaForCausalLM

    model, folder = mllama
    written = export(folder, tmp_path / "text", shard_bytes=100_000)
    assert {path.name for path in written} >= {"config.json", "generation_config.json", "model.safetensors.index.json"}
    files = [path for path in written if path.suffix == ".safetensors"]
    assert len(files) > 2 and all(path.stat().st_size < 110_000 for path in files)
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "text", dtype=torch.float32).eval()
    assert llama.config.num_hidden_layers == 4
    assert llama.get_input_embeddings().weight.shape == (96, 64)
    tokens = torch.randint(5, 96, (3, 17), generator=torch.Generator().manual_seed(1))
    assert torch.equal(logits(model, tokens), logits(llama, tokens))


def test_tensors_named_as_in_the_official_release_are_found(mllama, tmp_path):
    """transformers 4, and so the official files, say language_model.model.… where 5 says model.language_model.…, and
    rope_theta and rope_scaling where 5 says rope_parameters."""
    from safetensors.torch import load_file, save_file
    from transformers import LlamaConfig

    _, folder = mllama
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((folder / "config.json").read_text())
    rope = config["text_config"].pop("rope_parameters")
    config["text_config"] |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
    (other / "config.json").write_text(json.dumps(config))
    save_file({_other_name(name): tensor for name, tensor in tensors.items()}, other / "model.safetensors")
    export(folder, tmp_path / "a")
    export(other, tmp_path / "b")
    ours, theirs = (load_file(tmp_path / side / "model-00001.safetensors") for side in "ab")
    one, two = (LlamaConfig.from_pretrained(tmp_path / side).to_dict() for side in "ab")
    assert one["rope_parameters"] == two["rope_parameters"] and one["rope_parameters"]["rope_theta"] == 500_000.0
    assert ours.keys() == theirs.keys() and len(ours) == 4 * 9 + 3
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def _other_name(name: str) -> str:
    if name.startswith("model.language_model."):
        return name.replace("model.language_model.", "language_model.model.", 1)
    if name.startswith("language_model.model."):
        return name.replace("language_model.model.", "model.language_model.", 1)
    return {"lm_head.weight": "language_model.lm_head.weight", "language_model.lm_head.weight": "lm_head.weight"}.get(
        name, name
    )


def test_what_is_no_mllama_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="takes mllama"):
        export(tmp_path, tmp_path / "text")
    assert not (tmp_path / "text").exists()


@pytest.mark.parametrize(("part", "missing"), [("layers.2.mlp", 3), ("lm_head", 1), ("embed_tokens", 1)])
def test_a_checkpoint_that_lacks_a_part_is_refused_and_leaves_nothing_complete(mllama, tmp_path, part, missing):
    from safetensors.torch import load_file, save_file

    _, folder = mllama
    tensors = {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((folder / "config.json").read_text())
    save_file({n: t for n, t in tensors.items() if part not in n}, broken / "model.safetensors")
    with pytest.raises(UserError, match=f"lacks {missing} tensors"):
        export(broken, tmp_path / "text")
    assert not (tmp_path / "text").exists()
