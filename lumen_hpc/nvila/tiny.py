"""Makes a small random NVILA in the official layout, with a tokenizer trained on given texts.

Its sizes are the phantom demo's: 64 px pictures of 8 px patches, 16 language-model tokens a picture, four layers
(`pretrain.layers`), 1.7 M parameters.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from .chat import END, IMAGE, PAD, SENTINEL, START, SYSTEM, VIDEO, Tokenizer
from .config import NVILAConfig
from .config_files import dump_json
from .new_config import official_config

SPECIAL_TOKENS = ("<|endoftext|>", START, END, "[BOS]", PAD, SENTINEL, IMAGE, VIDEO)
"""Special tokens in the order of NVILA-8B."""
_QWEN_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are a helpful assistant<|im_end|>\\n' }}"
    "{% endif %}{% for message in messages if message['content'] is not none %}{{ '<|im_start|>' + message['role'] + "
    "'\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> Tokenizer:
    """Byte-level BPE with Qwen2's splitting, of at most `vocab_size` pieces and the special tokens after them.

    With a vocabulary as small as the phantoms', whole words become single tokens.
    """
    backend = Backend(models.BPE(continuing_subword_prefix="", end_of_word_suffix=""))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([SYSTEM, "user assistant system", *texts], trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL_TOKENS])
    return Tokenizer(backend)


def tokenizer_files(tokenizer: Tokenizer, max_length: int) -> dict[str, bytes]:
    """A tokenizer's files as transformers saves a Qwen2Tokenizer, by their path in a checkpoint."""
    ids = {name: tokenizer.id(name) for name in SPECIAL_TOKENS}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    settings = {
        "added_tokens_decoder": {str(i): {"content": n, **flags, "special": True} for n, i in ids.items()},
        "additional_special_tokens": [START, END],
        "bos_token": "[BOS]",
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END,
        "errors": "replace",
        "model_max_length": max_length,
        "pad_token": PAD,
        "padding_side": "right",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    names = {"bos_token": "[BOS]", "eos_token": END, "pad_token": PAD}
    special = {"additional_special_tokens": [START, END]} | {k: {"content": v, **flags} for k, v in names.items()}
    folder_files = {
        "tokenizer.json": tokenizer.backend.to_str(pretty=True).encode(),
        "tokenizer_config.json": dump_json(settings),
        "special_tokens_map.json": dump_json(special),
        "added_tokens.json": dump_json(ids),
        "generation_config.json": dump_json({"bos_token_id": ids["[BOS]"], "eos_token_id": ids[END]}),
    }
    return {f"llm/{name}": content for name, content in folder_files.items()}


def make_tiny(
    texts: Iterable[str],
    *,
    seed: int = 0,
    aspect: str = "resize",
    projector: str = "mlp_downsample_2x2_fix",
    image_size: int = 64,
    patch_size: int = 8,
    vision_width: int = 128,
    vision_layers: int = 3,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    kv_heads: int = 2,
    vocab_size: int = 1024,
    tiles: tuple[int, int] = (1, 12),
    max_length: int = 8192,
):
    """A random float32 NVILA in evaluation mode, whose tokenizer is trained on `texts`; `save` writes it.

    The same seed and sizes give the same weights; the process's random state is left alone.
    """
    from .model import NVILA

    tokenizer = train_tokenizer(texts, vocab_size)
    config: NVILAConfig = official_config(
        vision={
            "hidden_size": vision_width,
            "image_size": image_size,
            "intermediate_size": 4 * vision_width,
            "num_attention_heads": heads,
            "num_hidden_layers": vision_layers,
            "patch_size": patch_size,
        },
        llm={
            "bos_token_id": tokenizer.id("[BOS]"),
            "eos_token_id": tokenizer.end,
            "hidden_size": width,
            "intermediate_size": 11 * width // 4,
            "max_position_embeddings": max_length,
            "model_max_length": max_length,
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "num_key_value_heads": kv_heads,
            "vocab_size": tokenizer.backend.get_vocab_size(with_added_tokens=True),
        },
        aspect=aspect,
        projector=projector,
        scales=(image_size, 2 * image_size, 3 * image_size),
        tiles=tiles,
    )
    config.files |= tokenizer_files(tokenizer, max_length)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NVILA(config, tokenizer).eval()
