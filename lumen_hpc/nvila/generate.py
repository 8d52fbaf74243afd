"""Generates greedy answers: packed prompts that share their pictures, then one token per step for all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import Qwen2ForCausalLM

from lumen_hpc.errors import UserError

from . import attention
from .attention import CachePlan, Plan, SpanPlan
from .block_mask import BlockMaskPlan
from .chat import Tokenizer
from .config import NVILAConfig
from .packing import PICTURE, Batch, Sample, pack, packed_length, shared_length
from .vision import Pictures

MAX_LIVE_SHARE = 0.7
"""Finished answers are dropped from the batch once at most this share of it is unfinished."""


class Model(Protocol):
    """The model behind `generate`: an `NVILA`, or what replaces one."""

    config: NVILAConfig
    kernel: str
    llm: Qwen2ForCausalLM

    @property
    def device(self) -> torch.device: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def embed(self, batch: Batch) -> tuple[torch.Tensor, Pictures]: ...
    def decode(self, embeds: torch.Tensor, position_ids: torch.Tensor, plan: Plan) -> torch.Tensor: ...


@dataclass
class Answer:
    text: str
    """The answer without special tokens and outer spaces."""
    ids: list[int]
    """The answer's token ids, with the stop token if it was reached."""
    yes: float | None = None
    """Probability of yes against no at the answer's first token, or at that after a `;` (the end of a findings line);
    None if it was not computed."""


@torch.inference_mode()
def generate(
    model: Model, samples: Sequence[Sample], *, max_new_tokens: int = 256, batch_tokens: int = 32768
) -> list[Answer]:
    """Answers to samples that were encoded with `generation=True`, in their order.

    Samples with the same pictures share them: the common beginning of their prompts is computed, stored and read once.
    A batch has prompts of at most `batch_tokens` tokens in all, but at least one group. An answer
    stops after `<|im_end|>` (or another eos token of llm/generation_config.json), or at `max_new_tokens`. Raises
    UserError for a prompt that leaves an answer no room in the model's positions.
    """
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens={max_new_tokens}: use at least 1")
    max_positions = model.config.positions
    for place, sample in enumerate(samples):
        if len(sample) + max_new_tokens > max_positions:
            raise UserError(
                f"prompt {place} has {len(sample)} tokens; with an answer of max_new_tokens={max_new_tokens} that is "
                f"more than the {max_positions} that this model takes"
            )
    answers: dict[int, Answer] = {}
    for chunk in _chunks(_groups(samples), samples, batch_tokens):
        results = _answer_groups(model, [[samples[i] for i in group] for group in chunk], max_new_tokens)
        for place, (tokens, yes) in zip([i for group in chunk for i in group], results):
            answers[place] = Answer(model.tokenizer.decode(tokens), tokens, yes)
    return [answers[place] for place in range(len(samples))]


def _groups(samples: Sequence[Sample]) -> list[list[int]]:
    """Indices of samples that begin with the same pictures."""
    groups: dict[object, list[int]] = {}
    for place, sample in enumerate(samples):
        opening = sample.token_ids[: _pictures_end(sample)].tobytes()
        groups.setdefault((id(sample.tiles), opening) if sample.blocks else place, []).append(place)
    return list(groups.values())


def _chunks(groups: list[list[int]], samples: Sequence[Sample], batch_tokens: int) -> list[list[list[int]]]:
    """Batches of groups with similar lengths, so that little of the cache is padding."""
    chunks: list[list[list[int]]] = []
    filled = 0
    for group in sorted(groups, key=lambda group: -len(samples[group[0]])):
        length = packed_length([samples[i] for i in group])
        if not chunks or filled + length > batch_tokens:
            chunks.append([])
            filled = 0
        chunks[-1].append(group)
        filled += length
    return chunks


def stop_ids(model: Model) -> set[int]:
    """`<|im_end|>` and the eos tokens of llm/generation_config.json."""
    return {model.tokenizer.end, *model.config.eos_ids}


