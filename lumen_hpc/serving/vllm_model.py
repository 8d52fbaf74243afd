"""NVILA inside vLLM: this package's preprocessing, tower and projector around vLLM's own Qwen2.

The tower and the projector are whole on every GPU (0.5 B of 8 B parameters); tensor parallelism splits the language
model. `plugin.register` makes vLLM know this module.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import BatchFeature, SiglipVisionConfig, SiglipVisionModel
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from lumen_hpc.nvila.chat import IMAGE
from lumen_hpc.nvila.checkpoint import read_weights
from lumen_hpc.nvila.config import Block, NVILAConfig
from lumen_hpc.nvila.inputs import Preprocessor
from lumen_hpc.nvila.preprocess import join_tiles, placeholders, preprocess_images
from lumen_hpc.nvila.projector import Projector
from lumen_hpc.nvila.vision import encode_pictures

from .narrow_heads import pad_narrow_heads

TILES_AT_ONCE = 64
_NO_ADAPTER = "vLLM_adapts_the_language_model_alone_so_serve_the_merged_weights"


class ProcessingInfo(BaseProcessingInfo):
    """What vLLM asks about a checkpoint's pictures."""

    @property
    def nvila(self) -> NVILAConfig:
        return open_preprocessor(self.get_hf_config().folder).config

    def get_hf_processor(self, **options: Any) -> PictureProcessor:
        return PictureProcessor(self.nvila, **self.ctx.get_merged_mm_kwargs(options))

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def largest_picture(self) -> tuple[int, int]:
        """(width, height) [px] of a picture that makes the most tokens."""
        config = self.nvila
        size, (_, most) = config.image_size, config.tiles
        shapes = [(size * columns, size * rows) for columns in range(1, most + 1) for rows in range(1, most + 1)]
        return max(shapes, key=lambda shape: picture_tokens(config, *shape))


def picture_tokens(config: NVILAConfig, width: int, height: int) -> int:
    """Language-model tokens of a picture of this size [px], those between its tiles included."""
    blocks = placeholders((width, height), config)
    return sum(map(config.image_tokens, blocks)) + len(blocks) - 1


@lru_cache(maxsize=4)
def open_preprocessor(folder: str) -> Preprocessor:
    """A folder's configuration and tokenizer, read once a process: vLLM asks with every request."""
    return Preprocessor.open(folder)


class PictureProcessor:
    """Replaces a Hugging Face processor in vLLM: pictures to uint8 tiles; vLLM handles the text.

    exact: PIL's pixels (the default), or faster ones within 2 grey levels of them.
    """

    def __init__(self, config: NVILAConfig, exact: bool = True) -> None:
        self.config, self.exact = config, exact

    def __call__(self, images: Any = (), **_: Any) -> BatchFeature:
        """`tiles`, a uint8 tensor [n, 1 or 3, S, S] a picture; `block`, int64 [pictures, 2], (-1, -1) for one tile."""
        pictures = [preprocess_images([_as_grey(image)], self.config, exact=self.exact) for image in images]
        blocks = [(-1, -1) if picture.blocks[0] is None else picture.blocks[0] for picture in pictures]
        return BatchFeature(
            {"tiles": [picture.tiles for picture in pictures], "block": torch.tensor(blocks).view(-1, 2)}
        )


def _as_grey(image: Any) -> Any:
    """One channel for a picture whose three are equal, as every radiograph's are after vLLM decoded it to RGB."""
    if getattr(image, "mode", "") != "RGB":
        return image
    red, green, blue = image.split()
    return red if red.tobytes() == green.tobytes() == blue.tobytes() else image


