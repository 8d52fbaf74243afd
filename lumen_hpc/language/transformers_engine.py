"""transformers' generate: the plain engine, for models that vLLM does not know, and the peer in the benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lumen_hpc.torchvision_compat  # noqa: F401  before transformers or vLLM import torchvision
from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.language.in_process import InProcessEngine, Tokens
from lumen_hpc.language.protocol import Completion
from lumen_hpc.weights import require_self_contained

BATCH_TOKENS = 16384
"""Prompt and answer tokens in one batch, padding included."""


class TransformersEngine(InProcessEngine):
    """One model on one device, in batches of prompts of similar length."""

    def __init__(self, settings: schema.EngineSettings) -> None:
        super().__init__(settings)
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

        if not Path(settings.model).is_dir():  # huggingface_hub would ask the network about a name
            raise UserError(f"transformers cannot load engine.model={settings.model}: there is no such folder")
        require_self_contained(Path(settings.model))
        dtype = settings.dtype if settings.dtype == "auto" else getattr(torch, settings.dtype)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(  # Mistral's own format knows no chat template
                settings.model, trust_remote_code=False, local_files_only=True, mistral_format=False
            )
            self.model = AutoModelForCausalLM.from_pretrained(
                settings.model, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True
            ).eval()
        except (OSError, ValueError, SafetensorError) as error:
            raise UserError(f"transformers cannot load engine.model={settings.model}: {error}") from error
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        self.pad = self.tokenizer.pad_token_id
        if self.pad is None:
            self.pad = self.tokenizer.eos_token_id
        # Not the penalties that a model comes with (Qwen2.5's for repetition): vLLM has none, and greedy is greedy.
        self.model.generation_config = GenerationConfig(eos_token_id=self.model.generation_config.eos_token_id)

    def _generate(
        self, encoded: list[Tokens], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        completions: dict[int, Completion] = {}
        for batch in _batches(encoded, max_tokens):
            self.beat("computes answers")
            noise = [_Noise([seeds[i] for i in batch], temperature)] if temperature else []
            generated = self._batch([encoded[i] for i in batch], max_tokens, noise)
            for i, tokens in zip(batch, generated, strict=True):
                text = self.tokenizer.decode(tokens, skip_special_tokens=True)
                # A character cut off by max_tokens is left out, as vLLM does.
                completions[i] = Completion(text.rstrip("\N{REPLACEMENT CHARACTER}").strip())
        return [completions[i] for i in range(len(encoded))]

    def _batch(self, encoded: list[Tokens], max_tokens: int, processors: list) -> list[Tokens]:
        import torch
        from transformers import LogitsProcessorList

        ids, mask = self._padded(encoded)
        try:
            with torch.inference_mode():
                output = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    do_sample=False,
                    pad_token_id=self.pad,
                    logits_processor=LogitsProcessorList(processors),
                )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory with engine.model={self.settings.model}; use engine.kind=vllm over several GPUs, or a "
                "shorter engine.max_model_len"
            ) from error
        return [self._until_end(row) for row in output[:, ids.shape[1] :].tolist()]

    def _until_end(self, tokens: Tokens) -> Tokens:
        ends = self.model.generation_config.eos_token_id
        ends = {ends} if isinstance(ends, int) else set(ends or ())
        stop = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        return tokens[: stop + 1]

    def _next(self, encoded: list[Tokens], following: list[int]) -> list[list[float]]:
        import torch

        probabilities: list[list[float]] = [[] for _ in encoded]
        for batch in _batches(encoded, 1):
            self.beat("computes answers")
            ids, mask = self._padded([encoded[i] for i in batch])
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            with torch.inference_mode():
                logits = self.model(
                    input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1
                ).logits[:, -1, following]
            for i, row in zip(batch, logits.float().softmax(-1).tolist(), strict=True):
                probabilities[i] = row
        return probabilities

    def _padded(self, encoded: list[Tokens]) -> tuple[Any, Any]:
        """Token ids and mask [prompts, longest], int64, padded on the left."""
        import torch

        width = max(map(len, encoded))
        ids = torch.full((len(encoded), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(encoded):
            ids[row, width - len(tokens) :] = torch.tensor(tokens)
            mask[row, width - len(tokens) :] = 1
        return ids.to(self.model.device), mask.to(self.model.device)


class _Noise:
    """Sampling as the greedy choice of logits/temperature plus Gumbel noise, with one generator for each conversation.

    So a conversation's sample depends on its own seed, not on the other conversations in the batch.
    """

    def __init__(self, own_seeds: list[int], temperature: float) -> None:
        import torch

        self.temperature = temperature
        self.generators = [torch.Generator().manual_seed(seed) for seed in own_seeds]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        uniform = torch.stack([torch.rand(scores.shape[1], generator=g) for g in self.generators])
        gumbel = -(-uniform.clamp_min(1e-20).log()).log()
        return scores.float() / self.temperature + gumbel.to(scores.device)


def _batches(encoded: list[Tokens], max_tokens: int) -> Iterator[list[int]]:
    """Positions of prompts, longest first, in batches of at most BATCH_TOKENS."""
    batch: list[int] = []
    for i in sorted(range(len(encoded)), key=lambda i: (-len(encoded[i]), i)):
        if batch and (len(batch) + 1) * (len(encoded[batch[0]]) + max_tokens) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
