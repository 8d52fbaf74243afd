"""Turns conversations into token ids and labels, in NVILA's ChatML.

`<|im_start|>role\\ntext<|im_end|>\\n` for each message, a default system message in front, and for generation an open
`<|im_start|>assistant\\n` at the end. Messages are stripped, as NVlabs/VILA `llava/utils/tokenizer.py` does.
"""

from __future__ import annotations

import re
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from lumen_hpc.errors import UserError
from lumen_hpc.plain_text import PlainText

IGNORE = -100
"""Label of a token that takes no part in the loss."""
IMAGE, SENTINEL, VIDEO = "<image>", "<vila/sentinel>", "<vila/video>"
START, END, PAD = "<|im_start|>", "<|im_end|>", "[PAD]"
SYSTEM = "You are a helpful assistant"
ROLES = {"human": "user", "gpt": "assistant", "system": "system", "user": "user", "assistant": "assistant"}

_PROBE = f"Yes, {string.ascii_letters}: {string.digits}; no."
"""Text that every tokenizer for English decodes unchanged."""

Message = dict[str, str]
"""`{"from": "human" | "gpt" | "system", "value": text}`, the form of LLaVA and VILA."""


class Tokenizer:
    """A checkpoint's tokenizer with ids looked up by name, since their order differs between checkpoints."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        backend.no_truncation()  # a tokenizer.json may store either: answers would be cut or padded silently
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # may be stored too: a text would give other tokens each time
        for name in (SENTINEL, IMAGE, VIDEO):  # the official loader adds what is missing in this order
            if backend.token_to_id(name) is None:
                backend.add_special_tokens([AddedToken(name, special=True, normalized=False)])
        self.image, self.sentinel, self.end = self.id(IMAGE), self.id(SENTINEL), self.id(END)
        self.pad = next(i for i in map(backend.token_to_id, (PAD, "<|endoftext|>", END)) if i is not None)
        self._check()
        self.newline = self.encode("\n")[0]
        added_names = [token.content for token in backend.get_added_tokens_decoder().values()]
        self._escape = PlainText(name for name in added_names if name != IMAGE)

    @classmethod
    def from_files(cls, files: dict[str, bytes]) -> Tokenizer:
        """From a checkpoint's `llm/` files: tokenizer.json, or vocab.json and merges.txt through transformers.

        Raises UserError if they are missing or hold no tokenizer of an NVILA.
        """
        if "llm/tokenizer.json" in files:
            try:
                backend = Backend.from_str(files["llm/tokenizer.json"].decode("utf-8-sig"))
            except Exception as error:  # tokenizers raises no narrower kind
                raise UserError(f"llm/tokenizer.json holds no tokenizer ({error}): copy it again") from None
            return cls(backend)
        if "llm/vocab.json" not in files or "llm/merges.txt" not in files:
            raise UserError("llm/ lacks its tokenizer: it needs tokenizer.json, or vocab.json with merges.txt")
        from transformers import AutoTokenizer

        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                if path.startswith("llm/"):
                    (Path(folder) / Path(path).name).write_bytes(content)
            try:
                opened = AutoTokenizer.from_pretrained(
                    folder, use_fast=True, local_files_only=True, trust_remote_code=False
                )
            except (OSError, ValueError) as error:
                raise UserError(f"llm/ holds no tokenizer that is read here: {str(error).splitlines()[0]}") from None
            return cls(opened.backend_tokenizer)

    def _check(self) -> None:
        """Refuse a tokenizer that loses letters, or inserts characters between an answer's tokens."""
        round_trip = self.decode(self.encode(_PROBE))
        if round_trip != _PROBE or not self.encode("\n"):
            raise UserError(
                f"the tokenizer in llm/ gives {round_trip[:80]!r} for {_PROBE!r}: its vocabulary, normalizer or "
                "decoder is not that of an NVILA"
            )
        tokens = self.backend.get_added_tokens_decoder().values()
        if unmarkable := [
            token.content for token in tokens if token.special and not re.search(r"[^\w\s,.;:]", token.content)
        ]:
            raise UserError(
                f"the tokenizer in llm/ marks {unmarkable[0]!r} as a special token: every answer would lose it; unmark "
                "it in tokenizer.json"
            )

    @property
    def largest_text_id(self) -> int:
        """The largest id in an encoded text; the media tokens never reach the embedding."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return max((i for name, i in vocabulary.items() if name not in (SENTINEL, IMAGE, VIDEO)), default=-1)

    def escape_controls(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with control tokens as plain text, so that none opens or closes a turn; `<image>` stays.

        `place_images` compares the number of `<image>` with the pictures.
        """
        return [message | {"value": self._escape(message["value"])} for message in messages]

    def id(self, name: str) -> int:
        """The id of a token. Raises UserError for a name that the tokenizer lacks."""
        token_id = self.backend.token_to_id(name)
        if token_id is None:
            raise UserError(f"the tokenizer in llm/ has no token {name!r}: not an NVILA tokenizer")
        return token_id

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of an answer, without special tokens and outer spaces."""
        return self.backend.decode(list(ids), skip_special_tokens=True).strip()


def place_images(messages: Sequence[Message], per_picture: Sequence[int], aspect: str, inline: bool) -> list[Message]:
    """Put the placeholders of the pictures into the messages.

    `per_picture` is the number of placeholders of each picture: with `dynamic` one "<image>\\n" per tile, else 1. By
    default `<image>` in the texts is removed, and all pictures open the first human message in their order, as in the
    official LLaVADataset; `inline` puts each where its `<image>` stands. Raises UserError for a conversation without a
    human message, and with `inline` for another number of `<image>` than of pictures.
    """
    placeholders = [f"{IMAGE}\n" * count if aspect == "dynamic" else IMAGE for count in per_picture]
    result = [{"from": message["from"], "value": message["value"]} for message in messages]
    if inline:
        found = sum(message["value"].count(IMAGE) for message in result)
        if found != len(placeholders):
            raise UserError(f"the texts have {found} {IMAGE} but {len(placeholders)} images are given")
        remaining = iter(placeholders)
        for message in result:
            pieces = message["value"].split(IMAGE)
            message["value"] = pieces[0] + "".join(next(remaining) + piece for piece in pieces[1:])
        return result
    for message in result:
        value = message["value"]
        for mark in (IMAGE, "<video>"):
            value = value.replace(mark + "\n", "").replace("\n" + mark, "").replace(mark, "")
        message["value"] = value.strip()
    first = next((message for message in result if message["from"] in ("human", "user")), None)
    if first is None:
        raise UserError("a conversation needs a message from 'human'")
    first["value"] = "".join(placeholders) + first["value"]
    return result


def with_placeholders(messages: Sequence[Message], pictures: int) -> list[Message]:
    """The messages; if none has `<image>`, a line of it for each picture opens the first human one."""
    result = list(messages)
    first = next((place for place, message in enumerate(result) if message["from"] in ("human", "user")), None)
    if first is not None and not any(IMAGE in message["value"] for message in result):
        result[first] = result[first] | {"value": f"{IMAGE}\n" * pictures + result[first]["value"]}
    return result


def render(messages: Sequence[Message], *, generation: bool) -> tuple[str, list[tuple[int, int]]]:
    """ChatML text of a conversation and the (start, stop) characters of each answer with its `<|im_end|>`.

    Raises UserError for a message that is from nobody in ROLES.
    """
    text, spans = "", []
    if ROLES.get(messages[0]["from"]) != "system":
        text = f"{START}system\n{SYSTEM}{END}\n"
    for message in messages:
        role = ROLES.get(message["from"])
        if role is None:
            raise UserError(f"a message is from {message['from']!r}; use one of {sorted(ROLES)}")
        text += f"{START}{role}\n"
        begin = len(text)
        text += message["value"].strip() + END
        if role == "assistant":
            spans.append((begin, len(text)))
        text += "\n"
    return text + (f"{START}assistant\n" if generation else ""), spans


def encode(
    messages: Sequence[Message], tokenizer: Tokenizer, *, generation: bool = False, official_labels: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and labels of a conversation whose images are placed: two int64 arrays [tokens].

    Control tokens in the messages become plain text. An answer's tokens and its `<|im_end|>` are their own labels; all
    others are -100, and so are all of a prompt for `generation`, which ends with an open assistant turn.
    `official_labels` repeats the official matching against a template: the first bare newline in an answer is not
    supervised, but the newline after `<|im_end|>` is.
    """
    messages = tokenizer.escape_controls(messages)
    text, spans = render(messages, generation=generation)
    encoding = tokenizer.backend.encode(text, add_special_tokens=False)
    ids = np.array(encoding.ids, dtype=np.int64)
    labels = np.full_like(ids, IGNORE)
    if generation:
        return ids, labels
    if official_labels:
        return ids, _official_labels(messages, ids, tokenizer)
    starts = np.array([start for start, _ in encoding.offsets])
    for begin, stop in spans:
        supervised = (starts >= begin) & (starts < stop)
        labels[supervised] = ids[supervised]
    return ids, labels


def _official_labels(messages: Sequence[Message], ids: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Labels of `preprocess_conversation`: the tokens that do not match the conversation without its answers."""
    hollow_messages = [m | {"value": SENTINEL} if ROLES.get(m["from"]) == "assistant" else m for m in messages]
    template = tokenizer.encode(render(hollow_messages, generation=False)[0])
    for retried in (False, True):
        is_kept: np.ndarray = np.ones(len(template), dtype=bool)
        for k in range(len(template) - 1):
            if template[k] == tokenizer.sentinel:
                is_kept[k : k + 2] = False
                if k > 0 and retried:
                    is_kept[k - 1] = False
        expected = np.array(template)[is_kept]
        labels, place = np.full_like(ids, IGNORE), 0
        for k, token in enumerate(ids):
            if place < len(expected) and token == expected[place]:
                place += 1
            else:
                labels[k] = token
        if place == len(expected):
            return labels
    return np.full_like(ids, IGNORE)
