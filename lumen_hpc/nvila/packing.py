"""Joins encoded samples to batches: padded rows, packed rows, and rows whose samples share their images.

In each of them a token has the position that it has in its sample alone, and attends only tokens of its sample; so loss
and gradients do not depend on the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from lumen_hpc.errors import UserError

from .chat import IGNORE
from .config import Block
from .preprocess import join_tiles
from .spans import Span


@dataclass
class Sample:
    """One conversation with its pictures.

    `input_ids` and `labels`, int64 [tokens], have one `<image>` per placeholder; `token_ids`, `token_labels`,
    int64 [length], have one place per language-model token: PICTURE for a picture's features, then its newline.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    token_ids: np.ndarray
    token_labels: np.ndarray
    tiles: torch.Tensor
    """uint8 [N, 1 or 3, S, S]; samples about the same pictures hold the same tensor."""
    blocks: list[Block]

    def __len__(self) -> int:
        """Length [language-model tokens]."""
        return len(self.token_ids)

    @cached_property
    def supervised(self) -> int:
        """Tokens that the loss counts."""
        return int((self.token_labels[1:] != IGNORE).sum())


PICTURE, PADDING = -1, -2
"""Token ids of a place for a picture's feature, and of a place without a sample."""


def expand(
    ids: np.ndarray, labels: np.ndarray, image: int, newline: int, counts: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Give every `<image>` (id `image`) its places: counts[i] - 1 features and a newline, none of them supervised.

    Raises UserError for another number of `<image>` than of `counts`.
    """
    image_places = np.flatnonzero(ids == image)
    if len(image_places) != len(counts):
        raise UserError(f"the text has {len(image_places)} <image> tokens but the images make {len(counts)}")
    repeats: np.ndarray = np.ones(len(ids), dtype=np.int64)
    repeats[image_places] = counts
    tokens: np.ndarray = np.repeat(np.where(ids == image, PICTURE, ids), repeats)
    token_labels: np.ndarray = np.repeat(labels, repeats)
    tokens[np.cumsum(repeats)[image_places] - 1] = newline
    token_labels[np.repeat(ids == image, repeats)] = IGNORE
    return tokens, token_labels


@dataclass
class Batch:
    """The model's input: int64 tensors [rows, length]; pictures in the order of their places."""

    token_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor
    previous: torch.Tensor
    """Place, in the flattened rows, of the token that predicts this one; -1 for first tokens and padding."""
    tiles: torch.Tensor
    blocks: list[Block]
    spans: list[Span]
    lengths: list[int]
    """Length of each sample, in the order given, as if it stood alone [tokens]."""
    learned: torch.Tensor
    """int64 [supervised tokens], their places in the flattened rows; known here, to save waiting for a GPU."""

    @property
    def supervised(self) -> int:
        """Number of tokens that the loss counts; its sum over processes and micro-batches divides the global mean."""
        return len(self.learned)

    @property
    def predictors(self) -> torch.Tensor:
        """int64 [supervised tokens], the places that predict them."""
        return self.previous.flatten()[self.learned]

    @property
    def tokens(self) -> int:
        """Tokens of the samples, with a shared beginning once, without padding."""
        return sum(span.stop - span.start for span in self.spans)

    @property
    def attention_mask(self) -> torch.Tensor:
        """bool [rows, length], False for padding."""
        return self.token_ids != PADDING

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return replace(self, **{n: getattr(self, n).to(device, non_blocking=non_blocking) for n in _TENSORS})

    def pin_memory(self) -> Batch:
        """The same in page-locked memory, from which copies to a GPU are asynchronous."""
        return replace(self, **{n: getattr(self, n).pin_memory() for n in _TENSORS})


_TENSORS = ("token_ids", "labels", "position_ids", "previous", "tiles", "learned")


class _Row:
    """A row under construction."""

    def __init__(self, row: int) -> None:
        self.row, self.length = row, 0
        self.ids: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.previous: list[np.ndarray] = []
        self.spans: list[Span] = []

    def add(self, sample: Sample, start: int, stop: int, prefix: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """Append tokens start..stop of a sample, whose earlier tokens are the row's `prefix`; returns their place."""
        begin, end = self.length, self.length + stop - start
        predictors = np.arange(begin - 1, end - 1)
        predictors[0] = prefix[1] - 1 if start else -1
        self.ids.append(sample.token_ids[start:stop])
        self.labels.append(sample.token_labels[start:stop])
        self.positions.append(np.arange(start, stop))
        self.previous.append(predictors)
        self.spans.append(Span(self.row, begin, end, prefix))
        self.length = end
        return begin, end


def pad(samples: Sequence[Sample]) -> Batch:
    """One sample per row, padded at the right to the longest."""
    rows = []
    for place, sample in enumerate(samples):
        rows.append(_Row(place))
        rows[-1].add(sample, 0, len(sample))
    return _batch(rows, [[sample] for sample in samples])


def pack(groups: Sequence[Sequence[Sample]], *, multiple: int = 1) -> Batch:
    """All samples in one row, padded only to a multiple of `multiple`; the samples of a group share their pictures.

    A group of several is stored as their longest common beginning, once, and what follows it for each. Raises
    UserError if a group's samples do not have the same pictures.
    """
    row = _Row(0)
    for group in groups:
        shared = shared_length(group)
        if not shared:
            for sample in group:
                row.add(sample, 0, len(sample))
            continue
        prefix = row.add(group[0], 0, shared)
        for sample in group:
            row.add(sample, shared, len(sample), prefix)
    return _batch([row], groups, multiple)


def packed_length(group: Sequence[Sample]) -> int:
    """Tokens that `pack` needs for a group."""
    shared = shared_length(group)
    return shared + sum(len(sample) - shared for sample in group)


def shared_length(group: Sequence[Sample]) -> int:
    """Length of the beginning that all samples of a group share [tokens]; 0 for a single sample.

    It holds all their pictures and no supervised token, and leaves every sample at least one token of its own. Raises
    UserError for samples with other pictures, or with one behind the place where their texts part.
    """
    if len(group) < 2:
        return 0
    first = group[0]
    shared = min(len(sample) for sample in group) - 1
    for sample in group:
        has_same_tiles = sample.tiles is first.tiles or torch.equal(sample.tiles, first.tiles)
        if not has_same_tiles or sample.blocks != first.blocks:
            raise UserError("the samples of a group must have the same images: group questions by their images")
        differs = sample.token_ids[:shared] != first.token_ids[:shared]
        differs |= sample.token_labels[:shared] != IGNORE
        if differs.any():
            shared = int(differs.argmax())
    for sample in group:
        if (sample.token_ids[shared:] == PICTURE).any():
            raise UserError(
                "the samples of a group must have the same beginning up to their last image: put the images first"
            )
    return shared


def require_default_device() -> None:
    """Raises UserError if torch would create tensors elsewhere than in main memory, where files and batches are."""
    if torch.get_default_device().type != "cpu":
        raise UserError(
            f"torch's default device is {torch.get_default_device()}, on which no file is read and no batch built: "
            "unset it (torch.set_default_device(None)), and give the model's device to load"
        )


def _batch(rows: Sequence[_Row], groups: Sequence[Sequence[Sample]], multiple: int = 1) -> Batch:
    require_default_device()
    if not any(row.length for row in rows):
        raise UserError("a batch needs at least one sample")
    longest = max(row.length for row in rows)
    longest += -longest % multiple

    def stack(parts: Sequence[Sequence[np.ndarray]], fill: int) -> torch.Tensor:
        array: np.ndarray = np.full((len(rows), longest), fill, dtype=np.int64)
        for place, pieces in enumerate(parts):
            tokens = np.concatenate(pieces)
            array[place, : len(tokens)] = tokens
        return torch.from_numpy(array)

    # A group whose samples share a beginning has its pictures once, else every sample has its own.
    picture_samples = [s for group in groups for s in (group[:1] if shared_length(group) else group) if len(s.blocks)]
    previous = stack([row.previous for row in rows], -1)
    labels = stack([row.labels for row in rows], IGNORE)
    offsets = torch.arange(len(rows))[:, None] * longest
    return Batch(
        token_ids=stack([row.ids for row in rows], PADDING),
        labels=labels,
        learned=((labels != IGNORE) & (previous >= 0)).flatten().nonzero().squeeze(1),
        position_ids=stack([row.positions for row in rows], 0),
        previous=torch.where(previous >= 0, previous + offsets, -1),
        tiles=join_tiles([s.tiles for s in picture_samples])
        if picture_samples
        else torch.zeros(0, 1, 1, 1, dtype=torch.uint8),
        blocks=[block for s in picture_samples for block in s.blocks],
        spans=[span for row in rows for span in row.spans],
        lengths=[len(sample) for group in groups for sample in group],
    )
