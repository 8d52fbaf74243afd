"""How settings that are `auto` are resolved at the start of a training."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.training import auto, compile_trial
from lumen_hpc.training.auto import Auto
from lumen_hpc.training.model_sizes import Sizes


@pytest.fixture(autouse=True)
def eight_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs of 80 GB on which NVILA-8B's layers compile."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(total_memory=80e9))
    monkeypatch.setattr(Sizes, "read", lambda base: Sizes())
    monkeypatch.setattr(auto, "read_config", lambda base: None)
    monkeypatch.setattr(auto, "use_private_cache", lambda: None)
    monkeypatch.setattr(auto, "gather_json", lambda reason: ["", reason])
    monkeypatch.setattr(compile_trial, "reason_for_plain_layers", lambda train, config: "")


def of(settings: Train, out: Path) -> Auto:
    return Auto(settings, out, out, Ranks(world_size=8))


@pytest.mark.parametrize(("stored", "stage"), [({}, 1), ({"train.zero": 3}, 3), ({"train.zero": "auto"}, 1)])
def test_a_begun_training_keeps_its_zero_stage(tmp_path: Path, stored: dict[str, Any], stage: int) -> None:
    """With another the training would be another one, and begin anew."""
    (tmp_path / "training.json").write_text(json.dumps(stored))
    assert of(Train(zero="auto"), tmp_path).resolve_memory().zero == stage


@pytest.mark.parametrize(
    ("settings", "compiled", "attention"),
    [
        ({}, True, "flex"),
        ({"attention": "flex"}, True, "flex"),
        ({"attention": "sdpa"}, False, "sdpa"),
        ({"compiled": True, "attention": "sdpa"}, True, "sdpa"),
        ({"compiled": False}, False, "auto"),
        ({"adapter": Adapter(kind="lora")}, True, "flex"),
        ({"adapter": Adapter(kind="lora"), "zero": 3}, False, "auto"),
        ({"adapter": Adapter(kind="lora", base_bits=8)}, False, "auto"),
    ],
)
def test_layers_are_compiled_where_that_works(
    tmp_path: Path, settings: dict[str, Any], compiled: bool, attention: str
) -> None:
    train = Train(**{"zero": 2} | settings)
    resolved = of(train, tmp_path).resolve_compiled(train, lambda activity: None)  # type: ignore[arg-type]
    assert (resolved.compiled, resolved.attention) == (compiled, attention)


def test_layers_stay_plain_on_all_ranks_if_one_cannot_compile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto, "gather_json", lambda reason: [reason, "no C compiler"])
    resolved = of(Train(), tmp_path).resolve_compiled(Train(), lambda activity: None)  # type: ignore[arg-type]
    assert (resolved.compiled, resolved.attention) == (False, "auto")


def test_a_group_that_does_not_divide_the_ranks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto.sequence_parallel, "node_crossing", lambda size: "")
    started = Auto(Train(), tmp_path, tmp_path, Ranks(world_size=7))
    index: Any = None
    with pytest.raises(UserError, match=r"train\.sequence_parallel=2"):
        started.resolve_sequence_parallel(Train(zero=3, checkpointing="full", sequence_parallel=2), index, seed=0)
