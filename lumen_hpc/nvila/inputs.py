"""Encodes records as samples: cuts pictures, places placeholders, tokenises text. It needs no weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lumen_hpc.errors import UserError

from . import chat
from .chat import IGNORE, Message, Tokenizer
from .config import NVILAConfig
from .config_files import read_config
from .packing import Batch, Sample, expand, pad
from .preprocess import Picture, join_tiles, normalise, picture_key, preprocess_images


@dataclass
class Inputs:
    """Encoded samples, and their tensors as the official collator gives them (padded at the right)."""

    samples: list[Sample]
    pad_id: int
    generation: bool = False

    def batch(self) -> Batch:
        """The padded batch that `forward` takes."""
        return pad(self.samples)

    @property
    def input_ids(self) -> torch.Tensor:
        """int64 [rows, tokens], with one `<image>` per placeholder."""
        return self._padded([s.input_ids for s in self.samples], self.pad_id)

    @property
    def labels(self) -> torch.Tensor:
        """int64 [rows, tokens], -100 where nothing is learned."""
        return self._padded([s.labels for s in self.samples], IGNORE)

    @property
    def attention_mask(self) -> torch.Tensor:
        """bool [rows, tokens], False for padding."""
        return self._padded([s.input_ids * 0 + 1 for s in self.samples], 0).bool()

    @property
    def pixels(self) -> torch.Tensor:
        """float32 [N, 3, S, S], all samples' tiles in order."""
        return normalise(join_tiles([s.tiles for s in self.samples]))

    @property
    def block_sizes(self) -> torch.Tensor:
        """int64 [placeholders, 2], (rows, columns); (-1, -1) for a picture of one tile.

        Empty for generation without a picture of several tiles, since the official `generate` then passes none.
        """
        blocks = [block for s in self.samples for block in s.blocks]
        if self.generation and not any(blocks):
            blocks = []
        return torch.tensor([block or (-1, -1) for block in blocks], dtype=torch.int64).view(-1, 2)

    @staticmethod
    def _padded(arrays: Sequence[Any], fill: int) -> torch.Tensor:
        tensors = [torch.from_numpy(array) for array in arrays]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


@dataclass
class Preprocessor:
    """Turns records into samples; it can be sent to data-loading processes."""

    config: NVILAConfig
    tokenizer: Tokenizer

    @classmethod
    def open(cls, folder: str | Path) -> Preprocessor:
        """From a checkpoint folder, without its weights."""
        config = read_config(folder)
        return cls(config, Tokenizer.from_files(config.files))

    def __call__(
        self,
        records: Sequence[dict[str, Any]],
        *,
        generation: bool = False,
        exact: bool = True,
        official_tiles: bool = False,
        inline: bool | None = None,
        official_labels: bool = False,
    ) -> Inputs:
        """Encode records.

        A record is `{"images": [picture, …], "conversations": [{"from": "human", "value": …}, …]}` (LLaVA's `image`
        for one works too); a picture is a PIL image, a uint8 array or a path. Records with the same pictures share
        one decoded set.

        generation: end with an open assistant turn; a last message from `gpt` is left out. exact: PIL's pixels, or
        within 2 grey levels and faster. inline: pictures stand where the text has `<image>` (True), or all in front
        (False, the official order); None: as the checkpoint was trained (`config.prompt_form`).
        official_tiles: one tile per picture if a record has several pictures, as in the official `generate_content`.
        official_labels: with the official newline bug. Raises UserError naming the record and its fault.
        """
        cut_pictures: dict[tuple, tuple] = {}
        samples = []
        for place, record in enumerate(records):
            if not isinstance(record, dict):
                raise UserError(
                    f"record {place}: a {type(record).__name__} is no record; give a list of "
                    "{'images': [...], 'conversations': [...]}"
                )
            try:
                pictures = record_pictures(record)
                is_single = official_tiles and len(pictures) > 1
                key = tuple(map(picture_key, pictures))
                if key not in cut_pictures:
                    tiles = preprocess_images(pictures, self.config, exact=exact, single_tile=is_single)
                    cut_pictures[key] = (tiles, pictures)  # referenced, or another object could get its id
                tiles = cut_pictures[key][0]
                aspect = "resize" if is_single else self.config.aspect
                messages = record_messages(record, generation=generation)
                is_inline = self.config.prompt_form.inline if inline is None else inline
                if inline is None and is_inline:
                    messages = chat.with_placeholders(messages, len(pictures))
                messages = chat.place_images(messages, tiles.per_picture, aspect, is_inline)
                ids, labels = chat.encode(
                    messages, self.tokenizer, generation=generation, official_labels=official_labels
                )
                counts = [self.config.image_tokens(block) for block in tiles.blocks]
                expanded = expand(ids, labels, self.tokenizer.image, self.tokenizer.newline, counts)
            except UserError as error:
                raise UserError(f"record {record.get('id', place)}: {error}") from None
            samples.append(Sample(ids, labels, *expanded, tiles.tiles, tiles.blocks))
        return Inputs(samples, self.tokenizer.pad, generation)


def record_pictures(record: dict[str, Any]) -> list[Picture]:
    """The pictures of a record: `images`, or LLaVA's `image`; [] without any."""
    pictures = record.get("images", record.get("image"))
    if pictures is None:
        return []
    return list(pictures) if isinstance(pictures, list | tuple) else [pictures]


def record_messages(record: dict[str, Any], *, generation: bool) -> list[Message]:
    """The messages of a record, for generation without a final answer. Raises UserError if there are none."""
    messages = list(record.get("conversations") or [])
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("from", "value")):
            raise UserError("a message of 'conversations' is {'from': 'human' or 'gpt', 'value': its text}")
        if half := re.search("[\ud800-\udfff]", message["value"]):
            raise UserError(f"a message holds {half[0]!a}, half a character of UTF-16: decode its text again")
    if generation and messages and chat.ROLES.get(messages[-1]["from"]) == "assistant":
        messages = messages[:-1]
    if not messages:
        raise UserError("it has no messages under 'conversations'")
    return messages
