"""One protocol for whatever answers: vLLM in process, transformers, an OpenAI-compatible server, or the grammar.

An engine takes a whole shard's conversations in one call and gives a completion for each, in order. The same
conversations, seeds and temperature give the same completions, whatever the process did before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lumen_hpc import settings
from lumen_hpc.errors import UserError

Conversation = Sequence[Mapping[str, str]]
"""Messages of the form {"role": "system"|"user"|"assistant", "content": text}."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine answered."""

    text: str
    tokens: int
    """Tokens generated; 0 where no model ran."""
    choice_probabilities: tuple[float, ...] = ()
    """With `choices`: the probability of each, in their order, summing to 1."""


class Engine(Protocol):
    """Something that continues conversations."""

    name: str
    """What a record calls this engine: the model's name, without the folders above it."""
    source: str
    """`llm`, or `fallback` where the sentences are the grammar's own."""

    def chat(
        self,
        conversations: Sequence[Conversation],
        *,
        max_tokens: int,
        temperature: float,
        seed: int | Sequence[int],
        choices: Sequence[str] | None = None,
    ) -> list[Completion]:
        """Continues each conversation by at most `max_tokens` tokens; temperature 0 is greedy.

        `seed` is one for all, or one a conversation. With `choices` the text is the most probable of them. Raises
        UserError with the cure where the engine cannot go on (memory, a conversation too long, no server).
        """
        ...


def open_engine(engine: settings.Engine, *, restricted: bool = False, allowed_endpoints: Sequence[str] = ()) -> Engine:
    """The engine that the settings name, with its model loaded.

    `restricted` says that the data may not leave the site; a server must then be in `allowed_endpoints`, and nothing
    is sent to it before that is checked. Raises UserError for a missing model, package or permission.
    """
    if engine.kind == "grammar":
        from lumen_hpc.language.grammar import GrammarEngine

        return GrammarEngine()
    raise UserError(f"engine kind '{engine.kind}' is unknown; it is one of vllm, transformers, server, grammar")
