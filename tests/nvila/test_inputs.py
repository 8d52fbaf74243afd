import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.prompt_form import PromptForm


def test_a_preprocessor_needs_no_weights_and_can_be_sent_to_another_process(tiny, records, tmp_path):
    folder = nvila.save(tiny, tmp_path / "tiny")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    sent = pickle.loads(pickle.dumps(nvila.Preprocessor.open(folder)))
    want = tiny.preprocess(records)
    assert torch.equal(sent(records).input_ids, want.input_ids)
    assert torch.equal(sent(records).pixels, want.pixels)


def test_records_with_the_same_pictures_share_one_decoded_set(tiny, records, tmp_path):
    Image.fromarray(records[0]["images"][0]).save(tmp_path / "a.png")
    by_path = [{**record, "images": [str(tmp_path / "a.png")]} for record in records[:2]]
    for given in (records[:2], by_path):
        one, two = tiny.preprocess(given).samples
        assert one.tiles is two.tiles


@pytest.fixture
def trained(tiny, tmp_path):
    """A checkpoint whose note says that it was trained here."""
    tiny.config = tiny.config.with_prompt_form(PromptForm.trained(findings_line=True, line=("edema", "lung opacity")))
    return nvila.load(nvila.save(tiny, tmp_path / "trained"))


def test_a_trained_checkpoint_is_asked_in_its_own_form_by_default(trained, records):
    assert trained.config.prompt_form == PromptForm.trained(findings_line=True, line=("edema", "lung opacity"))
    asked = [{**records[2], "conversations": [{"from": "human", "value": "before: <image>\nafter: <image>\nWhat?"}]}]
    inline, front = (trained.preprocess(asked, generation=True, inline=choice).input_ids for choice in (True, False))
    assert not torch.equal(inline, front)
    assert torch.equal(trained.preprocess(asked, generation=True).input_ids, inline)
    assert trained.generate(asked, max_new_tokens=8) == trained.generate(
        trained.preprocess(asked, generation=True, inline=True), max_new_tokens=8
    )


def test_a_base_checkpoint_keeps_the_official_order(tiny, records):
    asked = [{**records[2], "conversations": [{"from": "human", "value": "before: <image>\nafter: <image>\nWhat?"}]}]
    front = tiny.preprocess(asked, generation=True, inline=False).input_ids
    assert torch.equal(tiny.preprocess(asked, generation=True).input_ids, front)


def test_a_text_without_image_puts_each_picture_on_a_line_before_it_as_training_did(trained, records):
    marked = [{**records[0], "conversations": [{"from": "human", "value": "<image>\nIs there a pneumothorax?"}]}]
    assert torch.equal(
        trained.preprocess(records[:1], generation=True).input_ids,
        trained.preprocess(marked, generation=True, inline=True).input_ids,
    )


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({"inline": "yes"}, 'prompt_form.inline="yes"'),
        ([], "prompt_form in config.json is a list"),
        ({"image_order": 3}, "takes text"),
        ({"line": "edema"}, "takes a list of texts"),
        ({"line": [1]}, "takes a list of texts"),
    ],
)
def test_a_note_of_another_type_is_refused_by_name(note, message, tiny):
    with pytest.raises(UserError, match=message):
        replace(tiny.config, root=tiny.config.root | {"prompt_form": note})


def test_official_tiles_are_single_where_there_are_several_pictures(family, records):
    inputs = family.preprocess(records, generation=True, official_tiles=True)
    assert len(inputs.samples[2].tiles) == 2
    assert inputs.samples[2].blocks == [None, None]
    assert len(inputs.samples[0].tiles) == len(family.preprocess(records[:1]).samples[0].tiles)
    assert family(inputs, logits="all").logits.isfinite().all()


def test_one_image_and_other_role_names_do_too(tiny, records):
    turns = [
        {"from": {"human": "user", "gpt": "assistant"}[t["from"]], "value": t["value"]}
        for t in records[0]["conversations"]
    ]
    same = tiny.preprocess([{"image": records[0]["images"][0], "conversations": turns}])
    want = tiny.preprocess(records[:1])
    assert torch.equal(same.input_ids, want.input_ids)
    assert torch.equal(same.labels, want.labels)


def test_several_records_are_padded_at_the_right(tiny, records):
    inputs = tiny.preprocess(records)
    assert inputs.input_ids.shape == inputs.labels.shape == inputs.attention_mask.shape
    for row, sample in enumerate(inputs.samples):
        length = len(sample.input_ids)
        assert inputs.attention_mask[row].sum() == length
        assert (inputs.input_ids[row, length:] == tiny.tokenizer.pad).all()
        assert (inputs.labels[row, length:] == -100).all()


def test_fused_length_is_text_and_pictures(family, records):
    for sample in family.preprocess(records).samples:
        pictures = sum(family.config.image_tokens(block) for block in sample.blocks)
        assert len(sample) == len(sample.input_ids) - len(sample.blocks) + pictures


@pytest.mark.parametrize(
    "record, message",
    [
        (
            {"id": "q7", "images": ["missing.png"], "conversations": [{"from": "human", "value": "?"}]},
            "record q7: missing.png",
        ),
        ({"images": [np.zeros((4, 4), np.uint8)]}, "record 0: it has no messages under 'conversations'"),
        ({"conversations": [{"from": "gpt", "value": "No."}]}, "record 0: a conversation needs a message from 'human'"),
        ({"conversations": [{"role": "user", "content": "?"}]}, "record 0: a message of 'conversations' is {'from'"),
        ({"conversations": [{"from": "human", "value": None}]}, "record 0: a message of 'conversations' is {'from'"),
        (
            {"conversations": [{"from": "human", "value": "edema \ud83d?"}]},
            "record 0: a message holds '\\ud83d', half a character of UTF-16",
        ),
        ({"conversations": "What has changed?"}, "record 0: a message of 'conversations' is {'from'"),
        ("What has changed?", "record 0: a str is no record; give a list of {'images'"),
    ],
)
def test_a_record_that_does_not_fit_is_named(tiny, record, message):
    with pytest.raises(UserError) as error:
        tiny.preprocess([record])
    assert str(error.value).startswith(message)
