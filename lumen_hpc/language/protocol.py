"""What every engine is to its callers: conversations in, completions out.

An engine takes a whole shard's conversations in one call and gives a completion for each, in order. The same
conversations, seeds and temperature give the same completions, whatever the process did before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lumen_hpc.config import schema

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


class Engine(ABC):
    """Something that continues conversations; a backend says how it goes on freely, and how it chooses."""

    source = "llm"
    """`llm`, or `fallback` where the sentences are the grammar's own."""

    def __init__(self, wanted: schema.EngineSettings) -> None:
        self.settings = wanted
        self.name = Path(wanted.model).name
        """What a record calls this engine: the model's name, without the folders above it."""

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
        if choices is not None:
            return self._choose(conversations, choices)
        seeds = [seed] * len(conversations) if isinstance(seed, int) else list(seed)
        return self._continue(conversations, max_tokens, temperature, seeds)

    @abstractmethod
    def _continue(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]: ...

    @abstractmethod
    def _choose(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Completion]: ...