def first_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Ids of the tokens that may begin an answer yes, and of those that may begin an answer no.

    A token that is only the space before the word, as after a findings line, does not count: it may begin anything.
    """
    yes, no = (
        {
            ids[0]
            for form in (word, word.capitalize(), word.upper())
            for ids in (tokenizer.encode(form), tokenizer.encode(f" {form}"))
            if form[0] in tokenizer.decode(ids[:1])
        }
        for word in ("yes", "no")
    )
    return sorted(yes - no), sorted(no - yes)


def line_ends(tokenizer: Tokenizer) -> list[int]:
    """Ids of the tokens that may end a findings line."""
    return sorted({tokenizer.encode(text)[-1] for text in (";", " ;")})


def _answer_groups(model: Model, groups: list[list[Sample]], max_new_tokens: int) -> list[tuple[list[int], float]]:
    batch = pack(groups).to(model.device)
    embeds, _ = model.embed(batch)
    rows, length = batch.token_ids.shape
    plan = attention.plan(batch.spans, rows, length, model.kernel, model.device, keep=True)
    hidden = model.decode(embeds, batch.position_ids, plan)
    cache, last = _cache(plan, groups, max_new_tokens)
    stops = torch.tensor(sorted(stop_ids(model)), device=model.device)
    positions = torch.tensor(batch.lengths, device=model.device)
    state = hidden[0, last]
    branches = torch.arange(len(last), device=model.device)  # that are still computed
    tokens = stops[0].repeat(len(last), max_new_tokens)
    done = torch.zeros(len(last), dtype=torch.bool, device=model.device)
    yes, no = first_tokens(model.tokenizer)
    separators = torch.tensor(line_ends(model.tokenizer), device=model.device)
    yes_probabilities = torch.full((len(last),), math.nan, dtype=torch.float32, device=model.device)
    is_weighed = torch.ones(len(last), dtype=torch.bool, device=model.device)
    for step in range(max_new_tokens):
        logits = model.llm.lm_head(state).float()
        yes_now = torch.sigmoid(logits[:, yes].logsumexp(1) - logits[:, no].logsumexp(1))
        yes_probabilities[branches] = torch.where(is_weighed, yes_now, yes_probabilities[branches])
        token = logits.argmax(-1)
        is_weighed = torch.isin(token, separators) & ~done
        tokens[branches, step] = token
        done |= torch.isin(token, stops)
        remaining = len(done) - int(done.sum())
        if not remaining or step == max_new_tokens - 1:
            break
        if remaining <= MAX_LIVE_SHARE * len(done):
            live = (~done).nonzero()[:, 0]
            cache.select(live)
            branches, positions = branches[live], positions[live]
            token, done, is_weighed = token[live], done[live], is_weighed[live]
        embeds = model.llm.model.embed_tokens(token)[:, None]
        state = model.decode(embeds, (positions + step)[:, None], cache)[:, 0]
        cache.advance()
    ids = [_until_stop(row, stops.tolist()) for row in tokens.tolist()]
    return list(zip(ids, yes_probabilities.tolist()))


def _until_stop(ids: list[int], stops: list[int]) -> list[int]:
    for place, token in enumerate(ids):
        if token in stops:
            return ids[: place + 1]
    return ids


def _cache(plan: SpanPlan | BlockMaskPlan, groups: list[list[Sample]], room: int) -> tuple[CachePlan, list[int]]:
    """The prompts' keys and values by group and branch, and each prompt's last place in the packed row.

    A single sample is split after its last picture, so that its long part is stored as a prefix too.
    """
    prefixes, branches, group_of, slot_of = [], [], [], []
    start = 0
    for number, group in enumerate(groups):
        shared = shared_length(group)
        prefix_length = shared or _pictures_end(group[0])
        prefixes.append((start, start + prefix_length))
        start += shared
        for slot, sample in enumerate(group):
            branches.append((start if shared else start + prefix_length, start + len(sample) - shared))
            start = branches[-1][1]
            group_of.append(number)
            slot_of.append(slot)
        assert shared or len(group) == 1, "samples of one group share at least their pictures"
    device = plan.keys_values[0][0].device
    own, prefix = [], []
    for layer in sorted(plan.keys_values):
        keys, values = plan.keys_values.pop(layer)
        prefix.append((_gather(keys, prefixes, 0), _gather(values, prefixes, 0)))
        own.append((_gather(keys, branches, room), _gather(values, branches, room)))

    def tensor(numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=device)

    cache = CachePlan(
        prefix=prefix,
        own=own,
        prefix_lengths=tensor([stop - begin for begin, stop in prefixes]),
        own_lengths=tensor([stop - begin for begin, stop in branches]),
        group=tensor(group_of),
        slot=tensor(slot_of),
    )
    return cache, [stop - 1 for _, stop in branches]


def _gather(x: torch.Tensor, spans: list[tuple[int, int]], room: int) -> torch.Tensor:
    """[1, kv heads, T, d] -> [spans, kv heads, longest span + room, d], zeros after each span."""
    longest = max(stop - begin for begin, stop in spans)
    out = x.new_zeros(len(spans), x.shape[1], longest + room, x.shape[3])
    for row, (begin, stop) in enumerate(spans):
        out[row, :, : stop - begin] = x[0, :, begin:stop]
    return out


def _pictures_end(sample: Sample) -> int:
    """Number of places up to the last picture's last feature; 0 without pictures."""
    at = (sample.token_ids == PICTURE).nonzero()[0]
    return int(at[-1]) + 1 if len(at) else 0
