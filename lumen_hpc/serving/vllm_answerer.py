"""Answers through vLLM in this process: the same prompts and, in float32, the same tokens as `NVILA.generate`."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lumen_hpc.errors import UserError
from lumen_hpc.language.vllm_engine import hide_llvmlite, prepare_process
from lumen_hpc.nvila import chat
from lumen_hpc.nvila.generate import Answer, first_tokens, line_ends
from lumen_hpc.nvila.inputs import Preprocessor, record_messages, record_pictures
from lumen_hpc.nvila.preprocess import open_picture, picture_key

Record = dict[str, Any]


class VLLMModel:
    """An NVILA checkpoint in vLLM; it replaces `nvila.NVILA` where questions are answered.

    Every call of `generate` starts with an empty prefix cache, so that its answers depend on its records alone. Within
    a call, questions about the same images follow one another and share their tokens.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        dtype: str = "",
        max_model_len: int | None = None,
        answer_tokens: int = 256,
        tensor_parallel: int = 1,
        gpu_memory: float = 0.9,
        **options: Any,
    ) -> None:
        """Load a folder in either layout.

        dtype: the weights' format, as stored if empty. max_model_len: longest prompt and answer [tokens]; None: the
        prompt that the checkpoint was made for, and `answer_tokens`. `options` go to `vllm.LLM`. Raises UserError if
        vLLM cannot load it, with the settings that help.
        """
        self.preprocessor = Preprocessor.open(folder)
        prepare_process()
        from vllm import LLM

        from .hf_checkpoint import stop_ids
        from .plugin import register

        register()
        config = self.preprocessor.config
        self._stops = stop_ids(config)
        longest = config.positions
        length = max_model_len or config.max_length + answer_tokens
        try:
            with hide_llvmlite():
                self.llm = LLM(
                    model=str(folder),
                    dtype=dtype or config.dtype,
                    max_model_len=min(length, longest),
                    tensor_parallel_size=tensor_parallel,
                    gpu_memory_utilization=gpu_memory,
                    enforce_eager=importlib.util.find_spec("triton") is None,
                    disable_log_stats=True,
                    **options,
                )
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(
                f"vLLM cannot load {folder}: {error}; hint: if memory is short, another share of it (gpu_memory), more "
                "GPUs (tensor_parallel) or a shorter max_model_len"
            ) from error

    def generate(self, records: Sequence[Record], *, max_new_tokens: int = 256) -> list[Answer]:
        """Greedy answers in the order of the records, whose images stand where their text has `<image>`.

        `Answer.yes` is there where one of the records is an outcome question.
        """
        has_outcomes = any(record.get("meta", {}).get("type") == "outcome" for record in records)
        tokenizer = self.preprocessor.tokenizer
        yes, no = first_tokens(tokenizer)
        end_ids = line_ends(tokenizer)
        outputs = self.ask(records, max_new_tokens, **({"logprob_token_ids": [*yes, *no]} if has_outcomes else {}))
        return [
            Answer(tokenizer.decode(ids), ids, _yes_probability(output, yes, no, end_ids) if has_outcomes else None)
            for ids, output in outputs
        ]

    def ask(
        self, records: Sequence[Record], max_new_tokens: int, *, adapter: Any = None, **options: Any
    ) -> list[tuple[list[int], Any]]:
        """For each record the answer's token ids, with the stop token if reached, and vLLM's whole output.

        adapter: a LoRARequest, where the model was opened with `enable_lora`. `options` go to SamplingParams. Raises
        UserError for `max_new_tokens` below 1.
        """
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens={max_new_tokens}: ask for at least one")
        from vllm import SamplingParams

        self.llm.reset_prefix_cache()
        sampling = SamplingParams(
            temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=self._stops, detokenize=False, **options
        )
        order = _by_images(records)
        opened: dict[object, Image.Image] = {}
        requests = [request(records[place], self.preprocessor, opened) for place in order]
        outputs = dict(zip(order, self.llm.generate(requests, sampling, use_tqdm=False, lora_request=adapter)))
        return [(list(outputs[place].outputs[0].token_ids), outputs[place]) for place in range(len(records))]


def _yes_probability(output: Any, yes: Sequence[int], no: Sequence[int], end_ids: Sequence[int]) -> float:
    """Probability of the tokens `yes` against the tokens `no` at an answer's first place, as `Answer.yes` has it."""
    ids = output.outputs[0].token_ids
    place = max((place for place, token in enumerate(ids[:-1], 1) if token in end_ids), default=0)
    first = output.outputs[0].logprobs[place]
    likelier, other = (torch.tensor([first[token].logprob for token in side]).logsumexp(0) for side in (yes, no))
    return torch.sigmoid(likelier - other).item()


def request(record: Record, preprocessor: Preprocessor, opened: dict[object, Image.Image]) -> dict[str, Any]:
    """A record as vLLM takes it: the prompt's tokens with one `<image>` a picture, and the pictures.

    `opened` keeps the pictures that were read before, by path or identity.
    """
    pictures = []
    for place, picture in enumerate(record_pictures(record)):
        key = picture_key(picture)
        if key not in opened:
            opened[key] = open_picture(picture, place)
        pictures.append(opened[key])
    prompt: dict[str, Any] = {"prompt_token_ids": prompt_ids(record, preprocessor)}
    return {**prompt, "multi_modal_data": {"image": pictures}} if pictures else prompt


def prompt_ids(record: Record, preprocessor: Preprocessor) -> list[int]:
    """Token ids of a record's prompt with one `<image>` a picture, whatever the number of its tiles."""
    one_each = [1] * len(record_pictures(record))
    turns = record_messages(record, generation=True)
    messages = chat.place_images(turns, one_each, preprocessor.config.aspect, inline=True)
    ids, _ = chat.encode(messages, preprocessor.tokenizer, generation=True)
    return ids.tolist()


def _by_images(records: Sequence[Record]) -> list[int]:
    """Places of the records, those with the same images together, in the order of their first."""
    groups: dict[tuple, list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault(tuple(map(picture_key, record_pictures(record))), []).append(place)
    return [place for group in groups.values() for place in group]
