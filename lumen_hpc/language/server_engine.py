"""Any server that speaks OpenAI's chat completions, such as `vllm serve`.

Requests go through `http_client`, straight to the address that the data-use gate checked.
"""

from __future__ import annotations

import logging
import math
import os
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.language.endpoints import check_endpoint
from lumen_hpc.language.http_client import FAILURES, RETRYABLE, Client, StatusError
from lumen_hpc.language.protocol import Completion, Conversation, Engine
from lumen_hpc.plain_text import PlainText

KEY = "LUMEN_API_KEY"
"""The environment variable that holds the server's key; it is never read from, or written to, a file."""
RETRIES = 4
"""Tries after the first, with growing pauses between them."""
CONCURRENT_REQUESTS = 64
"""Concurrent requests; the server batches them."""


log = logging.getLogger(__name__)
_PLAIN_TEXT = PlainText()


class ServerEngine(Engine):
    """One model on a server; requests run concurrently and completions keep their order."""

    @classmethod
    def open(
        cls, settings: schema.EngineSettings, *, allowed_endpoints: Sequence[str] | None, ranks: Ranks, rendezvous: Path
    ) -> ServerEngine:
        """See `Engine.open`."""
        return cls(settings, allowed_endpoints)

    def __init__(self, settings: schema.EngineSettings, allowed_endpoints: Sequence[str] | None) -> None:
        super().__init__(settings)
        check_endpoint(settings.endpoint, allowed_endpoints)
        key = os.environ.get(KEY, "").strip() or "none"  # the end of a file's line is no part of it
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{KEY} holds characters that no key has; set it again")
        self.client = Client(
            settings.endpoint,
            key,
            timeout=settings.timeout,
            retries=RETRIES,
            restricted=allowed_endpoints is not None,
        )

    def _continue(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        def complete(conversation: Conversation, seed: int) -> Completion:
            return Completion(
                self._request(conversation, max_tokens=max_tokens, temperature=temperature, seed=seed).text
            )

        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            return list(pool.map(complete, conversations, seeds))

    def _choose(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Completion]:
        with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
            replies = list(pool.map(lambda conversation: self._choose_one(conversation, choices), conversations))
        if unknown := sum(not has_probabilities for _, has_probabilities in replies):
            log.warning(
                "%d of %d choices of %s came without log probabilities: each counts as certain, so that an expected "
                "score is the score itself",
                unknown,
                len(replies),
                self.name,
            )
        return [completion for completion, _ in replies]

    def _choose_one(self, conversation: Conversation, choices: Sequence[str]) -> tuple[Completion, bool]:
        """Constrained choice, with the server's own probabilities; False where it gives none of a choice.

        They are those of the first token, and of the second where one choice is a prefix of another (1 and 10) and the
        model writes digit by digit.
        """
        reply = self._request(
            conversation,
            max_tokens=8,
            temperature=0.0,
            logprobs=True,
            top_logprobs=20,
            structured_outputs={"choice": list(choices)},
        )
        if not reply.text:
            raise UserError(
                f"the server at {self._host} chose nothing from a list of choices: its content filter refused the text "
                "or its model spends its tokens on reasoning; turn that off at the server, or name another model"
            )
        if reply.text not in choices:
            raise UserError(
                f"the server at {self._host} does not keep to a list of choices; it must know vLLM's structured_outputs"
            )
        token_probabilities = reply.top
        probabilities = {choice: token_probabilities.get(choice, 0.0) for choice in choices}
        for prefix in choices:
            longer_choices = [choice for choice in choices if choice.startswith(prefix) and choice != prefix]
            if longer_choices and probabilities[prefix] and not any(probabilities[choice] for choice in longer_choices):
                continuations = self._continuation(conversation, prefix).top
                for choice in longer_choices:
                    probabilities[choice] = probabilities[prefix] * continuations.get(choice[len(prefix) :], 0.0)
                probabilities[prefix] -= sum(probabilities[choice] for choice in longer_choices)
        total = sum(probabilities.values())
        if not total:  # no choice is among the 20 likeliest tokens: only the choice itself is known
            return Completion(reply.text, tuple(float(choice == reply.text) for choice in choices)), False
        best = max(choices, key=probabilities.__getitem__)
        return Completion(best, tuple(probabilities[choice] / total for choice in choices)), True

    def _continuation(self, conversation: Conversation, prefix: str) -> _Reply:
        """The model's continuation of an answer that starts with `prefix`."""
        return self._request(
            [*conversation, {"role": "assistant", "content": prefix}],
            max_tokens=1,
            temperature=0.0,
            logprobs=True,
            top_logprobs=20,
            add_generation_prompt=False,
            continue_final_message=True,
        )

    def _request(self, conversation: Conversation | list[Mapping[str, str]], **parameters: Any) -> _Reply:
        """Sends one request. Its errors never contain the request's text, which may be restricted."""
        request = {"model": self.settings.model, "messages": self._plain(conversation), **parameters}
        try:
            reply = _Reply(self.client.post("/chat/completions", request))
            self.beat("asks the server")
            return reply
        except UserError:  # the address was refused
            raise
        except StatusError as error:
            if error.code == "content_filter":  # of one question: no answer, as where the answer is filtered
                return _Reply({"choices": [{"message": {}}]})
            detail = f": the model does not take {error.param} so" if error.param in list(parameters) else ""
            raise UserError(
                f"the server at {self._host} answered {error.status} for engine.model={self.settings.model}{detail}; "
                f"{_fix(error.status)}"
            ) from None
        except (KeyError, IndexError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"the server at {self._host} does not answer as OpenAI's chat completions do ({type(error).__name__})"
            ) from None
        except ssl.SSLCertVerificationError as error:
            raise UserError(
                f"the server at {self._host} shows a certificate that is not accepted ({error.verify_message}); name "
                "your site's authority, or a self-signed certificate: export SSL_CERT_FILE=… in profile.setup"
            ) from None
        except TimeoutError:
            raise UserError(
                f"the server at {self._host} does not answer within engine.timeout={self.settings.timeout:g} s, with "
                f"{CONCURRENT_REQUESTS} requests at once; start it, or give it more time, and submit again: finished "
                "shards stay"
            ) from None
        except ValueError as error:
            raise UserError(
                f"the server at {self._host} does not answer in JSON ({type(error).__name__}); correct engine.endpoint "
                "or see its log"
            ) from None
        except FAILURES as error:
            raise UserError(
                f"the server at {self._host} does not answer ({type(error).__name__}); start it, or correct "
                "engine.endpoint, and submit again: finished shards stay"
            ) from None

    @staticmethod
    def _plain(conversation: Conversation | list[Mapping[str, str]]) -> list[dict[str, str]]:
        """Messages whose control tokens are plain text: the server's tokenizer would parse them."""
        return [{**message, "content": _PLAIN_TEXT(message["content"])} for message in conversation]

    @property
    def _host(self) -> str:
        return urlsplit(self.settings.endpoint).netloc


class _Reply:
    """What a run needs of a server's answer; raises KeyError or the like for another form."""

    def __init__(self, answer: Any) -> None:
        choice = answer["choices"][0]
        text = choice["message"].get("content") or ""  # none beside a call of a tool, or after a filter
        if isinstance(text, list):  # Mistral's reasoning models: parts, of which those of type `text` are the answer
            text = "".join(part["text"] for part in text if part["type"] == "text")
        encodable = text.encode(errors="replace").decode()  # half a character, which JSON can hold and a file cannot
        self.text = encodable.strip()
        entries = (choice.get("logprobs") or {}).get("content") or []
        token_pairs = [(entry["token"], _probability(entry["logprob"])) for entry in _first_values(entries, self.text)]
        token_pairs.sort(
            key=lambda it: (it[0] == it[0].strip(), it[1])
        )  # `1` counts before ` 1`, which no choice begins with
        self.top = {token.strip(): probability for token, probability in token_pairs}
        """Probabilities of the first token's likeliest values, by their text."""


def _first_values(entries: list[dict], text: str) -> list[dict]:
    """The likeliest values of a text's first token; none where the entries begin with another token, as of reasoning.

    A server that knows no constraint begins with a space or a line break, whose values say nothing of the text.
    """
    if text:
        entries = [entry for entry in entries if entry.get("token") is None or entry["token"].strip()]
    if not entries or (text and not text.startswith((entries[0].get("token") or "").strip())):
        return []
    return entries[0]["top_logprobs"]


def _fix(status: int) -> str:
    """What helps after an answer of this status."""
    if 300 <= status < 400:
        return "it redirects, and a redirect may lead to a server that may not see the data: name the last server"
    if status in (401, 403):
        return f"check {KEY}"
    if status == 404:
        return "check engine.model, and the path of engine.endpoint, which mostly ends in /v1"
    if status in RETRYABLE:
        return "it is busy, starting or failing: see its log, and submit again once it answers: finished shards stay"
    return "see its log: a conversation may be too long for it, or it may lack an option of vLLM's"


def _probability(logarithm: float) -> float:
    """Raises TypeError for what is no probability's logarithm: NaN, or more than rounding above 0."""
    if not logarithm < 1e-3:
        raise TypeError("a logarithm that is no probability's")
    return math.exp(logarithm)
