"""Instruction records as NVILA's input: measured from image headers alone, or decoded, tokenised and packed."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import accumulate
from math import lcm
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lumen_hpc.data.dicom_headers import dicom_header
from lumen_hpc.data.fewer_images import without_images
from lumen_hpc.data.image_headers import ORIENTATION
from lumen_hpc.data.images import grey_levels
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import Batch, Preprocessor, Sample, pack
from lumen_hpc.nvila.chat import IGNORE, IMAGE, place_images, render
from lumen_hpc.nvila.config import NVILAConfig
from lumen_hpc.nvila.generate import line_ends
from lumen_hpc.nvila.group import Alone
from lumen_hpc.nvila.preprocess import Blank, placeholders, tile_count
from lumen_hpc.training.fitting import Measure
from lumen_hpc.training.layout import Shared
from lumen_hpc.training.record_index import RecordIndex
from lumen_hpc.training.sequence_parallel import own_tokens

Record = dict[str, Any]


class Pictures:
    """Image files as NVILA's preprocessing takes them: a path, or the grey levels of a DICOM or of a cached picture.

    Small pictures (the demo's) are cached in memory up to `cache_gb`; the least recently used go first.
    """

    def __init__(self, cache_gb: float = 0.0) -> None:
        self._limit, self._used = int(cache_gb * 2**30), 0
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, path: str) -> str | np.ndarray:
        """uint8 [H, W], or the path itself where nothing is cached. Raises UserError naming an unreadable file."""
        with self._lock:
            if path in self._kept:
                self._kept.move_to_end(path)
                return self._kept[path]
        picture: np.ndarray | None = None
        if path.endswith(".dcm"):
            picture = grey_levels(path)
        elif self._limit:
            picture = _grey(path)
        if picture is not None and self._limit:
            self._keep(path, picture)
        return path if picture is None else picture

    def _keep(self, path: str, picture: np.ndarray) -> None:
        with self._lock:
            if path not in self._kept:  # another thread may have been first
                self._kept[path] = picture
                self._used += picture.nbytes
            while self._used > self._limit:
                self._used -= self._kept.popitem(last=False)[1].nbytes


def _grey(path: str) -> np.ndarray | None:
    """The pixels of a grey picture; None for a coloured one."""
    try:
        with Image.open(path) as image:
            return np.array(image) if image.mode == "L" else None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


@lru_cache(maxsize=1 << 18)
def size_of(path: str) -> tuple[int, int]:
    """(width, height) [px] from the file's header. Raises UserError naming a file that is unreadable or misread."""
    try:
        if path.endswith(".dcm"):
            header, _ = dicom_header(Path(path))
            return int(header.Columns), int(header.Rows)
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: more than 8 bits a pixel (mode {image.mode}); scale it to 0..255 first")
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # whose others are previews
                raise UserError(f"{path}: it holds {image.n_frames} pictures; give one")
            if image.getexif().get(ORIENTATION, 1) in range(2, 9):
                raise UserError(f"{path}: its pixels are stored turned or mirrored (EXIF); store them upright")
            return image.size
    except (OSError, AttributeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


def measure(records: Sequence[Record], preprocessor: Preprocessor) -> list[Measure]:
    """The records' tokens, from their texts and the sizes of their images: `meta.sizes`, else the files' headers.

    All texts are encoded at once, by as many threads as there are cores. A file that cannot be read, or a text whose
    `<image>` are not those of its images, is the record's fault.
    """
    tokenizer = preprocessor.tokenizer
    blocks = lru_cache(maxsize=None)(partial(_counts, config=preprocessor.config))  # images have few sizes
    measures: list[Measure] = []
    texts: list[tuple[int, str, int, list[tuple[int, int]], int]] = []
    for number, record in enumerate(records):
        measures.append(Measure())
        try:
            counts = [blocks(size) for size in _sizes(record)]
            messages = place_images(
                record["conversations"], list(map(len, counts)), preprocessor.config.aspect, inline=True
            )
            messages = tokenizer.plain(messages)
            text, spans = render(messages, generation=False)
            question = messages[0]["value"].strip()
            end = text.index(question) + len(question.rpartition("\n")[0])  # of what questions can share
            texts.append((number, text, end, spans, sum(sum(tokens) - len(tokens) for tokens in counts)))
        except UserError as error:
            measures[number] = Measure(fault=str(error))
    encodings = tokenizer.backend.encode_batch([text for _, text, *_ in texts], add_special_tokens=False)
    for (number, _, end, spans, more), encoding in zip(texts, encodings):
        prefix = _ended(encoding, end) + more
        supervised = sum(_begun(encoding, stop) - _begun(encoding, begin) for begin, stop in spans)
        measures[number] = Measure(prefix, len(encoding) + more - prefix, supervised)
    return measures


def _sizes(record: Record) -> list[tuple[int, int]]:
    """(width, height) of each image [px]."""
    known = record["meta"].get("sizes") or [None] * len(record["images"])
    return [tuple(size) if size else size_of(path) for path, size in zip(record["images"], known, strict=True)]


def _counts(size: tuple[int, int], config: NVILAConfig) -> list[int]:
    """Tokens that each `<image>` of a picture of this size becomes."""
    return [config.image_tokens(block) for block in placeholders(size, config)]


# Asked of the encoding without a list of its offsets, which would take longer than the encoding itself.


def _ended(encoding: Any, character: int) -> int:
    """Tokens that end at a character of the text, or before it."""
    token = encoding.char_to_token(character)
    return sum(stop <= character for _, stop in encoding.offsets) if token is None else token


def _begun(encoding: Any, character: int) -> int:
    """Tokens that begin before a character of the text."""
    token = encoding.char_to_token(character)
    if token is None:
        return sum(start < character for start, _ in encoding.offsets)
    return token + (encoding.token_to_chars(token)[0] < character)


def opening(record: Record) -> str:
    """Key that records must have in common to share their images: the images, and the text up to the last of them."""
    question = record["conversations"][0]["value"]
    return "\n".join([*record["images"], question[: question.rfind(IMAGE) + len(IMAGE)]])


@dataclass
class Micro:
    """A packed micro-batch."""

    batch: Batch
    samples: torch.Tensor
    """[supervised tokens] int64: sample ids."""
    verdicts: torch.Tensor
    """[supervised tokens] bool: the yes or no of an outcome's answer."""
    tokens: int

    def to(self, device: torch.device) -> Micro:
        return replace(
            self,
            batch=self.batch.to(device, non_blocking=True),
            samples=self.samples.to(device, non_blocking=True),
            verdicts=self.verdicts.to(device, non_blocking=True),
        )

    def pin_memory(self) -> Micro:
        """The same in page-locked memory, from which copies to a GPU need not be waited for."""
        return replace(
            self,
            batch=self.batch.pin_memory(),
            samples=self.samples.pin_memory(),
            verdicts=self.verdicts.pin_memory(),
        )


class Batcher:
    """Reads the records of a survey and packs them for the model."""

    def __init__(
        self,
        records: Sequence[Record],
        survey: RecordIndex,
        preprocessor: Preprocessor,
        pictures: Pictures,
        *,
        multiple: int = 1,
        group: Alone | None = None,
    ) -> None:
        """`multiple`: rows are padded to one of it, so that compiled layers meet few lengths. `group`: ranks that
        compute each micro-batch together: this one's has only the supervised tokens that its positions predict, and
        reads only the pictures of which it computes a tile; the others are black."""
        self._group = group or Alone()
        self._multiple = lcm(multiple, self._group.size)
        self._records, self._survey, self._preprocessor = records, survey, preprocessor
        self._pictures = pictures

    def build(self, packed: list[Shared]) -> Micro:
        """A micro-batch of these sequences; of none, one blank token that supervises nothing.

        Raises UserError naming a record whose images or text have changed since the survey.
        """
        if not packed:
            none = torch.zeros(0, dtype=torch.int64)
            return Micro(pack([[self._blank()]], multiple=self._group.size), none, none.bool(), 0)
        ids = [sample for sequence in packed for sample in sequence.samples]
        samples = self._samples(packed)
        batch = pack([[samples[i] for i in sequence.samples] for sequence in packed], multiple=self._multiple)
        counts = torch.tensor([samples[i].supervised for i in ids])
        of_token = torch.repeat_interleave(torch.tensor(ids), counts)
        verdicts = torch.cat([self._verdict(i, samples[i]) for i in ids])
        batch, mine, tokens = own_tokens(batch, self._group)
        micro = Micro(batch, of_token[mine], verdicts[mine], tokens)
        return micro.pin_memory() if torch.cuda.is_available() else micro

    def _samples(self, packed: list[Shared]) -> dict[int, Sample]:
        """The samples of these sequences, by id."""
        records = {
            i: without_images(self._records[int(self._survey.rows[i])], int(self._survey.images_left_out[i]))
            for sequence in packed
            for i in sequence.samples
        }
        blanks = self._blanks([records[sequence.samples[0]] for sequence in packed])
        paths = dict.fromkeys(path for record in records.values() for path in record["images"])
        pictures = {path: blanks.get(path) or self._pictures.open(path) for path in paths}
        shown = [{**record, "images": [pictures[path] for path in record["images"]]} for record in records.values()]
        samples = dict(zip(records, self._preprocessor(shown, inline=True).samples))
        for i, sample in samples.items():
            expected = self._survey.prefix[i] + self._survey.suffix[i]
            if sample.supervised != self._survey.supervised[i] or len(sample) != expected:
                raise UserError(f"record {self._survey.ids[i]} has changed since the training began")
        return samples

    def _blanks(self, records: list[Record]) -> dict[str, Blank]:
        """By path, the pictures of a micro-batch whose tiles are all computed by other ranks of the group.

        `records`: one of each sequence, since its others show the same pictures.
        """
        if self._group.size == 1:
            return {}
        sizes = [(path, size) for record in records for path, size in zip(record["images"], _sizes(record))]
        ends = list(accumulate(tile_count(size, self._preprocessor.config) for _, size in sizes))
        own = self._group.own_range(ends[-1] if ends else 0)
        spans = zip(sizes, [0, *ends], ends)
        needed = {path for (path, _), begin, end in spans if begin < own.stop and own.start < end}
        return {path: Blank(*size) for path, size in sizes if path not in needed}

    def _verdict(self, i: int, sample: Sample) -> torch.Tensor:
        """bool [supervised tokens of the sample]: where an outcome's answer says yes or no; nowhere for other kinds."""
        labels = sample.token_labels[1:]
        learned = labels[labels != IGNORE]
        found: np.ndarray = np.zeros(len(learned), dtype=bool)
        if self._survey.kinds[i] == "outcome":
            ends = np.flatnonzero(np.isin(learned[:-1], line_ends(self._preprocessor.tokenizer)))
            found[ends[0] + 1 if len(ends) else 0] = True
        return torch.from_numpy(found)

    def _blank(self) -> Sample:
        tokenizer = self._preprocessor.tokenizer
        ids = np.array([tokenizer.pad, tokenizer.pad], dtype=np.int64)
        labels = np.full_like(ids, IGNORE)
        return Sample(ids, labels, ids, labels, torch.zeros(0, 1, 1, 1, dtype=torch.uint8), [])
