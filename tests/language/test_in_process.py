"""Prompts of the engines that run in this process."""

from __future__ import annotations

import pytest

from lumen_hpc.language.in_process import prompts

LLAMA = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}\n{{ messages[0]['content'] }}"
)
MISTRAL = "{% set today = strftime_now('%Y-%m-%d') %}The current date is {{ today }}.\n{{ messages[0]['content'] }}"


@pytest.mark.parametrize(("template", "date"), [(LLAMA, "26 Jul 2024"), (MISTRAL, "2024-07-26")])
def test_a_template_that_prints_the_date_gives_the_same_prompt_every_day(template, date):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from tokenizers.decoders import ByteLevel

    from lumen_hpc import torchvision_compat  # noqa: F401  (before transformers, which looks at torchvision)
    from transformers import PreTrainedTokenizerFast  # isort: skip

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)
    (ids,) = prompts(tokenizer, [[{"role": "user", "content": "Hello"}]], 8, 512)
    assert date in tokenizer.decode(ids)
