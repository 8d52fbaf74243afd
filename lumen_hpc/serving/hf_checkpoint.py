"""A checkpoint as transformers and vLLM ask for it: its configuration, its tokenizer, its chat template.

Both read a folder through `nvila.config_files.read_config`, so the official and the flat layout look alike to vLLM.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerFast, Qwen2Config, SiglipVisionConfig

from lumen_hpc.errors import UserError
from lumen_hpc.nvila.chat import END, IMAGE, PAD, START, SYSTEM, Tokenizer
from lumen_hpc.nvila.config import NVILAConfig
from lumen_hpc.nvila.config_files import read_config
from lumen_hpc.plain_text import control_tokens

ARCHITECTURE = "NVILAForConditionalGeneration"
"""The model's class, in vLLM's registry and in a checkpoint's configuration."""


class NVILAFolderConfig(PretrainedConfig):
    """The official layout. `folder` is where weights and small files are read from, here and in worker processes."""

    model_type = "llava_llama"

    def __init__(
        self,
        text_config: dict[str, Any] | None = None,
        vision_config: dict[str, Any] | None = None,
        folder: str = "",
        **kwargs: Any,
    ) -> None:
        self.text_config = Qwen2Config(**(text_config or {}))
        self.vision_config = SiglipVisionConfig(**(vision_config or {}))
        self.folder = folder
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """From the root `config.json` that transformers read; the parts' own files are read here."""
        folder = kwargs.get("name_or_path") or config_dict.get("folder") or config_dict.get("_name_or_path")
        if not folder or not Path(folder).is_dir():
            raise UserError(f"{folder}: NVILA opens from a folder; stage it with stage=fetch and give its path")
        config = read_config(folder)
        values = {
            "architectures": [ARCHITECTURE],
            "text_config": config.llm | {"architectures": ["Qwen2ForCausalLM"]},
            "vision_config": config.vision_tower,
            "folder": str(Path(folder).absolute()),
            "eos_token_id": stop_ids(config),
            "tie_word_embeddings": bool(config.llm.get("tie_word_embeddings")),
            "torch_dtype": config.dtype,
        }
        return super().from_dict(values, **kwargs)


class FlatConfig(NVILAFolderConfig):
    """The flat layout of `NVILA-8B-hf`."""

    model_type = "nvila"
    __init__ = NVILAFolderConfig.__init__  # a subclass without its own gets one that keeps dictionaries


class FlatLiteConfig(NVILAFolderConfig):
    """The flat layout of NVILA-Lite."""

    model_type = "nvila_lite"
    __init__ = NVILAFolderConfig.__init__  # a subclass without its own gets one that keeps dictionaries


CONFIGS = (NVILAFolderConfig, FlatConfig, FlatLiteConfig)


class NVILATokenizer(PreTrainedTokenizerFast):
    """The tokenizer of a checkpoint in the official layout, which keeps it in `llm/`."""

    @classmethod
    def from_pretrained(cls, folder: str | Path, *inputs: Any, **kwargs: Any) -> NVILATokenizer:
        """The very tokenizer of `nvila.load`, with the chat template of the checkpoint's family."""
        config = read_config(folder)
        tokenizer = cls(
            tokenizer_object=Tokenizer.from_files(config.files).backend,
            eos_token=END,
            pad_token=PAD,
            additional_special_tokens=[START, END],
            clean_up_tokenization_spaces=False,
            model_max_length=config.max_length,
            truncation_side=kwargs.get("truncation_side", "right"),
            chat_template=chat_template(config),
        )
        tokenizer.name_or_path = str(folder)
        return tokenizer


def stop_ids(config: NVILAConfig) -> list[int]:
    """Ids that end an answer, ascending: `<|im_end|>` and the eos tokens of generation_config.json."""
    return sorted({Tokenizer.from_files(config.files).end, *config.eos_ids})


def chat_template(config: NVILAConfig) -> str:
    """ChatML as `nvila.chat.render` writes it, for messages in OpenAI's form.

    An image stands where its part stands among the text parts; where the texts have `<image>` themselves, it stands
    there, and another number of them than of images is refused. With `dynamic` a newline follows each image, as the
    official training has it. Control tokens in the texts become plain text.
    """
    pairs = [(token, f"{token[0]} {token[1:]}") for token in _control_tokens(config)]
    filters = "".join(f" | replace({_jinja_string(token)}, {_jinja_string(text)})" for token, text in pairs)
    mark = IMAGE + "\\n" if config.aspect == "dynamic" else IMAGE
    template = _TEMPLATE.replace(" | PLAIN", filters).replace("MARK", mark)
    return template.replace("SYSTEM", SYSTEM).replace("START", START).replace("END", END)


def _control_tokens(config: NVILAConfig) -> list[str]:
    """The tokenizer's control tokens but `<image>`, longest first: what `chat.encode` takes for plain text in data."""
    added = Tokenizer.from_files(config.files).backend.get_added_tokens_decoder().values()
    return control_tokens(token.content for token in added if token.content != IMAGE)


def _jinja_string(text: str) -> str:
    """A Jinja string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}{{- 'STARTsystem\\nSYSTEMEND\\n' -}}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}"
    '{{- raise_exception("a message\'s role is system, user or assistant") -}}'
    "{%- endif -%}"
    "{%- set turn = namespace(text='', marked=false) -%}"
    "{%- if message['content'] is string -%}{%- set turn.text = message['content'] -%}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if '<image>' in (part['text'] or '') -%}{%- set turn.marked = true -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'text' -%}{%- set turn.text = turn.text + part['text'] -%}"
    "{%- elif not turn.marked -%}{%- set turn.text = turn.text + '<image>' -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{%- set images = 0 if message['content'] is string else "
    "message['content'] | rejectattr('type', 'equalto', 'text') | list | length -%}"
    "{%- set marks = turn.text.split('<image>') | length - 1 -%}"
    "{%- if marks != images -%}"
    "{{- raise_exception('the text has ' ~ marks ~ ' <image> but ' ~ images ~ ' images are given') -}}"
    "{%- endif -%}"
    "{{- 'START' + message['role'] + '\\n' + (turn.text | PLAIN | replace('<image>', 'MARK') | trim) + 'END\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'STARTassistant\\n' -}}{%- endif -%}"
)
