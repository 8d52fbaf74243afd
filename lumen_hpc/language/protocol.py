"""The interface of every language engine: conversations in, completions out.

An engine takes all conversations of a shard in one call and returns one completion for each, in order. The same
conversations, seeds and temperature give the same completions, independent of earlier calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks
from lumen_hpc.watchdog import Beat, unwatched

Conversation = Sequence[Mapping[str, str]]
"""Messages of the form {"role": "system"|"user"|"assistant", "content": text}."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of an engine."""

    text: str
    choice_probabilities: tuple[float, ...] = ()
    """With `choices`: the probability of each choice, in order; they sum to 1."""


class Engine(ABC):
    """A language model that continues conversations; a backend implements free continuation and constrained choice."""

    source = "llm"
    """Where a sentence comes from: `llm`, or `fallback` for the grammar."""
    beat: Beat = staticmethod(unwatched)
    """Called as a call's answers come: they are the only sign of progress of a shard, which is one call."""

    def __init__(self, settings: schema.EngineSettings) -> None:
        self.settings = settings
        self.name = Path(settings.model).name or settings.kind
        """This engine's name in records: the model's name without its parent folders."""

    @classmethod
    def open(
        cls, settings: schema.EngineSettings, *, allowed_endpoints: Sequence[str] | None, ranks: Ranks, rendezvous: Path
    ) -> Engine:
        """The engine with its model loaded; the arguments are those of `engine.open_engine`, which calls it."""
        return cls(settings)

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

        `seed`: one for all conversations, or one for each. With `choices` the text is the most probable of them. Raises
        UserError with the fix where the engine cannot continue (memory, a conversation too long, no server).
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
