import numpy as np
import pytest

from lumen_hpc.errors import UserError
from lumen_hpc.nvila.chat import IGNORE, Tokenizer, encode, place_images, render
from lumen_hpc.nvila.tiny import train_tokenizer

TOKENIZER = train_tokenizer(["Nothing has changed. The heart is normal."], 400)


def _turn(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def _learned(messages, **options):
    _, labels = encode(messages, TOKENIZER, **options)
    return TOKENIZER.backend.decode(labels[labels != IGNORE].tolist(), skip_special_tokens=False)


def test_chatml_has_the_default_system_message_and_strips():
    text, _ = render(_turn(" What? ", "Nothing.\n"), generation=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\nNothing.<|im_end|>\n"
    )


def test_an_own_system_message_replaces_the_default():
    text, _ = render([{"from": "system", "value": "Be brief"}, *_turn("What?", "No.")], generation=True)
    assert text.startswith("<|im_start|>system\nBe brief<|im_end|>\n<|im_start|>user")
    assert text.endswith("<|im_start|>assistant\n")


def test_labels_are_the_answers_with_their_ends_and_nothing_else():
    messages = _turn("What changed?", "The heart\n\nis normal.\nNothing.") + _turn("Normal?", "Nothing has changed.")
    assert _learned(messages) == "The heart\n\nis normal.\nNothing.<|im_end|>Nothing has changed.<|im_end|>"


def test_a_prompt_has_no_labels_even_where_it_quotes_answers():
    messages = [*_turn("What?", "No."), {"from": "human", "value": "Normal?"}]
    ids, labels = encode(messages, TOKENIZER, generation=True)
    assert (labels == IGNORE).all()
    assert TOKENIZER.backend.decode(ids.tolist(), skip_special_tokens=False).endswith("<|im_start|>assistant\n")


def test_official_labels_repeat_the_newline_bug_and_only_it():
    plain, broken = _turn("What?", "Nothing has changed."), _turn("What?", "The heart\nis normal.")
    assert _learned(plain, official_labels=True) == _learned(plain)
    assert _learned(broken, official_labels=True) == "The heartis normal.<|im_end|>\n"


def test_pictures_open_the_first_question_in_their_order():
    placed = place_images(_turn("<image>\nWhat <image>?", "No."), [1, 1], "dynamic_s2", inline=False)
    assert placed[0]["value"] == "<image><image>What ?"
    placed = place_images(_turn("What?", "No."), [2, 1], "dynamic", inline=False)
    assert placed[0]["value"] == "<image>\n<image>\n<image>\nWhat?"


def test_inline_pictures_stay_where_the_text_has_them():
    messages = _turn("Before: <image> now: <image>", "No.")
    assert place_images(messages, [1, 2], "dynamic", inline=True)[0]["value"] == (
        "Before: <image>\n now: <image>\n<image>\n"
    )
    with pytest.raises(UserError, match="2 <image> but 1 images"):
        place_images(messages, [1], "dynamic", inline=True)


def test_an_unknown_sender_is_named():
    with pytest.raises(UserError, match="'robot'"):
        encode([{"from": "robot", "value": "hello"}], TOKENIZER)


def test_ids_are_looked_up_by_name_whatever_their_order():
    other = train_tokenizer(["Nothing has changed. The heart is normal. Something else entirely."], 500)
    assert other.image != TOKENIZER.image
    assert other.backend.id_to_token(other.image) == "<image>"
    assert other.decode([*other.encode("The heart"), other.end, other.pad]) == "The heart"


def test_a_tokenizer_without_its_files_is_refused():
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_files({"llm/generation_config.json": b"{}"})


def test_vocab_and_merges_make_the_same_tokenizer(golden):
    from lumen_hpc.nvila.config_files import read_config

    files = read_config(golden / "ckpt_s2").files
    whole = Tokenizer.from_files(files)
    parts = Tokenizer.from_files({k: v for k, v in files.items() if k != "llm/tokenizer.json"})
    messages = _turn("It's <image>\nthe heart's 12 leads, é?", "No;\n it hasn't.")
    assert np.array_equal(encode(messages, whole)[0], encode(messages, parts)[0])
    assert parts.image == whole.image
