"""NVILA: SigLIP's features, projected, between the text tokens of a Qwen2.

One forward pass serves training and generation, padded, packed and prefix-sharing batches. Maths and sources:
NVlabs/VILA `llava/model/llava_arch.py`; docs/nvila.md lists the differences and how to switch each back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

from lumen_hpc.errors import UserError

from . import attention, last_layer, layers
from .attention import Plan
from .chat import Tokenizer
from .config import NVILAConfig
from .generate import Answer, generate
from .group import SingleProcess
from .inputs import Inputs, Preprocessor
from .packing import PICTURE, Batch
from .patch_embedding import embed_by_product
from .projector import Projector
from .tower_cache import TowerCache
from .vision import Pictures, encode_pictures


@dataclass
class Output:
    """Result of a forward pass. Rows and length are the batch's; V is the vocabulary."""

    loss: torch.Tensor
    """Sum of the supervised tokens' cross entropy over the denominator, float32."""
    supervised: int
    """Supervised tokens in this batch."""
    logits: torch.Tensor | None = None
    """[rows, length, V] with `logits="all"`."""
    # With `keep`:
    pixels: torch.Tensor | None = None
    """[N, 3, S, S]."""
    hidden_m2: torch.Tensor | None = None
    """[N, patches², C], the tower's selected hidden state."""
    proj_in: torch.Tensor | None = None
    """[M, patches², mm_hidden_size], after the scales are joined."""
    proj_out: torch.Tensor | None = None
    """[M, tokens, hidden_size]."""
    inputs_embeds: torch.Tensor | None = None
    """[rows, length, hidden_size]."""
    labels: torch.Tensor | None = None
    """[rows, length], -100 where nothing is learned."""
    attention_mask: torch.Tensor | None = None
    """bool [rows, length], False for padding."""


_OUTPUTS = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
"""What the parts return, whatever their config.json says: some were saved with these switched on."""


