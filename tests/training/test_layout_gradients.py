"""One step of a tiny NVILA: the same loss and gradients whether samples share their images or are spread over ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lumen_hpc import nvila
from lumen_hpc.config.schema import Train
from lumen_hpc.data.records import Records
from lumen_hpc.distributed import Ranks
from lumen_hpc.training import record_index
from lumen_hpc.training.layout import Layout, critical_path, lay_out, pack_sequences, sequences
from lumen_hpc.training.learner import Learner
from lumen_hpc.training.record_index import RecordIndex
from lumen_hpc.training.samples import Batcher, Pictures
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("alone")


def gradients(dataset, index: RecordIndex, ranks: Layout) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a step, summed over all ranks and micro-batches as training does."""
    train = Train(**tiny.SETTINGS)
    learner = Learner(nvila.load(dataset / "base"), train)
    batcher = Batcher(Records(dataset / "records.jsonl"), index, nvila.Preprocessor.open(dataset / "base"), Pictures())
    supervised = int(index.supervised.sum())
    total = 0.0
    for micros in ranks:
        for packed in micros:
            loss = learner(batcher.build(packed)).sum() / supervised
            loss.backward()
            total += float(loss.detach())
    return total, {name: p.grad for name, p in learner.named_parameters() if p.grad is not None}


def test_spread_samples_have_the_loss_and_gradients_of_samples_together(tmp_path):
    dataset = tiny.make(tmp_path, patients=2)
    index = record_index.build(
        Records(dataset / "records.jsonl"), nvila.Preprocessor.open(dataset / "base"), Ranks(),
        max_tokens=512, on_bad="stop", folder=tmp_path / "out", version="1",
    )  # fmt: skip
    batch, columns = np.arange(len(index)).tolist(), (index.groups, index.prefix, index.suffix)
    together = pack_sequences(sequences(batch, *columns, budget=512, shared=True), 8, 512)
    spread = lay_out(batch, *columns, world_size=8, budget=512, shared=True)
    assert critical_path(spread) < critical_path(together)
    assert max(len(item.samples) for rank in together for micro in rank for item in micro) == 4
    assert max(len(item.samples) for rank in spread for micro in rank for item in micro) < 4
    loss, theirs = gradients(dataset, index, together)
    found, ours = gradients(dataset, index, spread)
    assert found == pytest.approx(loss, abs=1e-5)
    assert ours.keys() == theirs.keys() and any(grad.abs().max() > 1e-3 for grad in theirs.values())
    for name, grad in theirs.items():
        assert torch.allclose(ours[name], grad, atol=1e-5), name
