"""Any server that speaks OpenAI's chat completions, such as `vllm serve`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from lumen_hpc.config import schema
from lumen_hpc.errors import UserError
from lumen_hpc.language.gate import check_endpoint
from lumen_hpc.language.protocol import Completion, Conversation, Engine

KEY = "LUMEN_API_KEY"
"""The environment variable that holds the server's key; it is never read from, or written to, a file."""
RETRIES = 4
"""Tries after the first, with growing pauses between."""
CONCURRENT = 64
"""Requests under way at a time; the server batches them."""


class ServerEngine(Engine):
    """One model on a server; requests go out side by side and come back in order."""

    def __init__(self, wanted: schema.EngineSettings, allowed_endpoints: Sequence[str] | None) -> None:
        super().__init__(wanted)
        check_endpoint(wanted.endpoint, allowed_endpoints)
        from openai import OpenAI

        self.client = OpenAI(
            base_url=wanted.endpoint, api_key=os.environ.get(KEY) or "none", max_retries=RETRIES, timeout=wanted.timeout
        )

    def _continue(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        def one(conversation: Conversation, seed: int) -> Completion:
            reply = self._ask(conversation, max_tokens=max_tokens, temperature=temperature, seed=seed)
            return Completion((reply.choices[0].message.content or "").strip(), reply.usage.completion_tokens)

        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(one, conversations, seeds))

    def _choose(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Completion]:
        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(lambda conversation: self._chosen(conversation, choices), conversations))

    def _chosen(self, conversation: Conversation, choices: Sequence[str]) -> Completion:
        """Constrained choice; the probabilities are the server's own for the first token, and for the second where
        one choice begins another (1 and 10) and the model writes them digit by digit."""
        reply = self._ask(
            conversation,
            max_tokens=8,
            temperature=0.0,
            logprobs=True,
            top_logprobs=20,
            extra_body={"structured_outputs": {"choice": list(choices)}},
        )
        text = (reply.choices[0].message.content or "").strip()
        if text not in choices:
            raise UserError(
                f"the server at {self._host} does not keep to a list of choices; it must know vLLM's structured_outputs"
            )
        first = _top(reply)
        mass = {choice: first.get(choice, 0.0) for choice in choices}
        for begun in choices:
            longer = [choice for choice in choices if choice.startswith(begun) and choice != begun]
            if longer and mass[begun] and not any(mass[choice] for choice in longer):
                going_on = _top(self._continued(conversation, begun))
                for choice in longer:
                    mass[choice] = mass[begun] * going_on.get(choice[len(begun) :], 0.0)
                mass[begun] -= sum(mass[choice] for choice in longer)
        total = sum(mass.values())
        if not total:  # none of the choices is among the 20 likeliest tokens: all that is known is the choice
            mass, total = {choice: float(choice == text) for choice in choices}, 1.0
        return Completion(text, reply.usage.completion_tokens, tuple(mass[choice] / total for choice in choices))

    def _continued(self, conversation: Conversation, begun: str) -> Any:
        """What the model would write after a begun answer."""
        return self._ask(
            [*conversation, {"role": "assistant", "content": begun}],
            max_tokens=1,
            temperature=0.0,
            logprobs=True,
            top_logprobs=20,
            extra_body={"add_generation_prompt": False, "continue_final_message": True},
        )

    def _ask(self, conversation: Conversation | list[Mapping[str, str]], **parameters: Any) -> Any:
        """One request. Its failures are told without the request's text, which may be restricted."""
        import openai

        try:
            return self.client.chat.completions.create(
                model=self.settings.model, messages=list(conversation), **parameters
            )
        except openai.APIStatusError as error:
            raise UserError(
                f"the server at {self._host} answered {error.status_code} for engine.model={self.settings.model}; "
                f"see its log, and check the model's name, engine.max_model_len and {KEY}"
            ) from None
        except openai.APIConnectionError as error:
            raise UserError(
                f"the server at {self._host} does not answer ({type(error).__name__}); start it, or mend "
                "engine.endpoint, and submit again: finished shards stay"
            ) from None

    @property
    def _host(self) -> str:
        return urlsplit(self.settings.endpoint).netloc


def _top(reply: Any) -> dict[str, float]:
    """Probabilities of the first token's likeliest values, by their text."""
    content = reply.choices[0].logprobs.content
    return {top.token.strip(): math.exp(top.logprob) for top in content[0].top_logprobs} if content else {}