class NVILA(nn.Module):
    """The model with its tokenizer and preprocessing. `load` and `tiny` make one."""

    def __init__(self, config: NVILAConfig, tokenizer: Tokenizer | None = None, *, kernel: str = "auto") -> None:
        """Weights are random, or empty on the meta device; without `tokenizer`, only parameters can be counted."""
        super().__init__()
        self.config = config
        self._tokenizer = tokenizer
        self.kernel = attention.resolve_kernel(kernel)
        self.tiles_at_once = 64
        """Tiles that the vision tower sees in one call."""
        self.sync_tower_calls: Callable[[int], int] = _at_least_one_to_learn
        """Maps this process's number of tower calls to that of all. Under ZeRO-3 it is a maximum over processes."""
        self.tower_cache: TowerCache | None = None
        """Keeps a frozen tower's features; only on a CPU, since hashing tiles would synchronise with a GPU."""
        self.group = SingleProcess()
        """How processes divide a batch: `embed` divides tiles and joins their features, for all places on each process.
        The caller of `decode` divides the positions."""
        vision = SiglipVisionConfig(**config.vision_tower | _OUTPUTS | {"vision_use_head": False})
        vision._attn_implementation = "eager" if self.kernel == "eager" else "sdpa"
        llm = Qwen2Config(**config.llm | _OUTPUTS)
        llm._attn_implementation = attention.NAME
        self.vision_tower = SiglipVisionModel(vision)
        embed_by_product(self.vision_tower)
        self.mm_projector = Projector(config)
        self.llm = Qwen2ForCausalLM(llm)
        last_layer.set_last_layer(self.llm.model.layers[-1], compiled=False)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts that settings name: vision_tower, projector, llm."""
        return {"vision_tower": self.vision_tower, "projector": self.mm_projector, "llm": self.llm}

    @property
    def device(self) -> torch.device:
        return self.llm.lm_head.weight.device

    @property
    def tokenizer(self) -> Tokenizer:
        assert self._tokenizer is not None, "this model has no tokenizer"
        return self._tokenizer

    @property
    def preprocessor(self) -> Preprocessor:
        """Preprocessing without the weights, for data-loading processes."""
        return Preprocessor(self.config, self.tokenizer)

    def preprocess(self, records: Sequence[dict[str, Any]], **options: Any) -> Inputs:
        """Records (`{"images": […], "conversations": […]}`) to inputs; options as for `Preprocessor.__call__`."""
        return self.preprocessor(records, **options)

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute the activations of each transformer layer in the backward pass (in training mode)."""
        self.prepare_layers("full" if on else "none")

    def prepare_layers(self, checkpointing: str, **options: Any) -> None:
        """Choose recomputation and compilation of the transformer layers; options as for `layers.prepare`."""
        layers.prepare(self, checkpointing, **options)

    def attention_plan(self, batch: Batch) -> Plan:
        """The batch's attention, built once for all layers."""
        rows, length = batch.token_ids.shape
        return attention.plan(batch.spans, rows, length, self.kernel, batch.token_ids.device)

    def embed(self, batch: Batch) -> tuple[torch.Tensor, Pictures]:
        """Embeddings of text and pictures, [rows, length, hidden_size], and the pictures' tensors."""
        pictures = encode_pictures(
            self.vision_tower,
            self.mm_projector,
            batch.tiles,
            batch.blocks,
            self.config,
            self.tiles_at_once,
            self.sync_tower_calls,
            self.group,
            self.tower_cache,
        )
        embeds = self.llm.model.embed_tokens(batch.token_ids.clamp_min(0)) + pictures.zero
        if pictures.features:
            places = (batch.token_ids == PICTURE).unsqueeze(-1)
            embeds = embeds.masked_scatter(places, torch.cat(pictures.features).to(embeds.dtype))
        if len(embeds) > 1:  # a packed row has no padding
            embeds = embeds.masked_fill(~batch.attention_mask.unsqueeze(-1), 0)
        return embeds, pictures

    def decode(
        self, embeds: torch.Tensor, position_ids: torch.Tensor, plan: Plan, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The language model's last hidden state, [rows, length, hidden_size]; at `places`, [places, hidden_size].

        `places`, int64, index the flattened rows. The last layer's MLP runs only on them, unless it is compiled, which
        it would be for every number of places.
        """
        masks = {"full_attention": None, "sliding_attention": None}
        reads_places = places is not None and isinstance(self.llm.model.layers[-1], last_layer.LastLayer)
        options = {"places": places} if reads_places else {}
        hidden = self.llm.model(
            inputs_embeds=embeds, position_ids=position_ids, attention_mask=masks, use_cache=False, plan=plan, **options
        ).last_hidden_state
        if places is None:
            return hidden
        return hidden[0] if reads_places else hidden.flatten(0, 1)[places]

    def summed_loss(self, batch: Batch, logits: torch.Tensor) -> tuple[torch.Tensor, int]:
        """The summed cross entropy of the supervised tokens, float64, and their number; `logits`: of these tokens."""
        terms = F.cross_entropy(logits.float(), batch.labels.flatten()[batch.learned], reduction="none")
        # A float32 sum of ten terms rounds by 1e-6, differently for each order and each processor.
        return terms.sum(dtype=torch.float64), len(batch.learned)

    def forward(
        self,
        batch: Batch | Inputs,
        *,
        logits: Literal["supervised", "all"] = "supervised",
        loss_denominator: float | torch.Tensor | None = None,
        keep: bool = False,
    ) -> Output:
        """Loss of a batch.

        The loss is the sum of the supervised tokens' cross entropy over `loss_denominator`; without one, over their
        number (the official token mean). For a mean over processes and accumulated micro-batches give all of them the
        global number of supervised tokens (`Batch.supervised`, summed). The head runs on supervised places only,
        unless `logits="all"` requests all [rows, length, V]. `keep` returns the intermediate tensors.
        """
        if isinstance(batch, Inputs):
            batch = batch.batch()
        batch = batch.to(self.device)
        embeds, pictures = self.embed(batch)
        plan, all_logits = self.attention_plan(batch), None
        if logits == "all":
            all_logits = self.llm.lm_head(self.decode(embeds, batch.position_ids, plan))
            supervised_logits = all_logits.flatten(0, 1)[batch.predictors]
        else:
            supervised_logits = self.llm.lm_head(self.decode(embeds, batch.position_ids, plan, batch.predictors))
        summed, supervised = self.summed_loss(batch, supervised_logits)
        denominator = max(supervised, 1) if loss_denominator is None else loss_denominator
        output = Output(loss=(summed / denominator).float(), supervised=supervised, logits=all_logits)
        if keep:
            output.pixels, output.hidden_m2 = pictures.pixels, pictures.hidden
            output.proj_in, output.proj_out = pictures.proj_in, pictures.proj_out
            output.inputs_embeds, output.labels, output.attention_mask = embeds, batch.labels, batch.attention_mask
        return output

    def generate(self, records: Sequence[dict[str, Any]] | Inputs, **options: Any) -> list[Answer]:
        """Greedy answers to records or inputs; options as for `lumen_hpc.nvila.generate.generate`.

        Records are written as in the checkpoint's training (`config.prompt_form`); give the inputs of
        `preprocess(records, generation=True, …)` for another form. Raises UserError for inputs that contain answers.
        """
        inputs = records if isinstance(records, Inputs) else self.preprocess(records, generation=True)
        if not inputs.generation:
            raise UserError("these inputs contain answers: build prompts with preprocess(records, generation=True)")
        return generate(self, inputs.samples, **options)


def _at_least_one_to_learn(calls: int) -> int:
    """At least one call of the tower in training, so that its weights take part in batches of text, too."""
    return max(calls, 1) if torch.is_grad_enabled() else calls
