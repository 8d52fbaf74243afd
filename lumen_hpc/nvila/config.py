"""A checkpoint's configuration: all official json values, and properties for the few that decide the maths.

Keys that nothing here reads are written back unchanged. `config_files` reads and writes the files; `config_checks`
checks single values, and this module what follows from several.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from lumen_hpc.errors import UserError

from .config_checks import GENERATION, check_family, check_sizes, check_types, is_whole
from .prompt_form import KEY, PromptForm

PARTS = ("llm", "vision_tower", "mm_projector")
PROJECTORS = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
"""Projector types, and the side of their downsampling blocks [patches]."""
ASPECTS = ("resize", "dynamic", "dynamic_s2")
_MAX_SCALE = 8192
"""Side of the largest scale [px]."""

Block = tuple[int, int] | None
"""(rows, columns) of the finest scale's tiles of one picture; None for a picture that is a single tile."""


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
        parts = {part: getattr(self, part) for part in PARTS}
        check_types(self.root, parts, self.generation)
        check_sizes(parts)
        check_family(self.root, parts)
        if not isinstance(self.projector, str) or self.projector not in PROJECTORS:
            raise UserError(
                f"mm_projector_type={self.projector!r} in mm_projector/config.json is not supported; "
                f"use one of {sorted(PROJECTORS)}"
            )
        self._check_scales()
        self._check_tiles()
        self._check_preprocessor()
        PromptForm.read(self.root)
        _ = self.max_length, self.select_layer, self.s2_output, self.generation  # raise errors of type here

    @property
    def generation(self) -> dict[str, Any]:
        """`llm/generation_config.json`, empty where there is none."""
        return json.loads(self.files.get(GENERATION, b"{}"))

    @property
    def eos_ids(self) -> list[int]:
        """Token ids that end an answer by `llm/generation_config.json`; `<|im_end|>` does too, named there or not."""
        ids = self.generation.get("eos_token_id")
        return ids if isinstance(ids, list) else [] if ids is None else [ids]

    def _check_scales(self) -> None:
        """Refuses scales that the tower cannot have, and a layer that it has not."""
        raw = self.root.get("s2_scales")
        try:
            readable = min(self.scales) > 0 and (isinstance(raw, str | None) or all(map(is_whole, raw)))
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
        if self.scales[-1] > _MAX_SCALE:
            raise UserError(f"s2_scales={str(raw)[:40]!r} in config.json: sides of at most {_MAX_SCALE} px are read")
        if self.s2 and (self.scales[0] != self.image_size or any(scale % self.scales[0] for scale in self.scales)):
            raise UserError(
                f"s2_scales={raw!r} in config.json must be multiples of the tower's image_size={self.image_size}, "
                "which comes first"
            )

    def _check_tiles(self) -> None:
        """Refuses tiling that no published NVILA has."""
        if self.aspect not in ASPECTS:
            raise UserError(f"image_aspect_ratio={self.aspect!r} in config.json is not supported; use one of {ASPECTS}")
        if self.aspect == "dynamic_s2" and not self.s2:
            raise UserError("image_aspect_ratio='dynamic_s2' in config.json needs dynamic_s2=true beside it")
        fewest, most = self.tiles
        if fewest > most:
            raise UserError(f"min_tiles={fewest} with max_tiles={most} in config.json: no picture has such a grid")
        if self.aspect == "dynamic_s2" and most < (finest := (self.scales[-1] // self.scales[0]) ** 2):
            raise UserError(f"max_tiles={most} in config.json: the finest of s2_scales has at least {finest} tiles")

    def _check_preprocessor(self) -> None:
        """Refuses a normalisation or resize other than every published NVILA's."""
        name = "vision_tower/preprocessor_config.json"
        stored = json.loads(self.files.get(name, b"{}"))
        half, size = [0.5, 0.5, 0.5], {"height": self.image_size, "width": self.image_size}
        expected = {"image_mean": half, "image_std": half, "resample": 3, "size": size, "rescale_factor": 1 / 255}
        expected |= {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_center_crop": False}
        stored = {key: value for key, value in stored.items() if value is not None}
        different = {key: stored[key] for key, value in expected.items() if stored.get(key, value) != value}
        if different:
            raise UserError(f"{name} has {different}; supported is { {key: expected[key] for key in different} }")

    @property
    def prompt_form(self) -> PromptForm:
        """How the prompts of its training were written; the official form if the checkpoint has no note."""
        return PromptForm.read(self.root)

    def with_prompt_form(self, form: PromptForm) -> NVILAConfig:
        """The same, with another note."""
        return replace(self, root=self.root | {KEY: form.note()})

    # -- how pictures are cut -------------------------------------------------------------------------------------
    @property
    def aspect(self) -> str:
        """`resize`, `dynamic` or `dynamic_s2`."""
        value = self.root.get("image_aspect_ratio")
        return "resize" if value is None else value

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
        """The scale to whose grid the others are resized (-1: the finest). Default: the first, as officially."""
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
        return int(self.llm.get("model_max_length") or self.positions)

    @property
    def positions(self) -> int:
        """Tokens that the language model takes, prompt and answer together."""
        return int(self.llm.get("max_position_embeddings", 32768))

    @property
    def dtype(self) -> str:
        """The weights' dtype by llm/config.json; else `bfloat16`, that of the published checkpoints."""
        return self.llm.get("torch_dtype") or self.llm.get("dtype") or "bfloat16"

    def with_dtype(self, dtype: object) -> NVILAConfig:
        """The same, with `dtype` (a torch dtype) wherever the json files name the weights' dtype."""
        name = str(dtype).removeprefix("torch.")

        def with_name(values: dict[str, Any]) -> dict[str, Any]:
            renamed = {key: name for key in ("torch_dtype", "dtype") if isinstance(values.get(key), str)}
            if isinstance(values.get("model_dtype"), str):
                renamed["model_dtype"] = f"torch.{name}"
            nested = {
                key: with_name(value)
                for key, value in values.items()
                if key.endswith("_cfg") and isinstance(value, dict)
            }
            return values | nested | renamed

        parts = {part: with_name(getattr(self, part)) for part in PARTS}
        # VILA writes a part's path here while it trains; the published form is the part's own configuration.
        inlined_parts = {f"{part}_cfg": parts[part] for part in PARTS if isinstance(self.root.get(f"{part}_cfg"), str)}
        return replace(self, root=with_name(self.root) | inlined_parts, **parts)

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
