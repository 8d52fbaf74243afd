"""Checks single json values of a checkpoint: official types, plausible sizes, NVILA's family.

`config` checks combinations of values.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from lumen_hpc.errors import UserError

GENERATION = "llm/generation_config.json"
MAX_TILES = 100
"""Most tiles per picture; published checkpoints have 12."""

_REQUIRED_KEYS = {"llm": ("hidden_size",), "vision_tower": ("hidden_size", "image_size", "patch_size")}
"""What is read here from the parts' `config.json`; transformers reads the rest."""
_MAX_SIZES = {
    "llm": {"hidden_size": 1 << 16, "num_hidden_layers": 512, "num_attention_heads": 1 << 10, "vocab_size": 1 << 22},
    "vision_tower": {
        "hidden_size": 1 << 16, "num_hidden_layers": 512, "num_attention_heads": 1 << 10,
        "image_size": 4096, "patch_size": 512,
    },
}  # fmt: skip
"""Limits far above every published model's sizes: larger ones would only fill memory or never end."""
_MODEL_TYPES = {"llm": "qwen2", "vision_tower": "siglip_vision_model"}
"""The parts' `model_type`."""
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_FLAGS = ("dynamic_s2", "s2", "ps3")
_COUNTS = ("min_tiles", "max_tiles")
_INDICES = ("mm_vision_select_layer", "s2_resize_output_to_scale_idx")

Values = Mapping[str, Any]


def is_whole(value: object) -> bool:
    """True for a whole number; json's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_types(root: Values, parts: Mapping[str, Values], generation: Values) -> None:
    """Refuses values that would be misread (`"false"` is true) or fail much later.

    root, parts: `config.json` of the checkpoint and, by name, of its parts. generation: `llm/generation_config.json`.
    Raises UserError with the key, its value, its file and what it takes; so do the other checks here.
    """
    _check_root(root, parts)
    _check_llm(parts["llm"])
    for name, values in (("llm/config.json", parts["llm"]), (GENERATION, generation)):
        for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
            ids = values.get(key)
            id_list = ids if isinstance(ids, list) else [] if ids is None else [ids]
            if not all(is_whole(i) and i >= 0 for i in id_list):
                raise UserError(f"{key}={json.dumps(ids)} in {name}: it takes a token id, a whole number")


def _check_root(root: Values, parts: Mapping[str, Values]) -> None:
    kinds: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool]], ...] = (
        (_FLAGS, "true or false", lambda value: value is None or isinstance(value, bool)),
        (_COUNTS, f"a whole number from 1 to {MAX_TILES}", lambda n: is_whole(n) and 1 <= n <= MAX_TILES),
        (_INDICES, "a whole number", is_whole),
    )
    for keys, kind, valid in kinds:
        for key in keys:
            if key in root and not valid(root[key]):
                raise UserError(f"{key}={json.dumps(root[key])} in config.json: it takes {kind}")
    for part in parts:
        value = root.get(f"{part}_cfg")
        if not isinstance(value, dict | str | None):
            raise UserError(
                f"{part}_cfg in config.json is a {type(value).__name__}: it takes an object, or the path that VILA "
                "writes while it trains"
            )


def _check_llm(llm: Values) -> None:
    for key, limit in (("rope_theta", 1e12), ("model_max_length", 1 << 24), ("max_position_embeddings", 1 << 24)):
        value = llm.get(key)
        if isinstance(value, int | float) and (isinstance(value, bool) or not 0 < value <= limit):
            raise UserError(f"{key}={json.dumps(value)} in llm/config.json: it takes a number from 1 to {limit:.0g}")
    is_tied = llm.get("tie_word_embeddings", False)
    if not isinstance(is_tied, bool):
        raise UserError(f"tie_word_embeddings={json.dumps(is_tied)} in llm/config.json: it takes true or false")
    for key in ("torch_dtype", "dtype"):
        if llm.get(key) not in (None, *_DTYPES):
            raise UserError(
                f"{key}={json.dumps(llm[key])[:40]} in llm/config.json: it takes one of {', '.join(_DTYPES)}"
            )


def check_sizes(parts: Mapping[str, Values]) -> None:
    """Refuses a part without a required size, and a size that is no whole number from 1 to its limit."""
    for part, keys in _REQUIRED_KEYS.items():
        if missing_keys := [key for key in keys if not is_whole(parts[part].get(key))]:
            raise UserError(f"{part}/config.json gives no whole number for {', '.join(missing_keys)}")
    for part, limits in _MAX_SIZES.items():
        for key, limit in limits.items():
            value = parts[part].get(key, 1)
            if not (is_whole(value) and 1 <= value <= limit):
                raise UserError(
                    f"{key}={json.dumps(value)[:40]} in {part}/config.json: it takes a whole number from 1 to {limit}"
                )


def check_family(root: Values, parts: Mapping[str, Values]) -> None:
    """Refuses values for which the official code would compute something else."""
    for part, kind in _MODEL_TYPES.items():
        if (model_type := parts[part].get("model_type", kind)) != kind:
            raise UserError(f"model_type={json.dumps(model_type)} in {part}/config.json is not supported; it is {kind}")
    files = {"config.json": root, **{f"{part}/config.json": values for part, values in parts.items()}}
    for file, values in files.items():
        if values.get("quantization_config"):
            raise UserError(f"quantization_config in {file}: quantised weights are not read; give unquantised ones")
    feature = root.get("mm_vision_select_feature", "cls_patch")
    if feature != "cls_patch":
        raise UserError(
            f"mm_vision_select_feature={feature!r} in config.json: SigLIP has no class token to drop; use cls_patch"
        )
    if root.get("ps3") or (root.get("s2") and not root.get("dynamic_s2")):
        raise UserError("ps3=true or s2=true in config.json is not supported; of these only dynamic_s2 is")
    if root.get("chat_template") not in (None, "qwen2"):
        raise UserError(f"chat_template={root['chat_template']!r} in config.json: use qwen2 (ChatML)")
    llm = parts["llm"]
    if any(kind != "full_attention" for kind in llm.get("layer_types") or ()):
        raise UserError("layer_types in llm/config.json has other than full_attention; NVILA has full attention")
    if llm.get("use_sliding_window"):
        raise UserError("use_sliding_window=true in llm/config.json is not supported; NVILA has full attention")
    _check_encoder(root.get("image_encoder") or {})


def _check_encoder(encoder: Any) -> None:
    """Refuses an `image_encoder`, an object or its json text, that puts other tokens around a picture."""
    try:
        encoder = json.loads(encoder) if isinstance(encoder, str) else encoder
    except ValueError:
        encoder = None
    if not isinstance(encoder, dict):
        raise UserError("image_encoder in config.json is no object, nor json text of one")
    ends = encoder.get("start_tokens"), encoder.get("end_tokens", "\n")
    if ends != (None, "\n"):
        raise UserError(f"image_encoder in config.json puts {ends} around a picture; use a newline after it")