class DummyInputs(BaseDummyInputsBuilder[ProcessingInfo]):
    """The largest request, from which vLLM measures its memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return IMAGE * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], *_: Any, **__: Any) -> dict[str, Any]:
        width, height = self.info.largest_picture()
        return {"image": self._get_dummy_images(width=width, height=height, num_images=mm_counts.get("image", 0))}


class PictureMultiModalProcessor(BaseMultiModalProcessor[ProcessingInfo]):
    """Replaces each `<image>` of a prompt with its picture's places."""

    def apply(self, inputs: Any, *context: Any, **more: Any) -> Any:
        """As vLLM's, but only pixels identify a picture.

        A request may name its pictures (`uuid`), and vLLM answers about the first picture that had the name, whatever
        the request shows. ValueErrors become its answers 400.
        """
        pictures = list(inputs.mm_data_items.get("image", ()))
        if any(picture is None for picture in pictures):
            raise ValueError("an image is given by its uuid alone: send the image itself")
        mark = (
            IMAGE
            if isinstance(inputs.prompt, str)
            else open_preprocessor(self.info.get_hf_config().folder).tokenizer.image
        )
        if inputs.prompt.count(mark) < len(pictures):
            raise ValueError("the prompt was cut before an image: leave truncate_prompt_tokens out")
        return super().apply(replace(inputs, mm_uuid_items=None), *context, **more)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Mapping[str, MultiModalFieldConfig]:
        return {"tiles": MultiModalFieldConfig.batched("image"), "block": MultiModalFieldConfig.batched("image")}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        """`<image>` → its features and their newline; with `dynamic`, for each tile, and a newline of text between."""
        config, tokenizer = self.info.nvila, open_preprocessor(self.info.get_hf_config().folder).tokenizer

        def replacement(place: int) -> PromptUpdateDetails:
            item = out_mm_kwargs["image"][place]
            count, (rows, columns) = len(item["tiles"].data), item["block"].data.tolist()
            tile = [tokenizer.image] * (config.image_tokens((rows, columns) if rows > 0 else None) - 1)
            tokens = [*tile, tokenizer.newline]
            if config.aspect == "dynamic":
                tokens = [*tokens, tokenizer.newline] * (count - 1) + tokens
            return PromptUpdateDetails.select_token_id(tokens, tokenizer.image)

        return [PromptReplacement(modality="image", target=[tokenizer.image], replacement=replacement)]


@MULTIMODAL_REGISTRY.register_processor(PictureMultiModalProcessor, info=ProcessingInfo, dummy_inputs=DummyInputs)
class NVILAForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsLoRA):
    """Interface of vLLM's models; the weights are read from the folder by `nvila.checkpoint`."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    hf_to_vllm_mapper = WeightsMapper(
        # vLLM tells an adapter's layers by the last part of their names, and would leave the tower's q_proj out in
        # silence: the name that they get here is none of its layers', so that it refuses them, and says why.
        orig_to_new_regex={re.compile(r"^(vision_tower|mm_projector)\.(.+)(?=\.lora_[AB]\.)"): rf"\1.\2.{_NO_ADAPTER}"},
        orig_to_new_prefix={"llm.": "language_model."},
    )

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        return IMAGE if modality.startswith("image") else None

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        hf = vllm_config.model_config.hf_config
        self.config = hf
        self.nvila = open_preprocessor(hf.folder).config
        tower = SiglipVisionConfig(**self.nvila.vision_tower | {"vision_use_head": False})
        tower._attn_implementation = "sdpa"
        self.vision_tower = SiglipVisionModel(tower)
        self.mm_projector = Projector(self.nvila)
        self.language_model = init_vllm_registered_model(
            vllm_config=vllm_config,
            hf_config=hf.text_config,
            prefix=maybe_prefix(prefix, "language_model"),
            architectures=["Qwen2ForCausalLM"],
        )
        pad_narrow_heads(self.language_model.model.layers, vllm_config)
        image = open_preprocessor(hf.folder).tokenizer.image
        self.configure_mm_token_handling(vocab_size=hf.text_config.vocab_size, mm_token_ids=[image])
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def get_language_model(self) -> nn.Module:
        return self.language_model

    def embed_multimodal(self, **inputs: Any) -> list[torch.Tensor]:
        """Features of the pictures in a batch, one [places, hidden_size] each."""
        if inputs.get("tiles") is None:
            return []
        tiles = list(inputs["tiles"])  # a tensor if all pictures have as many
        counts = [len(part) for part in tiles]
        blocks: list[Block] = [tuple(block) if block[0] > 0 else None for block in inputs["block"].tolist()]
        if self.nvila.aspect == "dynamic":  # a picture's tiles are placeholders of their own
            blocks = [None] * sum(counts)
        pictures = encode_pictures(
            self.vision_tower,
            self.mm_projector,
            join_tiles(tiles),
            blocks,
            self.nvila,
            TILES_AT_ONCE,
            lambda calls: calls,
        ).features
        if self.nvila.aspect != "dynamic":
            return pictures
        tile_features = iter(pictures)
        return [torch.cat([next(tile_features) for _ in range(count)]) for count in counts]

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: Any,
    ) -> Any:
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Read the folder in either layout; vLLM's own reader, which knows only flat folders, is not used."""
        return AutoWeightsLoader(self).load_weights(self._stored_weights(), mapper=self.hf_to_vllm_mapper)

    def _stored_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor, _ in read_weights(self.config.folder):
            if name != "llm.lm_head.weight" or not self.config.text_config.tie_word_embeddings:
                yield name, tensor
