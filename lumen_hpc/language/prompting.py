"""Conversations for the engines, from the versioned prompt files in `prompts/`.

The last message contains its material in labelled lines (`Type:`, `Question:`, …); the messages before it are the
same in every conversation of a type.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import yaml

from lumen_hpc.data.diff_vqa import TYPES
from lumen_hpc.errors import UserError

FOLDER = Path(__file__).parent / "prompts"


@cache
def read_prompt(name: str) -> dict:
    """The contents of a prompt file: `version`, the static text and the examples."""
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


def rewrite_prompt(kind: str, question: str, short_answer: str) -> list[dict[str, str]]:
    """The conversation that requests a whole sentence (section 2.2), or a prediction (section 2.4)."""
    prompt = read_prompt("rewrite")
    if kind not in prompt["examples"]:
        name = f"type {kind}" if kind in TYPES else "a type that no question has"  # a message holds no record's text
        raise UserError(f"lumen_hpc/language/prompts/rewrite.yaml has no examples of {name}; add some there")
    messages = [_message("system", prompt["prediction" if kind == "prediction" else "system"])]
    for example_question, example_answer, sentence in prompt["examples"][kind]:
        messages += [
            _message("user", _material(kind, question=example_question, short_answer=example_answer)),
            _message("assistant", sentence),
        ]
    return [*messages, _message("user", _material(kind, question=question, short_answer=short_answer))]


def verify_prompt(kind: str, question: str, short_answer: str, sentence: str) -> list[dict[str, str]]:
    """The conversation that asks whether a sentence states exactly its short answer (`rewrite.verify`)."""
    prompt = read_prompt("verify")
    messages = [_message("system", prompt["system"])]
    for *material, reply in prompt["examples"]:
        messages += [_message("user", _verify_material(*material)), _message("assistant", reply)]
    return [*messages, _message("user", _verify_material(kind, question, short_answer, sentence))]


def judge_prompt(kind: str, question: str, long_answer: str, answer: str) -> list[dict[str, str]]:
    """The conversation that requests a score from 1 to 10 (section 2.5)."""
    prompt = read_prompt("judge")
    messages = [_message("system", prompt["system"])]
    for example_kind, example_question, example_long_answer, example_answer, score in prompt["examples"]:
        material = _judge_material(example_kind, example_question, example_long_answer, example_answer)
        messages += [_message("user", material), _message("assistant", score)]
    return [*messages, _message("user", _judge_material(kind, question, long_answer, answer))]


def material(conversation) -> dict[str, str]:
    """The labelled lines of a conversation's last message, by label; the grammar engine reads them.

    A text may be empty: an untrained model's answer often is.
    """
    lines = (line.partition(":") for line in conversation[-1]["content"].splitlines())
    return {label: text.strip() for label, _, text in lines}


def quoted_material(conversation) -> dict[str, str]:
    """As `material`, of a conversation of `judge_prompt`, whose texts are quoted."""
    return {label: json.loads(text) if text[:1] == '"' else text for label, text in material(conversation).items()}


def _verify_material(kind: str, question: str, short_answer: str, sentence: str) -> str:
    return _json_material(kind, question=question, short_answer=short_answer, sentence=sentence)


def _judge_material(kind: str, question: str, long_answer: str, answer: str) -> str:
    return _json_material(kind, question=question, reference=long_answer, answer=answer)


def _json_material(kind: str, **fields: str) -> str:
    """Material of which each text is a JSON string: its end cannot be imitated from within."""
    return _material(
        kind, **{name: json.dumps(" ".join(text.split()), ensure_ascii=False) for name, text in fields.items()}
    )


def _material(kind: str, **fields: str) -> str:
    lines = {"Type": kind} | {name.replace("_", " ").capitalize(): text for name, text in fields.items()}
    return "\n".join(f"{label}: {' '.join(text.split())}" for label, text in lines.items())


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content.strip()}
