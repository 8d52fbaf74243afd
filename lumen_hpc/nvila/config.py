"""A checkpoint's configuration: the official json values, kept whole, and the few of them that decide the maths.

Keys that nothing here reads are kept and written back; `config_files` reads and writes the files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from lumen_hpc.errors import UserError

from .prompt_form import KEY, PromptForm

PARTS = ("llm", "vision_tower", "mm_projector")
PROJECTORS = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""Projector types and how many patches each side of a downsampling block has."""
ASPECTS = ("resize", "dynamic", "dynamic_s2")

_NEEDED = {"llm": ("hidden_size",), "vision_tower": ("hidden_size", "image_size", "patch_size")}
"""What is read from the parts' `config.json` here; transformers knows the rest."""

MOST_TILES = 100
"""Of one picture; published checkpoints have 12."""
_FAMILY = {"llm": "qwen2", "vision_tower": "siglip_vision_model"}
"""The parts' `model_type`."""
_MOST = {
    "llm": {"hidden_size": 1 << 16, "num_hidden_layers": 512, "num_attention_heads": 1 << 10, "vocab_size": 1 << 22},
    "vision_tower": {"hidden_size": 1 << 16, "num_hidden_layers": 512, "image_size": 4096, "patch_size": 512},
}
"""Sizes far above every published model's: a larger one would only fill memory or never end."""
_MOST_SCALE = 8192
"""Side of the largest scale [px]."""

_FORMATS = ("float32", "bfloat16", "float16", "float64")
_FLAGS = ("dynamic_s2", "s2", "ps3")
_COUNTS = ("min_tiles", "max_tiles")
_INDICES = ("mm_vision_select_layer", "s2_resize_output_to_scale_idx")
GENERATION = "llm/generation_config.json"

Block = tuple[int, int] | None
"""(rows, columns) of the finest scale's tiles of one picture; None for a picture that is a single tile."""


