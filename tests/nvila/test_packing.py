"""Padded, packed and prefix-sharing batches are one and the same to loss and gradients."""

import numpy as np
import pytest
import torch

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.chat import IGNORE
from lumen_hpc.nvila.packing import PICTURE, expand

BAR = 1e-5


def _learn(model, batch, **options):
    model.zero_grad()
    out = model(batch, **options)
    out.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return out.loss.item(), gradients


def _assert_same(one, other):
    assert abs(one[0] - other[0]) <= BAR
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        assert (gradient - other[1][name]).abs().max() <= BAR, name


def test_packed_and_shared_equal_padded_in_loss_and_gradients(family, records):
    samples = family.preprocess(records).samples
    padded = _learn(family, nvila.pad(samples))
    _assert_same(padded, _learn(family, nvila.pack([[sample] for sample in samples])))
    shared = nvila.pack([samples[:2], samples[2:3], samples[3:]])
    assert shared.token_ids.shape[1] < sum(map(len, samples))
    _assert_same(padded, _learn(family, shared))


def test_separate_samples_with_a_common_denominator_add_up_to_the_batch(family, records):
    samples = family.preprocess(records).samples
    whole = _learn(family, nvila.pack([samples[:2], samples[2:3], samples[3:]]))
    total = sum(sample.supervised for sample in samples)
    losses, gradients = 0.0, {}
    for sample in samples:
        loss, part = _learn(family, nvila.pad([sample]), loss_denominator=total)
        losses += loss
        for name, gradient in part.items():
            gradients[name] = gradients.get(name, 0) + gradient
    _assert_same(whole, (losses, gradients))


def test_supervised_counts_agree(tiny, records):
    samples = tiny.preprocess(records).samples
    total = sum(sample.supervised for sample in samples)
    batches = [nvila.pad(samples), nvila.pack([samples[:2], *([s] for s in samples[2:])])]
    assert [batch.supervised for batch in batches] == [total, total]
    assert tiny(batches[0]).supervised == total
    kept = "".join(tiny.tokenizer.backend.decode(s.labels[s.labels != IGNORE].tolist()) for s in samples)
    assert kept == "Yes.Nothing.\nThe heart size is normal.Nothing has changed.No.No."


def test_a_group_stores_its_pictures_once(tiny, records):
    samples = tiny.preprocess(records).samples
    assert len(nvila.pack([samples[:2]]).tiles) == 1
    assert len(nvila.pack([[samples[0]], [samples[1]]]).tiles) == 2
    length = nvila.packed_length(samples[:2])
    assert length == nvila.pack([samples[:2]]).token_ids.shape[1] == nvila.pack([samples[:2]]).tokens
    padded = nvila.pack([samples[:2]], multiple=length - 1)
    assert padded.token_ids.shape[1] == 2 * (length - 1) and padded.tokens == length


def test_positions_are_as_if_each_sample_stood_alone(tiny, records):
    samples = tiny.preprocess(records).samples
    batch = nvila.pack([samples[:2], [samples[2]]])
    prefix, first, second, alone = batch.spans
    positions = batch.position_ids[0]
    for span, length in [(first, len(samples[0])), (second, len(samples[1]))]:
        assert positions[span.start] == prefix.stop
        assert positions[span.stop - 1] == length - 1
    assert positions[alone.start] == 0
    assert batch.lengths == [len(sample) for sample in samples[:3]]


def test_a_group_with_identical_questions_keeps_each_its_own_end(tiny, records):
    sample = tiny.preprocess(records[:1]).samples[0]
    twice = nvila.pack([[sample, sample]])
    assert twice.supervised == 2 * sample.supervised
    assert abs(tiny(twice).loss - tiny(nvila.pad([sample])).loss) <= BAR


def test_other_pictures_in_one_group_are_refused(tiny, records):
    samples = tiny.preprocess(records).samples
    with pytest.raises(UserError, match="same images"):
        nvila.pack([[samples[0], samples[2]]])


def test_pictures_behind_different_texts_cannot_be_shared(tiny, records):
    turns = [[{"from": "human", "value": f"{text} <image>"}, {"from": "gpt", "value": "No."}] for text in ("A", "B")]
    asked = [{"images": records[0]["images"], "conversations": turn} for turn in turns]
    samples = tiny.preprocess(asked, inline=True).samples
    with pytest.raises(UserError, match="put the images first"):
        nvila.pack([samples])


def test_expanding_gives_each_picture_its_places_and_a_newline():
    ids, labels = np.array([5, 9, 6, 9]), np.array([IGNORE, 9, 6, IGNORE])
    tokens, token_labels = expand(ids, labels, image=9, newline=1, counts=[3, 2])
    assert tokens.tolist() == [5, PICTURE, PICTURE, 1, 6, PICTURE, 1]
    assert token_labels.tolist() == [IGNORE] * 4 + [6] + [IGNORE] * 2
    with pytest.raises(UserError, match="2 <image> tokens but the images make 1"):
        expand(ids, labels, image=9, newline=1, counts=[3])


def test_samples_do_not_see_their_neighbours(tiny, records):
    """Other neighbours, same logits: a leak across samples would move them."""
    samples = tiny.preprocess(records).samples
    with torch.no_grad():
        alone = tiny(nvila.pack([[samples[3]]]), logits="all").logits[0]
        behind = tiny(nvila.pack([samples[:2], [samples[3]]]), logits="all").logits[0, -len(samples[3]) :]
    assert (alone - behind).abs().max() <= BAR
