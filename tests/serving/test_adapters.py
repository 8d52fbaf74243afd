"""A training's LoRA adapter in vLLM, over the base that it was trained from: the answers of the merged model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lumen_hpc import nvila
from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.training import adapters

pytest.importorskip("vllm")
LORA = {"kind": "lora", "rank": 8, "alpha": 16.0, "dropout": 0.0, "targets": []}


def trained(base: Path, folder: Path, **settings) -> nvila.NVILA:
    """The merged model of an adapter that changes answers; peft's files go to `folder`."""
    model = nvila.load(base, dtype=torch.float32)
    train = Train(adapter=Adapter(**LORA | settings.pop("adapter", {})), **settings)
    adapters.inject(model, train, seed=0)
    torch.manual_seed(5)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    weights, factors = adapters.split(model.state_dict())
    adapters.save_peft(factors, train.adapter, folder)
    merged = nvila.load(base, dtype=torch.float32)
    merged.load_state_dict(adapters.merge(weights, factors, adapters.scale(LORA)))
    return merged


def _greedy(model: nvila.NVILA, records: list[dict]) -> list[list[int]]:
    inputs = model.preprocess(records, generation=True, inline=True)
    return [answer.ids for answer in model.generate(inputs, max_new_tokens=12)]


@pytest.mark.parametrize("family", ["dynamic_s2", "resize"])
def test_an_adapter_answers_as_the_merged_model_and_the_base_stays_beside_it(
    folders, records, open_vllm, tmp_path, family
):
    from vllm.lora.request import LoRARequest

    merged = trained(folders[family], tmp_path / "adapter", tune=["llm"])
    base = nvila.load(folders[family], dtype=torch.float32)
    model = open_vllm(folders[family], enable_lora=True, max_lora_rank=8)
    adapted = LoRARequest("trained", 1, str(tmp_path / "adapter"))
    expected = {None: _greedy(base, records), adapted: _greedy(merged, records)}
    assert expected[None] != expected[adapted]
    for request in (None, adapted, None):
        assert [ids for ids, _ in model.ask(records, 12, adapter=request)] == expected[request]


@pytest.mark.parametrize(
    "learns",
    [
        {"tune": ["vision_tower", "projector", "llm"]},
        {"tune": ["vision_tower", "llm"], "adapter": {"targets": ["q_proj"]}},
    ],
)
def test_an_adapter_of_the_tower_is_refused_and_never_left_out_in_silence(folders, open_vllm, tmp_path, learns):
    from vllm.lora.request import LoRARequest

    trained(folders["resize"], tmp_path / "adapter", **learns)
    model = open_vllm(folders["resize"], enable_lora=True, max_lora_rank=8)
    with pytest.raises(Exception, match="vLLM_adapts_the_language_model_alone_so_serve_the_merged_weights"):
        model.llm.llm_engine.add_lora(LoRARequest("trained", 1, str(tmp_path / "adapter")))
