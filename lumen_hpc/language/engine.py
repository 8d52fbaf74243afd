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


def open_engine(engine: settings.Engine, allowed_endpoints: Sequence[str] | None = None) -> Engine:
    """The engine that the settings name, with its model loaded.

    `allowed_endpoints` are the URL prefixes that may see restricted data; None says that the data is not restricted.
    They are checked before anything is sent. Raises UserError for a missing model, package, key or permission.
    """
    if engine.kind == "grammar":
        from lumen_hpc.language.grammar import GrammarEngine

        return GrammarEngine()
    if not engine.model:
        raise UserError(f"engine.model is empty; engine.kind={engine.kind} needs a folder or a staged model's name")
    if engine.kind == "vllm":
        from lumen_hpc.language.vllm_engine import VLLMEngine

        return VLLMEngine(engine)
    if engine.kind == "transformers":
        from lumen_hpc.language.transformers_engine import TransformersEngine

        return TransformersEngine(engine)
    if engine.kind == "server":
        from lumen_hpc.language.server_engine import ServerEngine

        return ServerEngine(engine, allowed_endpoints)
    raise UserError(f"engine kind '{engine.kind}' is unknown; it is one of vllm, transformers, server, grammar")
