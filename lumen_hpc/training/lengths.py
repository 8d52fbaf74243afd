"""Measures instruction records [tokens] from their texts and the sizes of their images; decodes no image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from lumen_hpc.data.dicom_headers import dicom_header
from lumen_hpc.data.image_headers import ORIENTATION
from lumen_hpc.data.images import holds_dicom
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import Preprocessor
from lumen_hpc.nvila.chat import IMAGE, place_images, render
from lumen_hpc.nvila.config import NVILAConfig
from lumen_hpc.nvila.preprocess import placeholders

Record = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """Token counts of one record; meaningless if it has a `fault`."""

    prefix: int = 0
    """Tokens up to the question, which questions about the same images can share."""
    suffix: int = 0
    """Tokens of the question and the answer."""
    supervised: int = 0
    """Tokens of the answer that the loss counts."""
    fault: str = ""

    @property
    def total(self) -> int:
        return self.prefix + self.suffix

    @property
    def prompt(self) -> int:
        """All tokens but the answer's."""
        return self.total - self.supervised


@lru_cache(maxsize=1 << 18)
def image_size(path: str) -> tuple[int, int]:
    """(width, height) [px] from the file's header. Raises UserError naming a file that is unreadable or misread."""
    try:
        if holds_dicom(path):
            header, _ = dicom_header(Path(path))
            return int(header.Columns), int(header.Rows)
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(f"{path}: more than 8 bits a pixel (mode {image.mode}); scale it to 0..255 first")
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # an MPO's further pictures are previews
                raise UserError(f"{path}: it holds {image.n_frames} pictures; give one")
            if image.getexif().get(ORIENTATION, 1) in range(2, 9):
                raise UserError(f"{path}: its pixels are stored turned or mirrored (EXIF); store them upright")
            return image.size
    except (OSError, AttributeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from None


def measure(records: Sequence[Record], preprocessor: Preprocessor) -> list[Measure]:
    """The records' token counts, from their texts and their images' sizes: `meta.sizes`, else the files' headers.

    All texts are encoded at once, by as many threads as there are cores. A file that cannot be read, and a text with
    another number of `<image>` than the record has images, are the record's fault.
    """
    tokenizer = preprocessor.tokenizer
    # Images have few distinct sizes.
    tokens_of_size = lru_cache(maxsize=None)(partial(_placeholder_tokens, config=preprocessor.config))
    measures: list[Measure] = []
    texts: list[tuple[int, str, int, list[tuple[int, int]], int]] = []
    for number, record in enumerate(records):
        measures.append(Measure())
        try:
            counts = [tokens_of_size(size) for size in image_sizes(record)]
            messages = place_images(
                record["conversations"], list(map(len, counts)), preprocessor.config.aspect, inline=True
            )
            messages = tokenizer.escape_controls(messages)
            text, spans = render(messages, generation=False)
            question = messages[0]["value"].strip()
            end = text.index(question) + len(question.rpartition("\n")[0])  # end of what questions can share
            texts.append((number, text, end, spans, sum(sum(tokens) - len(tokens) for tokens in counts)))
        except UserError as error:
            measures[number] = Measure(fault=str(error))
    encodings = tokenizer.backend.encode_batch([text for _, text, *_ in texts], add_special_tokens=False)
    for (number, _, end, spans, image_tokens), encoding in zip(texts, encodings):
        prefix = _count_ending_by(encoding, end) + image_tokens
        supervised = sum(
            _count_starting_before(encoding, stop) - _count_starting_before(encoding, begin) for begin, stop in spans
        )
        measures[number] = Measure(prefix, len(encoding) + image_tokens - prefix, supervised)
    return measures


def image_sizes(record: Record) -> list[tuple[int, int]]:
    """(width, height) of each image [px]."""
    stored_sizes = record["meta"].get("sizes") or [None] * len(record["images"])
    return [
        tuple(size) if size else image_size(path) for path, size in zip(record["images"], stored_sizes, strict=True)
    ]


def _placeholder_tokens(size: tuple[int, int], config: NVILAConfig) -> list[int]:
    """The tokens that replace each `<image>` of a picture of this size."""
    return [config.image_tokens(block) for block in placeholders(size, config)]


# These avoid the list of an encoding's offsets, which takes longer than the encoding itself.


def _count_ending_by(encoding: Any, character: int) -> int:
    """How many tokens end at a character of the text, or before it."""
    token = encoding.char_to_token(character)
    return sum(stop <= character for _, stop in encoding.offsets) if token is None else token


def _count_starting_before(encoding: Any, character: int) -> int:
    """How many tokens begin before a character of the text."""
    token = encoding.char_to_token(character)
    if token is None:
        return sum(start < character for start, _ in encoding.offsets)
    return token + (encoding.token_to_chars(token)[0] < character)


def opening(record: Record) -> str:
    """What records must have in common to share their images: the images, and the text up to the last of them."""
    question = record["conversations"][0]["value"]
    return "\n".join([*record["images"], question[: question.rfind(IMAGE) + len(IMAGE)]])
