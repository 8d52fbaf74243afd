"""The engine without a language model: deterministic sentences, and a judge that compares facts.

It answers the same conversations as the other engines, reading the labelled lines of the last message.
"""

from __future__ import annotations

from collections.abc import Sequence

from lumen_hpc.config import schema
from lumen_hpc.language import facts, prompting
from lumen_hpc.language.protocol import Completion, Conversation, Engine
from lumen_hpc.language.sentences import sentence


class GrammarEngine(Engine):
    """Sentences by `sentences.sentence`, scores by `facts.score`; temperature and seed change nothing."""

    source = "fallback"

    def __init__(self) -> None:
        super().__init__(schema.EngineSettings(kind="grammar", model="grammar"))

    def _continue(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        given = map(prompting.material, conversations)
        return [Completion(sentence(it["Type"], it["Question"], it["Short answer"]), 0) for it in given]

    def _choose(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Completion]:
        """The choices are scores; all probability is on the one that fits."""
        given = map(prompting.quoted_material, conversations)
        scores = [str(facts.score(it["Type"], it["Question"], it["Reference"], it["Answer"])) for it in given]
        return [Completion(score, 0, tuple(float(choice == score) for choice in choices)) for score in scores]
