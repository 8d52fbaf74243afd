"""The engine without a language model: deterministic sentences, and a judge that compares facts.

It answers the same conversations as the other engines, reading the labelled lines of the last message.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks
from lumen_hpc.language import facts, prompting
from lumen_hpc.language.protocol import Completion, Conversation, Engine
from lumen_hpc.language.sentences import sentence


class GrammarEngine(Engine):
    """Sentences by `sentences.sentence`, scores by `facts.score`; temperature and seed change nothing."""

    source = "fallback"

    @classmethod
    def open(
        cls, settings: schema.EngineSettings, *, allowed_endpoints: Sequence[str] | None, ranks: Ranks, rendezvous: Path
    ) -> GrammarEngine:
        """See `Engine.open`."""
        return cls()

    def __init__(self) -> None:
        super().__init__(schema.EngineSettings(kind="grammar", model="grammar"))

    def _continue(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        materials = map(prompting.material, conversations)
        return [
            Completion(sentence(material["Type"], material["Question"], material["Short answer"]))
            for material in materials
        ]

    def _choose(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Completion]:
        """The choices are scores, or yes and no to a sentence; all probability is on the one that fits."""
        replies = [_reply(prompting.quoted_material(conversation)) for conversation in conversations]
        return [Completion(reply, tuple(float(choice == reply) for choice in choices)) for reply in replies]


def _reply(material: dict[str, str]) -> str:
    if "Sentence" in material:
        reasons = facts.check(material["Type"], material["Question"], material["Short answer"], material["Sentence"])
        return "no" if reasons else "yes"
    return str(facts.score(material["Type"], material["Question"], material["Reference"], material["Answer"]))
