"""Shared by the engines that run in this process: tokenization of conversations, and constrained choice."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from lumen_hpc.errors import UserError
from lumen_hpc.language.protocol import Completion, Conversation, Engine
from lumen_hpc.plain_text import PlainText

Tokens = list[int]
PROMPT_DATE = datetime(2024, 7, 26)
"""Today's date, for chat templates that print a date (Llama 3.2's, Mistral's): prompts must not depend on the day."""


class InProcessEngine(Engine):
    """A model in this process that continues prompts of token ids; `tokenizer` is the model's own."""

    tokenizer: Any

    def _continue(
        self, conversations: Sequence[Conversation], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]:
        encoded = encode_prompts(self.tokenizer, conversations, max_tokens, self.settings.max_model_len)
        return self._generate(encoded, max_tokens, temperature, seeds)

    def _choose(self, conversations: Sequence[Conversation], choices: Sequence[str]) -> list[Completion]:
        longest = max(len(self.tokenizer.encode(choice, add_special_tokens=False)) for choice in choices)
        encoded = encode_prompts(self.tokenizer, conversations, longest, self.settings.max_model_len)
        return most_probable(self.tokenizer, encoded, choices, self._next)

    @abstractmethod
    def _generate(
        self, encoded: list[Tokens], max_tokens: int, temperature: float, seeds: list[int]
    ) -> list[Completion]: ...

    @abstractmethod
    def _next(self, encoded: list[Tokens], following: list[int]) -> list[list[float]]:
        """Unnormalized probabilities of the tokens `following` as the next token of each prompt."""


def encode_prompts(
    tokenizer: Any, conversations: Sequence[Conversation], max_tokens: int, max_model_len: int
) -> list[Tokens]:
    """Token ids of each conversation in the model's own chat template, up to the start of the assistant's turn.

    Control tokens in the messages become plain text: a message cannot open or close a turn. Raises UserError for a
    model without a chat template, or a conversation that leaves no room for `max_tokens`.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "the model's tokenizer has no chat template; take an instruction-tuned model, or put the "
            "chat_template.jinja of its kind into its folder"
        )
    control_tokens = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}
    plain_text = PlainText(control_tokens)
    texts = [_apply_template(tokenizer, _plain_messages(conversation, plain_text)) for conversation in conversations]
    encoded = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    longest = max(map(len, encoded), default=0)
    if longest + max_tokens > max_model_len:
        raise UserError(
            f"a conversation of {longest} tokens leaves no room for {max_tokens} more within "
            f"engine.max_model_len={max_model_len}; raise it"
        )
    specials = {number for number in control_tokens.values() if tokenizer.added_tokens_decoder[number].special}
    expected_counts: dict[tuple[str, ...], int] = {}  # control tokens of the template alone, by its roles
    for conversation, tokens in zip(conversations, encoded, strict=True):
        roles = tuple(message["role"] for message in conversation)
        if roles not in expected_counts:
            empty = [{"role": role, "content": "text"} for role in roles]
            text = _apply_template(tokenizer, empty)
            expected_counts[roles] = _count(tokenizer.encode(text, add_special_tokens=False), specials)
        if _count(tokens, specials) != expected_counts[roles]:
            raise UserError("a message contains a control token of the model in a form that is not recognized")
    return encoded


def _apply_template(tokenizer: Any, conversation: list[dict[str, str]], reply_follows: bool = True) -> str:
    """A conversation in the chat template; the system's words open the first question where it takes no system.

    Gemma 2's template refuses such a message, and others leave it out without a word.
    """
    from jinja2 import TemplateError

    first_message, *other_messages = conversation
    variants = [conversation]
    if first_message["role"] == "system" and other_messages:
        variants.append(
            [
                {**other_messages[0], "content": f"{first_message['content']}\n\n{other_messages[0]['content']}"},
                *other_messages[1:],
            ]
        )
    refusal = ""
    for messages in variants:
        try:
            text = tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=reply_follows,
                tokenize=False,
                date_string=PROMPT_DATE.strftime("%d %b %Y"),
                strftime_now=PROMPT_DATE.strftime,
                enable_thinking=False,  # a sentence, or a score at once: reasoning would take its room
            )
        except TemplateError as error:
            refusal = str(error)
            continue
        if messages is variants[-1] or first_message["content"].strip() in text:
            return text
    raise UserError(f"the model's chat template refuses a conversation ({refusal}); take another model")


def end_of_turn(tokenizer: Any) -> int:
    """The token that ends an assistant's turn in the chat template, which may be another than `eos_token`.

    It is in Gemma (`<end_of_turn>`, `<eos>`) and Phi (`<|end|>`, `<|endoftext|>`): after a whole answer they do not
    write theirs.
    """
    turns = [{"role": "user", "content": "text"}, {"role": "assistant", "content": "reply"}]
    _, reply, text_after = _apply_template(tokenizer, turns, reply_follows=False).rpartition("reply")
    added_tokens = tokenizer.added_tokens_decoder
    tokens = tokenizer.encode(text_after, add_special_tokens=False) if reply else []
    return next(
        (token for token in tokens if token in added_tokens and added_tokens[token].special), tokenizer.eos_token_id
    )


def _plain_messages(conversation: Conversation, plain: PlainText) -> list[dict[str, str]]:
    return [{**message, "content": plain(message["content"])} for message in conversation]


def _count(tokens: Tokens, specials: set[int]) -> int:
    return sum(token in specials for token in tokens)


def most_probable(
    tokenizer: Any,
    encoded: list[Tokens],
    choices: Sequence[str],
    probabilities: Callable[[list[Tokens], list[int]], list[list[float]]],
) -> list[Completion]:
    """The most probable of the choices after each prompt, with the probability of every choice.

    A choice's probability is the product of its tokens' probabilities, each normalized over the tokens that can
    continue some choice; so it is correct where `10` is one token (Llama-3) and where it is two (Qwen2, SmolLM2).
    `probabilities` returns, for prompts and token ids, their unnormalized probabilities as the next token.
    """
    end = end_of_turn(tokenizer)
    paths = [(*tokenizer.encode(choice, add_special_tokens=False), end) for choice in choices]
    choice_probabilities = [[1.0] * len(choices) for _ in encoded]
    for prefix in sorted({path[:i] for path in paths for i in range(len(path))}):
        following = sorted({path[len(prefix)] for path in paths if path[: len(prefix)] == prefix})
        if len(following) == 1:
            continue
        mass_rows = probabilities([[*prompt, *prefix] for prompt in encoded], following)
        for row, mass in zip(choice_probabilities, mass_rows, strict=True):
            total = sum(mass)
            if not total > 0:  # NaN too
                raise UserError(
                    "the model's probabilities are no numbers: its values overflow; take another engine.dtype "
                    "(bfloat16 or float32)"
                )
            for i, path in enumerate(paths):
                if path[: len(prefix)] == prefix:
                    row[i] *= mass[following.index(path[len(prefix)])] / total
    best = [max(range(len(choices)), key=row.__getitem__) for row in choice_probabilities]
    return [Completion(choices[i], tuple(row)) for i, row in zip(best, choice_probabilities, strict=True)]
