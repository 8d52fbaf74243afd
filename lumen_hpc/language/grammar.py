"""The engine without a language model: deterministic sentences, and a judge that compares facts.

It answers the same conversations as the other engines, reading the labelled lines of the last message.
"""

from __future__ import annotations

from collections.abc import Sequence

from lumen_hpc.language import facts, prompting
from lumen_hpc.language.engine import Completion, Conversation
from lumen_hpc.language.sentences import sentence


class GrammarEngine:
    """Sentences by `sentences.sentence`, scores by `facts.agreement`; temperature and seed change nothing."""

    name = "grammar"
    source = "fallback"

    def chat(
        self,
        conversations: Sequence[Conversation],
        *,
        max_tokens: int,
        temperature: float,
        seed: int | Sequence[int],
        choices: Sequence[str] | None = None,
    ) -> list[Completion]:
        """As `Engine.chat`; with `choices` (the scores) all probability is on the one that fits."""
        return [self._reply(prompting.material(conversation), choices) for conversation in conversations]

    def _reply(self, material: dict[str, str], choices: Sequence[str] | None) -> Completion:
        if choices is None:
            return Completion(sentence(material["Type"], material["Question"], material["Short answer"]), 0)
        score = str(facts.score(material["Type"], material["Question"], material["Reference"], material["Answer"]))
        return Completion(score, 0, tuple(float(choice == score) for choice in choices))
