"""How a batch is laid out over ranks and micro-batches."""

from __future__ import annotations

import numpy as np
import pytest

from lumen_hpc.training.layout import Shared, layout, sequences

RNG = np.random.default_rng(0)


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
    items = [Shared((i,), int(tokens)) for i, tokens in enumerate(RNG.integers(20, 100, size=40))]
    ranks = layout(items, world_size, 150)
    assert len(ranks) == world_size and len({len(rank) for rank in ranks}) == 1
    placed = [item for rank in ranks for micro in rank for item in micro]
    assert sorted(placed, key=lambda s: s.samples) == items
    assert all(sum(s.tokens for s in micro) <= 150 for rank in ranks for micro in rank)
    # No more micro-batches than half-full ones would need.
    assert len(ranks[0]) <= -(-sum(s.tokens for s in items) // (75 * world_size))


def test_the_ranks_work_alike_in_every_micro_step():
    items = [Shared((i,), int(tokens)) for i, tokens in enumerate(RNG.integers(20, 100, size=64))]
    ranks = layout(items, 4, 300)
    for micro in range(len(ranks[0])):
        loads = [sum(s.tokens for s in rank[micro]) for rank in ranks]
        assert max(loads) <= 1.2 * min(loads)


def test_a_short_last_batch_leaves_some_ranks_an_empty_micro_batch():
    ranks = layout([Shared((0,), 50)], 3, 100)
    assert sorted(len(rank[0]) for rank in ranks) == [0, 0, 1]


def test_one_sequence_over_the_budget_stands_alone():
    ranks = layout([Shared((0,), 500), Shared((1,), 10)], 1, 100)
    assert [[s.tokens for s in micro] for micro in ranks[0]] == [[500], [10]]
