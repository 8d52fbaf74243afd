"""The sizes of an NVILA that determine the cost of its training, and its numbers of parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lumen_hpc.errors import UserError


@dataclass(frozen=True)
class Sizes:
    """The model's sizes that determine cost; the defaults are NVILA-8B's."""

    vision_width: int = 1152
    vision_layers: int = 27
    vision_mlp: int = 4304
    image_size: int = 448
    patch_size: int = 14
    width: int = 3584
    layers: int = 28
    mlp: int = 18944
    heads: int = 28
    kv_heads: int = 4
    vocabulary: int = 151648
    tied: bool = False
    projector: str = "mlp_downsample"
    scales: int = 3
    """Number of joined scales; 1 without S2."""

    @classmethod
    def read(cls, folder: Path) -> Sizes:
        """From a checkpoint's config files. Raises UserError naming a file or key that is missing."""
        try:
            root, llm, tower, projector = (
                json.loads((folder / part / "config.json").read_text())
                for part in ("", "llm", "vision_tower", "mm_projector")
            )
            return cls(
                vision_width=tower["hidden_size"],
                vision_layers=tower["num_hidden_layers"],
                vision_mlp=tower["intermediate_size"],
                image_size=tower["image_size"],
                patch_size=tower["patch_size"],
                width=llm["hidden_size"],
                layers=llm["num_hidden_layers"],
                mlp=llm["intermediate_size"],
                heads=llm["num_attention_heads"],
                kv_heads=llm["num_key_value_heads"],
                vocabulary=llm["vocab_size"],
                tied=llm.get("tie_word_embeddings", False),
                projector=projector["mm_projector_type"],
                scales=len(root["s2_scales"].split(",")) if root.get("dynamic_s2") else 1,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{folder} is not an NVILA checkpoint in the official layout: {error!r}") from None

    @property
    def patches(self) -> int:
        """Patches per tile."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def vision_tower(self) -> int:
        """Parameters of SigLIP without its head."""
        c, m = self.vision_width, self.vision_mlp
        layer = 4 * (c * c + c) + 2 * c * m + m + c + 4 * c
        return 3 * self.patch_size**2 * c + c + self.patches * c + self.vision_layers * layer + 2 * c

    @property
    def mm_projector(self) -> int:
        """Parameters of the projector."""
        r = 3 if self.projector.endswith("3x3_fix") else 2
        c, h = self.vision_width * self.scales, self.width
        joined = r * r * c
        if r == 2:
            return 2 * joined + joined * h + h + h * h + h
        return 2 * joined + joined * 3 * c + 3 * c + 6 * c + 3 * c * h + h + h * h + h

    @property
    def layer(self) -> int:
        """Parameters of one layer of the language model."""
        h, kv = self.width, self.width // self.heads * self.kv_heads
        return 2 * h * h + h + 2 * (h * kv + kv) + 3 * h * self.mlp + 2 * h

    @property
    def llm(self) -> int:
        """Parameters of the language model."""
        return (1 if self.tied else 2) * self.vocabulary * self.width + self.layers * self.layer + self.width

    @property
    def parts(self) -> dict[str, int]:
        return {"vision_tower": self.vision_tower, "projector": self.mm_projector, "llm": self.llm}

    @property
    def total(self) -> int:
        return sum(self.parts.values())
