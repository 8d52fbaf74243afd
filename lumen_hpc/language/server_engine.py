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
"""Tries after the first, with growing pauses between them."""
CONCURRENT = 64
"""Concurrent requests; the server batches them."""


class ServerEngine(Engine):
    """One model on a server; requests run concurrently and completions keep their order."""

    def __init__(self, settings: schema.EngineSettings, allowed_endpoints: Sequence[str] | None) -> None:
        super().__init__(settings)
        check_endpoint(settings.endpoint, allowed_endpoints)
        from openai import OpenAI

        self.client = OpenAI(
            base_url=settings.endpoint,
            api_key=os.environ.get(KEY) or "none",
            max_retries=RETRIES,
            timeout=settings.timeout,
        )

    def _continue(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        def one(conversation: Conversation, seed: int) -> Completion:
            reply = self._request(conversation, max_tokens=max_tokens, temperature=temperature, seed=seed)
            return Completion((reply.choices[0].message.content or "").strip(), reply.usage.completion_tokens)

        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(one, conversations, seeds))

    def _choose(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Completion]:
        with ThreadPoolExecutor(CONCURRENT) as pool:
            return list(pool.map(lambda conversation: self._choose_one(conversation, choices), conversations))

    def _choose_one(self, conversation: Conversation, choices: Sequence[str]) -> Completion:
        """Constrained choice, with the server's own probabilities.

        They are those of the first token, and of the second where one choice is a prefix of another (1 and 10) and the
        model writes digit by digit.
        """
        reply = self._request(
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
        for prefix in choices:
            longer = [choice for choice in choices if choice.startswith(prefix) and choice != prefix]
            if longer and mass[prefix] and not any(mass[choice] for choice in longer):
                continuations = _top(self._continued(conversation, prefix))
                for choice in longer:
                    mass[choice] = mass[prefix] * continuations.get(choice[len(prefix) :], 0.0)
                mass[prefix] -= sum(mass[choice] for choice in longer)
        total = sum(mass.values())
        if not total:  # no choice is among the 20 likeliest tokens: only the choice itself is known
            mass, total = {choice: float(choice == text) for choice in choices}, 1.0
        return Completion(text, reply.usage.completion_tokens, tuple(mass[choice] / total for choice in choices))

    def _continued(self, conversation: Conversation, prefix: str) -> Any:
        """The model's continuation of an answer that starts with `prefix`."""
        return self._request(
            [*conversation, {"role": "assistant", "content": prefix}],
            max_tokens=1,
            temperature=0.0,
            logprobs=True,
            top_logprobs=20,
            extra_body={"add_generation_prompt": False, "continue_final_message": True},
        )

    def _request(self, conversation: Conversation | list[Mapping[str, str]], **parameters: Any) -> Any:
        """Sends one request. Its errors never contain the request's text, which may be restricted."""
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
                f"the server at {self._host} does not answer ({type(error).__name__}); start it, or correct "
                "engine.endpoint, and submit again: finished shards stay"
            ) from None

    @property
    def _host(self) -> str:
        return urlsplit(self.settings.endpoint).netloc


def _top(reply: Any) -> dict[str, float]:
    """Probabilities of the first token's likeliest values, by their text."""
    content = reply.choices[0].logprobs.content
    return {top.token.strip(): math.exp(top.logprob) for top in content[0].top_logprobs} if content else {}
