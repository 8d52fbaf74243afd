"""Where a model that answers is put."""

from __future__ import annotations

import torch

from lumen_hpc.training import predict
from tests.training import tiny


def test_weights_larger_than_the_first_gpus_free_memory_are_spread_and_it_is_logged(tmp_path, monkeypatch, caplog):
    folder = tiny.make(tmp_path) / "base"
    assert predict._choose_device(folder) == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (80_000_000_000, 80_000_000_000))
    assert predict._choose_device(folder) == "cuda" and not caplog.messages
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (100_000, 80_000_000_000))
    assert predict._choose_device(folder) == "auto"
    assert "layers are spread, which is slower" in caplog.text
