"""The configuration of a new model in the official layout, from the few sizes that tell models apart."""

from __future__ import annotations

from typing import Any

from lumen_hpc.nvila.config import NVILAConfig
from lumen_hpc.nvila.config_files import dump_json

_SIGLIP: dict[str, Any] = {
    "architectures": ["SiglipVisionModel"],
    "attention_dropout": 0.0,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "model_type": "siglip_vision_model",
    "num_channels": 3,
    "vision_use_head": False,
}
_QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "model_max_length": 8192,
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
}
_PREPROCESSOR: dict[str, Any] = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}


def official_config(
    *,
    vision: dict[str, Any],
    llm: dict[str, Any],
    aspect: str = "dynamic_s2",
    projector: str = "mlp_downsample",
    scales: tuple[int, ...] = (448, 896, 1344),
    tiles: tuple[int, int] = (1, 12),
    dtype: str = "float32",
) -> NVILAConfig:
    """Json files of a new model in the official layout.

    `vision` needs hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, image_size [px] and
    patch_size [px]; `llm` needs hidden_size, intermediate_size, num_hidden_layers, num_attention_heads,
    num_key_value_heads and vocab_size.
    """
    vision = _SIGLIP | {"torch_dtype": dtype} | vision
    llm = _QWEN2 | {"torch_dtype": dtype} | llm
    s2 = aspect == "dynamic_s2"
    mm_projector = {
        "architectures": ["MultimodalProjector"],
        "mm_projector_type": projector,
        "model_type": "v2l_projector",
        "torch_dtype": dtype,
    }
    root = {
        "architectures": ["LlavaLlamaModel"],
        "chat_template": "qwen2",
        "dynamic_s2": s2,
        "hidden_size": llm["hidden_size"],
        "image_aspect_ratio": aspect,
        "llm_cfg": llm,
        "max_tiles": tiles[1],
        "min_tiles": tiles[0],
        "mm_hidden_size": vision["hidden_size"] * (len(scales) if s2 else 1),
        "mm_projector_cfg": mm_projector,
        "mm_vision_select_feature": "cls_patch",
        "mm_vision_select_layer": -2,
        "model_dtype": f"torch.{dtype}",
        "model_type": "llava_llama",
        "s2": False,
        "s2_max_split_size": vision["image_size"],
        "s2_resize_output_to_scale_idx": -1,
        "s2_scales": ",".join(map(str, scales)),
        "vision_tower_cfg": vision,
    }
    preprocessor = _PREPROCESSOR | {"size": {"height": vision["image_size"], "width": vision["image_size"]}}
    files = {"vision_tower/preprocessor_config.json": dump_json(preprocessor)}
    return NVILAConfig(root=root, llm=llm, vision_tower=vision, mm_projector=mm_projector, files=files)
