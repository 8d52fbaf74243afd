"""How a batch is laid out over ranks and micro-batches."""

from __future__ import annotations

import numpy as np
import pytest

from lumen_hpc.training.layout import SharedSequence, critical_path, lay_out, pack_sequences, sequences

RNG = np.random.default_rng(0)


def a_step(images: int, samples: int, *, longest: int = 12) -> tuple[list[int], list[int], list[int]]:
    """Groups, shared and own tokens of a step about so many images, the first with the most questions."""
    groups = [0] * longest + [1 + k % (images - 1) for k in range(samples - longest)]
    return groups, [3000] * samples, RNG.integers(100, 220, size=samples).tolist()


def test_samples_about_the_same_images_share_one_sequence_until_the_budget():
    groups, prefix, suffix = [0, 0, 1, 0], [10] * 4, [3, 4, 5, 6]
    shared = sequences([3, 2, 0, 1], groups, prefix, suffix, budget=100, shared=True)
    assert {(s.samples, s.tokens) for s in shared} == {((3, 0, 1), 23), ((2,), 15)}
    tight = sequences([3, 2, 0, 1], groups, prefix, suffix, budget=19, shared=True)
    assert {(s.samples, s.tokens) for s in tight} == {((3, 0), 19), ((1,), 14), ((2,), 15)}
    separate = sequences([3, 2, 0, 1], groups, prefix, suffix, budget=100, shared=False)
    assert sorted((s.samples, s.tokens) for s in separate) == [((0,), 13), ((1,), 14), ((2,), 15), ((3,), 16)]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_every_sequence_is_placed_once_within_the_budget_on_equally_many_micro_batches(world_size):
    items = [SharedSequence((i,), int(tokens)) for i, tokens in enumerate(RNG.integers(20, 100, size=40))]
    ranks = pack_sequences(items, world_size, 150)
    assert len(ranks) == world_size and len({len(rank) for rank in ranks}) == 1
    placed = [item for rank in ranks for micro in rank for item in micro]
    assert sorted(placed, key=lambda s: s.samples) == items
    assert all(sum(s.tokens for s in micro) <= 150 for rank in ranks for micro in rank)
    # No more micro-batches than half-full ones would need.
    assert len(ranks[0]) <= -(-sum(s.tokens for s in items) // (75 * world_size))


def test_the_ranks_work_alike_in_every_micro_step():
    items = [SharedSequence((i,), int(tokens)) for i, tokens in enumerate(RNG.integers(20, 100, size=64))]
    ranks = pack_sequences(items, 4, 300)
    for micro in range(len(ranks[0])):
        loads = [sum(s.tokens for s in rank[micro]) for rank in ranks]
        assert max(loads) <= 1.2 * min(loads)


def test_a_short_last_batch_leaves_some_ranks_an_empty_micro_batch():
    ranks = pack_sequences([SharedSequence((0,), 50)], 3, 100)
    assert sorted(len(rank[0]) for rank in ranks) == [0, 0, 1]


def test_one_sequence_over_the_budget_stands_alone():
    ranks = pack_sequences([SharedSequence((0,), 500), SharedSequence((1,), 10)], 1, 100)
    assert [[s.tokens for s in micro] for micro in ranks[0]] == [[500], [10]]


def test_two_sequences_that_exceed_the_budget_together_are_two_micro_batches():
    ranks = pack_sequences([SharedSequence((0,), 60), SharedSequence((1,), 60), SharedSequence((2,), 60)], 1, 100)
    assert [[s.tokens for s in micro] for micro in ranks[0]] == [[60], [60], [60]]


def test_micro_batches_of_like_size_run_at_once():
    ranks = pack_sequences([SharedSequence((i,), tokens) for i, tokens in enumerate((100, 99, 60, 59))], 2, 100)
    assert critical_path(ranks) == 160


@pytest.mark.parametrize("world_size", [1, 2, 4, 8, 16, 32, 64, 128])
def test_samples_are_spread_over_ranks_only_where_that_shortens_the_step(world_size):
    groups, prefix, suffix = a_step(41, 128)
    batch = list(range(128))
    together = pack_sequences(sequences(batch, groups, prefix, suffix, budget=16384, shared=True), world_size, 16384)
    found = lay_out(batch, groups, prefix, suffix, world_size=world_size, budget=16384, shared=True)
    placed = [sample for rank in found for micro in rank for item in micro for sample in item.samples]
    assert sorted(placed) == batch
    assert len(found) == world_size and len({len(rank) for rank in found}) == 1
    for item in (item for rank in found for micro in rank for item in micro):
        assert item.tokens == prefix[item.samples[0]] + sum(suffix[i] for i in item.samples)
        assert len({groups[i] for i in item.samples}) == 1
    if found != together:
        assert critical_path(found) < 0.99 * critical_path(together)
    if world_size <= 8:
        assert found == together
    if world_size >= 64:  # the image with 12 questions decided; two questions and their image are what is left
        assert critical_path(found) < 0.8 * critical_path(together)


def test_a_sample_longer_than_all_groups_leaves_them_together():
    groups, prefix, suffix = a_step(41, 128)
    pair = [*prefix[:-1], 6000]
    found = lay_out(range(128), groups, pair, suffix, world_size=64, budget=16384, shared=True)
    items = sequences(range(128), groups, pair, suffix, budget=16384, shared=True)
    assert found == pack_sequences(items, 64, 16384)


def test_samples_that_share_nothing_are_laid_out_alone():
    groups, prefix, suffix = a_step(41, 128)
    found = lay_out(range(128), groups, prefix, suffix, world_size=64, budget=16384, shared=False)
    assert {len(item.samples) for rank in found for micro in rank for item in micro} == {1}


def test_bins_of_similar_load_share_a_micro_step():
    items = [SharedSequence((number,), tokens) for number, tokens in enumerate((7, 6, 5, 4, 4))]
    assert critical_path(pack_sequences(items, 2, 8)) == 14  # 8 beside 7, then 6 beside 5
