"""What ranks that compute together send each other, by arithmetic."""

from __future__ import annotations

import pytest

from lumen_hpc.config.schema import Train
from lumen_hpc.models import Workload
from lumen_hpc.training.exchange import layer_bytes, sent_bytes
from lumen_hpc.training.model_sizes import Sizes


def test_a_layer_of_nvila_8b_sends_queries_keys_values_and_the_result():
    one_way = (28 + 4 + 4 + 28) * 128 * 2  # bf16
    two = Train(sequence_parallel=2, checkpointing="none")
    assert layer_bytes(two, Sizes()) == 2 * one_way / 2
    assert layer_bytes(Train(sequence_parallel=2, checkpointing="full"), Sizes()) == 3 * one_way / 2
    assert layer_bytes(Train(sequence_parallel=4, checkpointing="none"), Sizes()) == 2 * one_way * 3 / 4


def test_keys_of_fewer_heads_than_ranks_are_sent_more_than_once():
    four = Train(sequence_parallel=4, checkpointing="none")
    assert layer_bytes(four, Sizes(kv_heads=2)) == layer_bytes(four, Sizes(kv_heads=4))


def test_most_of_it_is_attention_and_alone_nothing_is_sent():
    two = Train(sequence_parallel=2)
    layers = 28 * layer_bytes(two, Sizes())
    assert layers < sent_bytes(two, Sizes(), Workload(), 1) < 1.1 * layers
    assert sent_bytes(Train(), Sizes(), Workload(), 1000) == pytest.approx(0)