def _whole(value: object) -> bool:
    """True for a whole number; json's true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(kw_only=True)
class NVILAConfig:
    root: dict[str, Any]
    """Root `config.json`."""
    llm: dict[str, Any]
    vision_tower: dict[str, Any]
    mm_projector: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    """Small files that travel with the weights (tokenizer, preprocessor, generation settings), by their path."""

    def __post_init__(self) -> None:
        self._check_types()
        for part, keys in _NEEDED.items():
            lacking = [key for key in keys if not _whole(getattr(self, part).get(key))]
            if lacking:
                raise UserError(f"{part}/config.json gives no whole number for {', '.join(lacking)}")
        self._check_sizes()
        self._check_family()
        self._check_pictures()
        PromptForm.read(self.root)
        _ = self.max_length, self.select_layer, self.s2_output, self.generation  # read here if they are of other types

    def _check_sizes(self) -> None:
        """Refuse a size that is no whole number from 1 to far above every model's."""
        for part, most in _MOST.items():
            values = getattr(self, part)
            for key, limit in most.items():
                if key in values and not (_whole(values[key]) and 1 <= values[key] <= limit):
                    raise UserError(
                        f"{key}={json.dumps(values[key])[:40]} in {part}/config.json: it takes a whole number from 1 "
                        f"to {limit}"
                    )

    def _check_types(self) -> None:
        """Refuse values that would be read as something else (`"false"` is true) or fail far from here."""
        for keys, kind, valid in (
            (_FLAGS, "true or false", lambda value: value is None or isinstance(value, bool)),
            (_COUNTS, f"a whole number from 1 to {MOST_TILES}", lambda n: _whole(n) and 1 <= n <= MOST_TILES),
            (_INDICES, "a whole number", _whole),
        ):
            for key in keys:
                if key in self.root and not valid(self.root[key]):
                    raise UserError(f"{key}={json.dumps(self.root[key])} in config.json: it takes {kind}")
        for part in PARTS:
            if not isinstance(self.root.get(f"{part}_cfg"), dict | str | None):
                raise UserError(f"{part}_cfg in config.json is a {type(self.root[f'{part}_cfg']).__name__}: it takes "
                                f"an object, or the path that VILA writes while it trains")  # fmt: skip
        for key, most in (("rope_theta", 1e12), ("model_max_length", 1 << 24), ("max_position_embeddings", 1 << 24)):
            value = self.llm.get(key)
            if isinstance(value, int | float) and not 0 < value <= most:
                raise UserError(f"{key}={json.dumps(value)} in llm/config.json: it takes a number from 1 to {most:.0g}")
        tied = self.llm.get("tie_word_embeddings", False)
        if not isinstance(tied, bool):
            raise UserError(f"tie_word_embeddings={json.dumps(tied)} in llm/config.json: it takes true or false")
        for key in ("torch_dtype", "dtype"):
            if self.llm.get(key) not in (None, *_FORMATS):
                raise UserError(
                    f"{key}={json.dumps(self.llm[key])[:40]} in llm/config.json: it takes one of {', '.join(_FORMATS)}"
                )
        for name, values in (("llm/config.json", self.llm), (GENERATION, self.generation)):
            for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
                ids = values.get(key)
                if not all(
                    _whole(i) and i >= 0 for i in (ids if isinstance(ids, list) else [ids] if ids is not None else [])
                ):
                    raise UserError(f"{key}={json.dumps(ids)} in {name}: it takes a token id, a whole number")

    @property
    def generation(self) -> dict[str, Any]:
        """`llm/generation_config.json`, empty where there is none."""
        return json.loads(self.files.get(GENERATION, b"{}"))

    def _check_family(self) -> None:
        """Refuse, with its value, what the official code would compute differently."""
        if not isinstance(self.projector, str) or self.projector not in PROJECTORS:
            raise UserError(
                f"mm_projector_type={self.projector!r} in mm_projector/config.json is not supported; "
                f"use one of {sorted(PROJECTORS)}"
            )
        for part, kind in _FAMILY.items():
            if (named := getattr(self, part).get("model_type", kind)) != kind:
                raise UserError(f"model_type={json.dumps(named)} in {part}/config.json is not supported; it is {kind}")
        for name in ("root", *PARTS):
            if getattr(self, name).get("quantization_config"):
                file = "config.json" if name == "root" else f"{name}/config.json"
                raise UserError(f"quantization_config in {file}: quantised weights are not read; give unquantised ones")
        if self.root.get("mm_vision_select_feature", "cls_patch") != "cls_patch":
            raise UserError(
                f"mm_vision_select_feature={self.root['mm_vision_select_feature']!r} in config.json: SigLIP has no "
                "class token to drop; use cls_patch"
            )
        if self.root.get("ps3") or (self.root.get("s2") and not self.s2):
            raise UserError("ps3=true or s2=true in config.json is not supported; of these only dynamic_s2 is")
        if self.root.get("chat_template") not in (None, "qwen2"):
            raise UserError(f"chat_template={self.root['chat_template']!r} in config.json: use qwen2 (ChatML)")
        if any(kind != "full_attention" for kind in self.llm.get("layer_types") or ()):
            raise UserError("layer_types in llm/config.json has other than full_attention; NVILA has full attention")
        if self.llm.get("use_sliding_window"):
            raise UserError("use_sliding_window=true in llm/config.json is not supported; NVILA has full attention")
        encoder = self.root.get("image_encoder") or {}  # an object, or json text of one
        try:
            encoder = json.loads(encoder) if isinstance(encoder, str) else encoder
        except ValueError:
            encoder = None
        if not isinstance(encoder, dict):
            raise UserError("image_encoder in config.json is no object, nor json text of one")
        ends = encoder.get("start_tokens"), encoder.get("end_tokens", "\n")
        if ends != (None, "\n"):
            raise UserError(f"image_encoder in config.json puts {ends} around a picture; use a newline after it")

    def _check_pictures(self) -> None:
        """Refuse tiling or normalisation that differs from every published NVILA's."""
        if self.aspect not in ASPECTS:
            raise UserError(f"image_aspect_ratio={self.aspect!r} in config.json is not supported; use one of {ASPECTS}")
        if self.aspect == "dynamic_s2" and not self.s2:
            raise UserError("image_aspect_ratio='dynamic_s2' in config.json needs dynamic_s2=true beside it")
        fewest, most = self.tiles
        if fewest > most:
            raise UserError(f"min_tiles={fewest} with max_tiles={most} in config.json: no picture has such a grid")
        raw = self.root.get("s2_scales")
        try:
            readable = min(self.scales) > 0 and (isinstance(raw, str | None) or all(map(_whole, raw)))
            readable = readable and len(set(self.scales)) == len(self.scales)
        except (ValueError, TypeError):
            readable = False
        if not readable:
            raise UserError(
                f"s2_scales={json.dumps(raw)} in config.json: it takes sides in pixels, as in '448,896,1344'"
            )
        if self.s2 and not -len(self.scales) <= self.s2_output < len(self.scales):
            index = f"s2_resize_output_to_scale_idx={self.s2_output}"
            raise UserError(f"{index} in config.json: there are {len(self.scales)} scales")
        layers = self.vision_tower.get("num_hidden_layers", self.select_layer)
        if not -layers - 1 <= self.select_layer <= layers:
            index = f"mm_vision_select_layer={self.select_layer}"
            raise UserError(f"{index} in config.json: the vision tower has {layers} layers")
        if self.scales[-1] > _MOST_SCALE:
            raise UserError(f"s2_scales={str(raw)[:40]!r} in config.json: sides of at most {_MOST_SCALE} px are read")
        if self.s2 and (self.scales[0] != self.image_size or any(scale % self.scales[0] for scale in self.scales)):
            raise UserError(
                f"s2_scales={self.root.get('s2_scales')!r} in config.json must be multiples of the tower's "
                f"image_size={self.image_size}, which comes first"
            )
        if self.aspect == "dynamic_s2" and most < (finest := (self.scales[-1] // self.scales[0]) ** 2):
            raise UserError(f"max_tiles={most} in config.json: the finest of s2_scales has at least {finest} tiles")
        name = "vision_tower/preprocessor_config.json"
        stored = json.loads(self.files.get(name, b"{}"))
        half, size = [0.5, 0.5, 0.5], {"height": self.image_size, "width": self.image_size}
        ours = {"image_mean": half, "image_std": half, "resample": 3, "size": size, "rescale_factor": 1 / 255}
        ours |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
        stored = {key: value for key, value in stored.items() if value is not None}
        other = {key: stored[key] for key, value in ours.items() if stored.get(key, value) != value}
        if other:
            raise UserError(f"{name} has {other}; supported is { {key: ours[key] for key in other} }")

    @property
    def prompt_form(self) -> PromptForm:
        """How the prompts of its training were written; the official form where the checkpoint has no note."""
        return PromptForm.read(self.root)

    def with_prompt_form(self, form: PromptForm) -> NVILAConfig:
        """The same, with another note."""
        return replace(self, root=self.root | {KEY: form.note()})

    # -- how pictures are cut -------------------------------------------------------------------------------------
    @property
    def aspect(self) -> str:
        """`resize`, `dynamic` or `dynamic_s2`."""
        return self.root.get("image_aspect_ratio") or "resize"

    @property
    def s2(self) -> bool:
        """True if features of several scales are joined (NVILA-8B and 15B)."""
        return bool(self.root.get("dynamic_s2"))

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the S2 scales [px], ascending; the first is the tower's own."""
        raw = self.root.get("s2_scales") or str(self.image_size)
        return tuple(sorted(int(part) for part in (raw.split(",") if isinstance(raw, str) else raw)))

    @property
    def s2_output(self) -> int:
        """Which scale's grid the others are resized to (-1: the finest). Default: the first, as officially."""
        return int(self.root.get("s2_resize_output_to_scale_idx", 0))

    @property
    def tiles(self) -> tuple[int, int]:
        """Fewest and most tiles of one picture."""
        return int(self.root.get("min_tiles", 1)), int(self.root.get("max_tiles", 12))

    @property
    def image_size(self) -> int:
        """Side of a tile [px]."""
        return int(self.vision_tower["image_size"])

    # -- shapes ---------------------------------------------------------------------------------------------------
    @property
    def select_layer(self) -> int:
        """Which of the tower's hidden states feeds the projector (-2: the last layer is skipped)."""
        return int(self.root.get("mm_vision_select_layer", -2))

    @property
    def projector(self) -> str:
        return self.mm_projector.get("mm_projector_type", "")

    @property
    def downsample(self) -> int:
        return PROJECTORS[self.projector]

    @property
    def mm_hidden_size(self) -> int:
        """Width that enters the projector: the tower's, times the number of scales with S2."""
        return int(self.vision_tower["hidden_size"]) * (len(self.scales) if self.s2 else 1)

    @property
    def hidden_size(self) -> int:
        return int(self.llm["hidden_size"])

    @property
    def patches(self) -> int:
        """Patches along a tile's side."""
        return self.image_size // int(self.vision_tower["patch_size"])

    @property
    def max_length(self) -> int:
        """Longest sequence that the checkpoint supports [tokens]."""
        return int(self.llm.get("model_max_length") or self.llm.get("max_position_embeddings", 32768))

    def with_dtype(self, dtype: object) -> NVILAConfig:
        """The same, with `dtype` (a torch dtype) wherever the json files name the weights' format."""
        name = str(dtype).removeprefix("torch.")

        def renamed(values: dict[str, Any]) -> dict[str, Any]:
            named = {key: name for key in ("torch_dtype", "dtype") if isinstance(values.get(key), str)}
            if isinstance(values.get("model_dtype"), str):
                named["model_dtype"] = f"torch.{name}"
            nested = {
                key: renamed(value) for key, value in values.items() if key.endswith("_cfg") and isinstance(value, dict)
            }
            return values | nested | named

        parts = {part: renamed(getattr(self, part)) for part in PARTS}
        # VILA writes a part's path here while it trains; the published form is the part's own configuration.
        inlined = {f"{part}_cfg": parts[part] for part in PARTS if isinstance(self.root.get(f"{part}_cfg"), str)}
        return replace(self, root=renamed(self.root) | inlined, **parts)

    def image_tokens(self, block: Block) -> int:
        """Language-model tokens of one picture, its closing newline included."""
        rows, columns = (1, 1) if block is None else self.output_block(block)
        return rows * columns * ceil(self.patches / self.downsample) ** 2 + 1

    def output_block(self, block: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tiles after the scales are joined (official `merge_features_for_dynamic_s2`)."""
        index = self.s2_output % len(self.scales)
        if index == len(self.scales) - 1:
            return block
        side = self.scales[index] // self.scales[0]
        return side, side
