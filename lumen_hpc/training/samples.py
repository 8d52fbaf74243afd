"""Turns instruction records into NVILA's input: decoded, tokenised and packed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import lcm

import numpy as np
import torch
from PIL import Image

from lumen_hpc.data.fewer_images import without_images
from lumen_hpc.data.images import grey_levels, holds_dicom
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import Batch, Preprocessor, Sample, pack
from lumen_hpc.nvila.chat import IGNORE
from lumen_hpc.nvila.generate import line_ends
from lumen_hpc.nvila.group import SingleProcess
from lumen_hpc.nvila.preprocess import Blank, tile_count
from lumen_hpc.recently_used import RecentlyUsed
from lumen_hpc.training.layout import SharedSequence
from lumen_hpc.training.lengths import Record, image_sizes
from lumen_hpc.training.record_index import RecordIndex
from lumen_hpc.training.sequence_parallel import take_own_tokens


class Pictures:
    """Opens image files for NVILA's preprocessing: a path, or the grey levels of a DICOM or of a cached picture.

    Small pictures (the demo's) are cached in memory up to `cache_gb`; the least recently used are dropped first.
    """

    def __init__(self, cache_gb: float = 0.0) -> None:
        self._cache: RecentlyUsed[np.ndarray] | None = RecentlyUsed(cache_gb) if cache_gb else None

    def open(self, path: str) -> str | np.ndarray:
        """uint8 [H, W], or the path itself if it is not cached. Raises UserError naming an unreadable file."""
        if self._cache is not None and (cached := self._cache.get(path)) is not None:
            return cached
        picture: np.ndarray | None = None
        if holds_dicom(path):
            picture = grey_levels(path)
        elif self._cache is not None:
            picture = _grey_pixels(path)
        if picture is not None and self._cache is not None:
            self._cache.keep(path, picture)
        return path if picture is None else picture


def _grey_pixels(path: str) -> np.ndarray | None:
    """The pixels of a grey picture; None for a coloured one."""
    try:
        with Image.open(path) as image:
            return np.array(image) if image.mode == "L" else None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


@dataclass
class MicroBatch:
    """A packed micro-batch."""

    batch: Batch
    samples: torch.Tensor
    """[supervised tokens] int64: sample ids."""
    verdicts: torch.Tensor
    """[supervised tokens] bool: the yes or no of an outcome's answer."""
    tokens: int

    def to(self, device: torch.device) -> MicroBatch:
        return replace(
            self,
            batch=self.batch.to(device, non_blocking=True),
            samples=self.samples.to(device, non_blocking=True),
            verdicts=self.verdicts.to(device, non_blocking=True),
        )

    def pin_memory(self) -> MicroBatch:
        """The same in page-locked memory, from which copies to a GPU are asynchronous."""
        return replace(
            self,
            batch=self.batch.pin_memory(),
            samples=self.samples.pin_memory(),
            verdicts=self.verdicts.pin_memory(),
        )


class Batcher:
    """Reads the records of an index and packs them for the model."""

    def __init__(
        self,
        records: Sequence[Record],
        index: RecordIndex,
        preprocessor: Preprocessor,
        pictures: Pictures,
        *,
        multiple: int = 1,
        group: SingleProcess | None = None,
    ) -> None:
        """`multiple`: rows are padded to a multiple of it, so that compiled layers meet few lengths.

        `group`: ranks that compute each micro-batch together. This rank's has only the supervised tokens that its
        positions predict, and reads only the pictures of which it computes a tile; the others are black.
        """
        self._group = group or SingleProcess()
        self._multiple = lcm(multiple, self._group.size)
        self._records, self._index, self._preprocessor = records, index, preprocessor
        self._pictures = pictures

    def build(self, sequences: list[SharedSequence]) -> MicroBatch:
        """A micro-batch of these sequences; without any, of a blank sample that supervises nothing.

        Raises UserError naming a record whose images or text have changed since they were indexed.
        """
        if not sequences:
            empty = torch.zeros(0, dtype=torch.int64)
            return MicroBatch(pack([[self._blank()]], multiple=self._group.size), empty, empty.bool(), 0)
        ids = [sample for sequence in sequences for sample in sequence.samples]
        samples = self._samples(sequences)
        batch = pack([[samples[i] for i in sequence.samples] for sequence in sequences], multiple=self._multiple)
        counts = torch.tensor([samples[i].supervised for i in ids])
        sample_of_token = torch.repeat_interleave(torch.tensor(ids), counts)
        verdicts = torch.cat([self._verdict_mask(i, samples[i]) for i in ids])
        batch, is_own, tokens = take_own_tokens(batch, self._group)
        micro = MicroBatch(batch, sample_of_token[is_own], verdicts[is_own], tokens)
        return micro.pin_memory() if torch.cuda.is_available() else micro

    def _samples(self, sequences: list[SharedSequence]) -> dict[int, Sample]:
        """The samples of these sequences, by id."""
        records = {
            i: without_images(self._records[int(self._index.rows[i])], int(self._index.images_left_out[i]))
            for sequence in sequences
            for i in sequence.samples
        }
        blanks = self._blanks([records[sequence.samples[0]] for sequence in sequences])
        paths = dict.fromkeys(path for record in records.values() for path in record["images"])
        pictures = {path: blanks.get(path) or self._pictures.open(path) for path in paths}
        inputs = [{**record, "images": [pictures[path] for path in record["images"]]} for record in records.values()]
        samples = dict(zip(records, self._preprocessor(inputs, inline=True).samples))
        for i, sample in samples.items():
            expected = self._index.prefix[i] + self._index.suffix[i]
            if sample.supervised != self._index.supervised[i] or len(sample) != expected:
                raise UserError(
                    f"record {self._index.ids[i]} has other tokens than when the training began: put its text and the "
                    "sizes of its images back, or prepare the run again"
                )
        return samples

    def _blanks(self, records: list[Record]) -> dict[str, Blank]:
        """By path, the pictures of a micro-batch whose tiles are all computed by other ranks of the group.

        `records`: one per sequence, since its others show the same pictures.
        """
        if self._group.size == 1:
            return {}
        sizes = [(path, size) for record in records for path, size in zip(record["images"], image_sizes(record))]
        tile_ends = list(accumulate(tile_count(size, self._preprocessor.config) for _, size in sizes))
        own_tiles = self._group.own_range(tile_ends[-1] if tile_ends else 0)
        spans = zip(sizes, [0, *tile_ends], tile_ends)
        own_paths = {path for (path, _), begin, end in spans if begin < own_tiles.stop and own_tiles.start < end}
        return {path: Blank(*size) for path, size in sizes if path not in own_paths}

    def _verdict_mask(self, i: int, sample: Sample) -> torch.Tensor:
        """bool [supervised tokens of the sample]: the yes or no of an outcome's answer; all False for other kinds."""
        labels = sample.token_labels[1:]
        supervised_ids = labels[labels != IGNORE]
        mask: np.ndarray = np.zeros(len(supervised_ids), dtype=bool)
        if self._index.kinds[i] == "outcome":
            ends = np.flatnonzero(np.isin(supervised_ids[:-1], line_ends(self._preprocessor.tokenizer)))
            mask[ends[0] + 1 if len(ends) else 0] = True
        return torch.from_numpy(mask)

    def _blank(self) -> Sample:
        tokenizer = self._preprocessor.tokenizer
        ids = np.array([tokenizer.pad, tokenizer.pad], dtype=np.int64)
        labels = np.full_like(ids, IGNORE)
        return Sample(ids, labels, ids, labels, torch.zeros(0, 1, 1, 1, dtype=torch.uint8), [])
