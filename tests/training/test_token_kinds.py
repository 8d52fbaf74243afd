"""The yes or no of an outcome's answer is a kind of token of its own: found after a findings line, counted apart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lumen_hpc.data.records import Records, write_jsonl
from lumen_hpc.distributed import Ranks
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training import record_index
from lumen_hpc.training.layout import SharedSequence
from lumen_hpc.training.samples import Batcher, Pictures
from lumen_hpc.training.token_kinds import TokenKinds

pytestmark = pytest.mark.usefixtures("alone")

ANSWERS = {
    "d": ("difference", "edema no mild new ; There is new edema."),
    "line": ("outcome", "edema no mild new ; Yes, intensive care is expected."),
    "plain": ("outcome", "No, intensive care is not expected."),
}


def test_without_outcomes_tokens_are_of_their_question_s_kind() -> None:
    kinds = TokenKinds(np.array(["prediction", "difference", "prediction"]))
    assert kinds.names == ["difference", "prediction"]
    micro = SimpleNamespace(samples=torch.tensor([0, 0, 1, 2]), verdicts=torch.zeros(4, dtype=torch.bool))
    assert kinds.of(micro).tolist() == [1, 1, 0, 1]
    assert kinds.counts([0, 1, 1], np.array([3, 5, 7])).tolist() == [10, 3]


def test_the_counts_are_those_of_the_tokens(tmp_path: Path) -> None:
    records = [
        {"id": name, "images": [], "meta": {"type": kind},
         "conversations": [{"from": "human", "value": "what next?"}, {"from": "gpt", "value": answer}]}
        for name, (kind, answer) in ANSWERS.items()
    ]  # fmt: skip
    write_jsonl(tmp_path / "records.jsonl", records)
    model = make_tiny([answer for _, answer in ANSWERS.values()])
    prepare = model.preprocessor
    index = record_index.build(
        Records(tmp_path / "records.jsonl"), prepare, Ranks(),
        max_tokens=512, on_bad="stop", folder=tmp_path, version="1",
    )  # fmt: skip
    kinds = TokenKinds(index.kinds)
    assert kinds.names == ["difference", "outcome", "verdict"]
    micro = Batcher(Records(tmp_path / "records.jsonl"), index, prepare, Pictures()).build(
        [SharedSequence((sample,), 1) for sample in range(3)]
    )
    learned = micro.batch.token_ids.flatten()[micro.batch.learned]
    words = [prepare.tokenizer.decode([token]) for token in learned[micro.verdicts].tolist()]
    assert words == ["Yes", "No"] and micro.samples[micro.verdicts].tolist() == [1, 2]
    counted = torch.bincount(kinds.of(micro), minlength=3).double()
    assert kinds.counts(range(3), index.supervised).equal(counted) and counted[2] == 2
    assert counted.sum() == index.supervised.sum()
