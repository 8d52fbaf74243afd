"""Prompts of the engines that run in this process."""

from __future__ import annotations

import math

import pytest

from lumen_hpc.errors import UserError
from lumen_hpc.language.in_process import encode_prompts, end_of_turn, most_probable

LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n{{ messages[0]['content'] }}"
)
MISTRAL = "{% set today = strftime_now('%Y-%m-%d') %}The current date is {{ today }}.\n{{ messages[0]['content'] }}"


GEMMA = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<start>{{ message['role'] }}\n{{ message['content'] | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
WITHOUT_SYSTEM = (
    "{% for message in messages if message['role'] != 'system' %}<start>{{ message['content'] }}<end>\n{% endfor %}"
)
THINKING = (
    "{{ messages[0]['content'] }}{% if enable_thinking is not defined or enable_thinking %}<start>think{% endif %}"
)
SYSTEM_FIRST = [
    {"role": "system", "content": "The rubric."},
    {"role": "user", "content": "One."},
    {"role": "assistant", "content": "10"},
    {"role": "user", "content": "Two."},
]


def bytewise(template: str):
    """A tokenizer of single bytes and four control tokens; `<eos>` is its own end, which no template writes."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel

    from lumen_hpc import torchvision_compat  # noqa: F401  (before transformers, which looks at torchvision)
    from transformers import PreTrainedTokenizerFast  # isort: skip

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevel()
    backend.add_special_tokens(["<start>", "<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, eos_token="<eos>")


@pytest.mark.parametrize(("template", "date"), [(LLAMA, "26 Jul 2024"), (MISTRAL, "2024-07-26")])
def test_a_template_that_prints_the_date_gives_the_same_prompt_every_day(template, date):
    tokenizer = bytewise(template)
    (ids,) = encode_prompts(tokenizer, [[{"role": "user", "content": "Hello"}]], 8, 512)
    assert date in tokenizer.decode(ids)


@pytest.mark.parametrize("template", [GEMMA, WITHOUT_SYSTEM])
def test_a_template_without_a_system_role_has_its_words_before_the_first_question(template):
    tokenizer = bytewise(template)
    (ids,) = encode_prompts(tokenizer, [SYSTEM_FIRST], 8, 512)
    text = tokenizer.decode(ids)
    assert text.count("The rubric.\n\nOne.<end>") == text.count("The rubric.") == 1 and "10<end>" in text


def test_conversations_of_different_roles_are_prompts_of_one_call():
    tokenizer = bytewise(GEMMA)
    both = encode_prompts(tokenizer, [SYSTEM_FIRST, SYSTEM_FIRST[1:2]], 8, 512)
    assert both == [
        *encode_prompts(tokenizer, [SYSTEM_FIRST], 8, 512),
        *encode_prompts(tokenizer, [SYSTEM_FIRST[1:2]], 8, 512),
    ]


def test_a_template_that_takes_no_conversation_is_an_error_with_its_reason():
    tokenizer = bytewise("{{ raise_exception('tools only') }}")
    with pytest.raises(UserError, match=r"refuses a conversation \(tools only\)"):
        encode_prompts(tokenizer, [SYSTEM_FIRST], 8, 512)


def test_a_model_that_can_think_is_asked_for_its_answer_at_once():
    tokenizer = bytewise(THINKING)
    (ids,) = encode_prompts(tokenizer, [SYSTEM_FIRST], 8, 512)
    assert "think" not in tokenizer.decode(ids)


def test_a_prompt_leaves_room_for_its_answer_to_the_token():
    tokenizer = bytewise(GEMMA)
    (ids,) = encode_prompts(tokenizer, [SYSTEM_FIRST], 8, 512)
    assert encode_prompts(tokenizer, [SYSTEM_FIRST], 8, len(ids) + 8) == [ids]
    with pytest.raises(UserError, match=f"of {len(ids)} tokens leaves no room for 8 more"):
        encode_prompts(tokenizer, [SYSTEM_FIRST], 8, len(ids) + 7)


def test_a_choice_ends_with_the_token_that_ends_a_turn_in_the_template():
    """Gemma never writes its eos_token after an answer: a 1 that could go on as 10 would always be a 10."""
    tokenizer = bytewise(GEMMA)
    one, zero, seven, end = (tokenizer.convert_tokens_to_ids(token) for token in ("1", "0", "7", "<end>"))
    assert end_of_turn(tokenizer) == end != tokenizer.eos_token_id
    assert end_of_turn(bytewise("{{ messages[0]['content'] }}")) == tokenizer.eos_token_id
    after = {(): {one: 0.3, seven: 0.1}, (one,): {zero: 0.2, end: 0.6, tokenizer.eos_token_id: 0.0}}

    def probabilities(encoded, following):
        return [[after[tuple(prompt)][token] for token in following] for prompt in encoded]

    (completion,) = most_probable(tokenizer, [[]], ("1", "7", "10"), probabilities)
    # 3/4 of the first token, of which 3/4 end there
    assert completion.text == "1" and completion.choice_probabilities == pytest.approx((9 / 16, 4 / 16, 3 / 16))


@pytest.mark.parametrize("value", [math.nan, 0.0])
def test_a_model_that_overflows_gives_no_score(value):
    with pytest.raises(UserError, match=r"take another engine\.dtype"):
        most_probable(bytewise(GEMMA), [[]], ("1", "7"), lambda encoded, following: [[value] * 2])
