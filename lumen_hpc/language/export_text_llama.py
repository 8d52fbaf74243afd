"""Writes the text model inside a Llama-3.2-Vision checkpoint as a plain Llama, which today's vLLM serves.

vLLM dropped Mllama after 0.10.2. Without an image the model skips its cross-attention layers, so its self-attention
layers, embeddings, norm and head form a Llama with bit-identical logits. Tensors are streamed: memory holds one output
file at a time, whatever the checkpoint's size.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lumen_hpc.errors import UserError

SUFFIX = "-text"
"""Suffix of the folder that this module writes next to the official one."""
SHARD_BYTES = 4 << 30
"""Most bytes in one output file, unless a single tensor is larger."""
_COPIED_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "USE_POLICY*",
)
_PARTS = (
    *(f"self_attn.{part}_proj" for part in "qkvo"),
    *(f"mlp.{part}_proj" for part in ("gate", "up", "down")),
    "input_layernorm",
    "post_attention_layernorm",
)
_COPIED_KEYS = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "hidden_act", "rms_norm_eps",
    "max_position_embeddings", "initializer_range", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id",
    "rope_theta", "rope_scaling", "rope_parameters", "tie_word_embeddings", "use_cache",
)  # fmt: skip


def original(model: str) -> str:
    """The official model from which a text model is exported; for any other model, its own name."""
    return model.removesuffix(SUFFIX)


def export(source: Path, target: Path, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Writes the text Llama of the Mllama checkpoint in `source` to the folder `target`, whole or not at all.

    Returns the files written. The tensors keep their dtype; the embedding loses the extra rows of image tokens.
    Raises UserError if `source` is not an Mllama checkpoint or lacks a tensor, or if `target` exists.
    """
    if target.exists():
        raise UserError(f"{target} exists already; move it away to export again")
    config = _config(source)
    text = config["text_config"]
    layers = [i for i in range(text["num_hidden_layers"]) if i not in set(text["cross_attention_layers"])]
    partial = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    number = {str(layer): new for new, layer in enumerate(layers)}
    names = _write_tensors(source, partial, number, text["vocab_size"], shard_bytes)
    _require(names, len(layers), bool(text.get("tie_word_embeddings")), source)
    for pattern in _COPIED_FILES:
        for path in source.glob(pattern):
            shutil.copy2(path, partial / path.name)
    (partial / "config.json").write_text(json.dumps(_llama_config(config, len(layers)), indent=2) + "\n")
    partial.rename(target)
    return sorted(target.iterdir())


def _config(source: Path) -> dict[str, Any]:
    try:
        config = json.loads((source / "config.json").read_text())
    except OSError as error:
        raise UserError(f"{source} is no checkpoint folder: {error.strerror}: config.json") from None
    if config.get("model_type") != "mllama":
        raise UserError(
            f"{source} holds a {config.get('model_type')} model; this export takes mllama (Llama-3.2-Vision)"
        )
    return config


def _llama_config(config: dict[str, Any], layers: int) -> dict[str, Any]:
    text = config["text_config"]
    dtype = next(
        (part[key] for part in (text, config) for key in ("dtype", "torch_dtype") if part.get(key)), "bfloat16"
    )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "torch_dtype": dtype,
        **{key: text[key] for key in _COPIED_KEYS if text.get(key) is not None},
    }


def _write_tensors(source: Path, folder: Path, number: dict[str, int], rows: int, shard_bytes: int) -> set[str]:
    """Streams the text tensors into numbered files with an index; returns their names."""
    from lumen_hpc.nvila.tensors import write_tensors

    where: dict[str, str] = {}
    batch: dict[str, Any] = {}
    total = pending = files = 0

    def flush() -> None:
        nonlocal batch, pending, files
        if batch:
            files += 1
            file = f"model-{files:05d}.safetensors"
            write_tensors(batch, folder / file)
            where.update(dict.fromkeys(batch, file))
            batch, pending = {}, 0

    for name, tensor in _text_tensors(source, number):
        if name == "model.embed_tokens.weight":
            tensor = tensor[:rows].clone()
        size = tensor.numel() * tensor.element_size()
        if pending + size > shard_bytes:
            flush()
        batch[name] = tensor
        pending, total = pending + size, total + size
    flush()
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return set(where)


def _text_tensors(source: Path, number: dict[str, int]) -> Iterator[tuple[str, Any]]:
    """(name in a Llama, tensor) of every text tensor, one file after the other."""
    from safetensors import safe_open

    paths = sorted(source.glob("*.safetensors"))
    if not paths:
        raise UserError(f"{source} has no *.safetensors files")
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  safe_open is not a mapping
                if new := _renamed(name, number):
                    yield new, file.get_tensor(name)


def _renamed(name: str, number: dict[str, int]) -> str:
    """A tensor's name in a Llama, whether Mllama was written by transformers 4 or 5; empty for a tensor to omit."""
    if re.search(r"(^|\.)(vision_model|multi_modal_projector)\.", name):
        return ""
    if name.endswith("lm_head.weight"):
        return "lm_head.weight"
    if match := re.search(r"(?:^|\.)(embed_tokens\.weight|norm\.weight)$", name):
        return f"model.{match[1]}" if "layers." not in name else ""
    if (match := re.search(r"(?:^|\.)layers\.(\d+)\.(.+)$", name)) and match[1] in number:
        return f"model.layers.{number[match[1]]}.{match[2]}"
    return ""


def _require(names: set[str], layers: int, tied: bool, source: Path) -> None:
    required = {"model.embed_tokens.weight", "model.norm.weight"} | (set() if tied else {"lm_head.weight"})
    required |= {f"model.layers.{layer}.{part}.weight" for layer in range(layers) for part in _PARTS}
    if missing := sorted(required - names):
        raise UserError(f"{source} lacks {len(missing)} tensors of the text model, such as {missing[0]}")
