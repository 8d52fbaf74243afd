"""Ranks that compute micro-batches together train as one process does: losses, weights, validation, resume."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lumen_hpc import nvila
from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.data.records import Records, write_jsonl
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.models import MODELS
from lumen_hpc.nvila.group import SingleProcess
from lumen_hpc.nvila.preprocess import normalise
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training import record_index, sequence_parallel
from lumen_hpc.training.auto import Auto
from lumen_hpc.training.layout import sequences
from lumen_hpc.training.model_sizes import Sizes
from lumen_hpc.training.record_index import RecordIndex
from lumen_hpc.training.samples import Batcher, Pictures
from lumen_hpc.training.sequence_parallel import Group, take_own_tokens
from lumen_hpc.training.sizing import check_batch, check_fit, check_parallel, plan
from tests.training import tiny, toy
from tests.training.test_occupancy import records

LORA = {"kind": "lora", "rank": 4, "alpha": 8.0, "dropout": 0.0}
QLORA = {bits: LORA | {"base_bits": bits} for bits in (8, 4)}
KINDS = {"mixture": {"diagnostic": 4, "difference": 2, "prediction": 2}, "loss": "kinds", "steps": 3}
S2 = {"max_tokens": 1024, "token_budget": 1024}
ON_TWO: dict[str, dict[str, Any]] = {
    "zero1": {"zero": 1},
    "zero2": {"zero": 2, "checkpointing": "selective"},
    "zero3": {"zero": 3, "checkpointing": "full"},
    "compiled": {"zero": 3, "attention": "flex", "compiled": True, "checkpointing": "selective"},
    "s2": {"zero": 3, **S2},
    "separate": {"zero": 2, "shared_prefix": False},
    "kinds": {"zero": 1, **KINDS},
    "lora": {"zero": 2, "adapter": LORA},
    "qlora8": {"zero": 1, "adapter": QLORA[8], "checkpointing": "full"},
    "qlora4": {"zero": 2, "adapter": QLORA[4]},
    "frozen": {"zero": 3, "tune": ["projector", "llm"], "checkpointing": "full"},
    "eager": {"zero": 2, "attention": "eager", "steps": 2},
}
"""Settings of trainings on two ranks that compute together; each has a reference on one process."""
ON_FOUR: dict[str, dict[str, Any]] = {
    "pairs": {"zero": 2, "sequence_parallel": 2},
    "four": {"zero": 3, "sequence_parallel": 4, "checkpointing": "full"},
    "four_s2": {"zero": 1, "sequence_parallel": 4, **S2},
    "nodes": {"zero": 3, "sequence_parallel": 2, "node_shards": True},
}
"""Settings on four ranks: two pairs, or all together, where two heads of keys serve four ranks."""
REFERENCE = {
    **{name: name for name in ("s2", "separate", "kinds", "lora", "qlora8", "qlora4", "frozen", "eager")},
    **{name: "plain" for name in ("zero1", "zero2", "zero3", "compiled", "pairs", "four", "nodes")},
    "four_s2": "s2",
    "lora_one_two": "lora",
    "qlora_wider": "qlora4",
}
CLOSE = {"qlora8": 1e-2}
"""How far from one process, where not 1e-5: LLM.int8 rounds inputs too, and a last bit decides how."""
RESUMED = ("one_two", "two_one", "wider", "narrower", "lora_one_two", "qlora_wider")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training by name."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("data", "data-s2"):
        (folder / name).mkdir()
    plain = tiny.make(folder / "data", patients=5)
    large = {"aspect": "dynamic_s2", "projector": "mlp_downsample", "image_size": 32}
    s2 = tiny.make(folder / "data-s2", patients=3, image=(90, 70), **large)
    for dataset in (plain, s2):
        write_jsonl(dataset / "held-out.jsonl", list(Records(dataset / "records.jsonl"))[:7])

    def run(name: str, stop_at: int = 0, **settings: Any) -> dict[str, Any]:
        dataset = s2 if name.endswith("s2") else plain
        one = tiny.run(folder / name.partition(":")[2], dataset, **settings)
        return one | {"held_out": str(dataset / "held-out.jsonl")} | ({"stop_at": stop_at} if stop_at else {})

    def start(*runs: dict[str, Any], world_size: int) -> None:
        toy.train(*runs, world_size=world_size, script=tiny.__file__)

    same = sorted({*REFERENCE.values()} - {"plain"})
    alone = [run(f"1:{name}-alone" if name != "s2" else "1:alone-s2", **_on_one(ON_TWO[name])) for name in same]
    start(run("1:plain-alone"), *alone, run("1:wider", 2), run("1:lora_one_two", 2, adapter=LORA), world_size=1)
    start(
        *(run(f"2:{name}", sequence_parallel=2, **settings) for name, settings in ON_TWO.items()),
        run("2:one_two", 3), run("2:one_two", sequence_parallel=2),
        run("2:two_one", 3, sequence_parallel=2), run("2:two_one"),
        run("2:wider", 3, sequence_parallel=2),
        run("2:lora_one_two", sequence_parallel=2, adapter=LORA),
        run("2:qlora_wider", 3, sequence_parallel=2, adapter=QLORA[4]),
        *(run(f"2:bf16-{how}", stop, sequence_parallel=2, zero=3, precision="bf16")
          for how, stop in (("whole", 0), ("again", 2), ("again", 3), ("again", 0))),
        world_size=2,
    )  # fmt: skip
    start(
        *(run(f"4:{name}", **settings) | ({"nodes": 2} if name == "nodes" else {})
          for name, settings in ON_FOUR.items()),
        run("4:wider", sequence_parallel=4), run("4:narrower", 3, sequence_parallel=2),
        run("4:qlora_wider", sequence_parallel=4, adapter=QLORA[4]), world_size=4,
    )  # fmt: skip
    start(run("1:narrower"), world_size=1)
    return folder


@pytest.mark.parametrize("size", [2, 4])
def test_every_supervised_token_and_every_tile_is_one_rank_s(size: int) -> None:
    model = make_tiny(["Is it normal? No."])
    picture = torch.randint(256, (64, 64), dtype=torch.uint8).numpy()
    turns = [{"from": "human", "value": "<image>\nIs it normal?"}, {"from": "gpt", "value": "No."}]
    samples = model.preprocess([{"images": [picture], "conversations": turns} for _ in range(3)], inline=True).samples
    batch = nvila.pack([[sample] for sample in samples], multiple=size)
    groups = [Group(size, rank, "unused") for rank in range(size)]
    parts = [take_own_tokens(batch, group) for group in groups]
    assert torch.equal(torch.cat([part.learned for part, _, _ in parts]), batch.learned)
    assert sum(mine.int() for _, mine, _ in parts).tolist() == [1] * batch.supervised
    assert sum(tokens for _, _, tokens in parts) == batch.tokens < batch.token_ids.numel()
    assert (min(part.supervised for part, _, _ in parts) == 0) == (size == 4), "a rank may have nothing to predict"
    tiles = torch.cat([group.own_part(batch.tiles) for group in groups])
    assert torch.equal(tiles[:3], batch.tiles) and not tiles[3:].any() and len(tiles) == 4


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("form", ["resize", "dynamic", "dynamic_s2"])
def test_a_rank_reads_only_the_pictures_of_which_it_computes_a_tile(tmp_path: Path, size: int, form: str) -> None:
    """Each of its tiles is what it is where one process reads all, one of them coloured."""
    dataset = tiny.make(tmp_path, patients=3, aspect=form, image=(90, 70))
    Image.new("RGB", (90, 70), (255, 0, 0)).save(dataset / "0-main.png")
    rows, prepare = Records(dataset / "records.jsonl"), nvila.Preprocessor.open(dataset / "base")
    index = record_index.build(
        rows, prepare, Ranks(), max_tokens=8192, on_bad="stop", folder=tmp_path, version="1",
    )  # fmt: skip
    packed = sequences(range(len(rows)), index.groups, index.prefix, index.suffix, budget=8192, shared=True)
    files = {path for row in rows for path in row["images"]}
    read: dict[int, set[str]] = {}

    def tiles(group: SingleProcess) -> torch.Tensor:
        pictures = Pictures()
        monitored = read.setdefault(group.rank, set())
        pictures.open = lambda path: monitored.add(path) or Pictures.open(pictures, path)  # type: ignore[method-assign]
        return normalise(group.own_part(Batcher(rows, index, prepare, pictures, group=group).build(packed).batch.tiles))

    parts = torch.cat([tiles(Group(size, rank, "unused")) for rank in range(size)])
    assert set().union(*read.values()) == files and all(len(of_rank) < len(files) for of_rank in read.values())
    whole = tiles(SingleProcess())
    assert read[0] == files
    assert torch.equal(parts[: len(whole)], whole)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """How 64 ranks on 16 nodes of four GPUs of 80 GB decide what of LUMEN's records they compute together."""
    workload = MODELS["lumen"].workload
    assert workload is not None
    columns = records(workload, "narrow")
    index = RecordIndex(**{field.name: columns.get(field.name) for field in dataclasses.fields(RecordIndex)})
    device = type("Device", (), {"total_memory": 80e9})()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: device)
    monkeypatch.setattr(Sizes, "read", lambda base: Sizes())

    def decide(asked: Train, hosts: list[str]) -> Train:
        monkeypatch.setattr(sequence_parallel, "gather_json", lambda host: hosts)
        ranks = Ranks(world_size=64, nodes=16)
        auto = Auto(asked, tmp_path, tmp_path, ranks)
        return auto.resolve_sequence_parallel(auto.resolve_memory(), index, seed=0)

    return decide


BLOCK = [f"n{rank // 4}" for rank in range(64)]
CYCLIC = [f"n{rank % 16}" for rank in range(64)]


def test_auto_follows_the_records_and_recomputes_less_where_activations_are_divided(together: Any) -> None:
    alone, found = together(Train(sequence_parallel=1), BLOCK), together(Train(), BLOCK)
    assert (alone.sequence_parallel, found.sequence_parallel) == (1, 4)
    assert (alone.checkpointing, found.checkpointing) == ("full", "none")
    assert together(Train(checkpointing="selective"), BLOCK).checkpointing == "selective"


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_auto_groups_ranks_under_adapters_too(together: Any, bits: int) -> None:
    found = together(Train(zero="auto", adapter=Adapter(kind="lora", base_bits=bits)), BLOCK)
    assert (found.sequence_parallel, found.zero) == (4, 1)


def test_ranks_of_a_group_stay_on_one_node(together: Any) -> None:
    assert together(Train(), CYCLIC).sequence_parallel == 1
    refusal = r"train\.sequence_parallel=2: ranks 0 to 1 are on several nodes \(n0, n1\).*distribution=block"
    with pytest.raises(UserError, match=refusal):
        together(Train(sequence_parallel=2), CYCLIC)


def _on_one(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in ("zero", "checkpointing")}


def reference(trained: Path, name: str) -> Path:
    kind = REFERENCE.get(name, "plain")
    return trained / ("alone-s2" if kind == "s2" else f"{kind}-alone")


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = sorted((out / "final").rglob("model*.safetensors"))
    assert files
    return {f"{file.parent.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("name", [*ON_TWO, *ON_FOUR, *RESUMED])
def test_losses_accounts_and_weights_are_those_of_one_process(trained: Path, name: str) -> None:
    found, alone = toy.metrics(trained / name), toy.metrics(reference(trained, name))
    assert len(found) == len(alone) >= 2
    exact, close = ("step", "samples", "supervised"), CLOSE.get(name, 1e-5)
    for ours, theirs in zip(found, alone, strict=True):
        assert ours.keys() == theirs.keys()
        assert [ours[key] for key in exact] == [theirs[key] for key in exact]
        for key in ours.keys() - {*exact, "tokens", "time"}:
            rel = 10 * close if key == "grad_norm" else 0
            assert ours[key] == pytest.approx(theirs[key], abs=close, rel=rel), key
    assert toy.consumed(trained / name) == toy.consumed(reference(trained, name))
    ours, theirs = weights(trained / name), weights(reference(trained, name))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        if key.endswith("k_proj.bias"):  # attention does not depend on it: AdamW enlarges what rounding leaves
            continue
        assert torch.allclose(ours[key], tensor, atol=close), key


@pytest.mark.parametrize("name", [*ON_TWO, "four"])
def test_every_token_is_counted_once(trained: Path, name: str) -> None:
    """Two ranks, or four, that compute together have the layout of one process."""
    ours, theirs = toy.metrics(trained / name), toy.metrics(reference(trained, name))
    assert [row["tokens"] for row in ours] == [row["tokens"] for row in theirs]


def test_a_resume_is_bit_equal(trained: Path) -> None:
    assert toy.metrics(trained / "bf16-again") == toy.metrics(trained / "bf16-whole")
    again, whole = weights(trained / "bf16-again"), weights(trained / "bf16-whole")
    assert all(torch.equal(again[key], tensor) for key, tensor in whole.items())
    assert toy.losses(trained / "bf16-whole") == pytest.approx(toy.losses(trained / "plain-alone"), rel=0.01)


def test_the_validation_loss_is_that_of_one_process(trained: Path) -> None:
    for name in ("zero1", "zero3", "s2", "four"):
        rows = [row for row in toy.metrics(trained / name) if "validation_loss" in row]
        assert rows, name  # compared above, with all else in the rows


def test_the_fingerprint_does_not_know_it(trained: Path) -> None:
    assert "sequence" not in (trained / "zero1" / "training.json").read_text()
    for name in RESUMED:
        assert not (trained / name / "earlier").exists()
        restarts = [json.loads(line) for line in (trained / name / "restarts.jsonl").read_text().splitlines()]
        assert restarts and all(row["lost_steps"] == 0 for row in restarts)


@pytest.mark.parametrize(
    ("size", "gpus", "nodes", "heads", "problem"),
    [
        (2, 3, 1, 28, "does not divide 3 GPUs on 1 nodes"),
        (4, 8, 4, 28, "does not divide 8 GPUs on 4 nodes"),
        (4, 8, 1, 14, "does not divide the 14 heads"),
    ],
)
def test_what_does_not_divide_is_refused_by_name(size: int, gpus: int, nodes: int, heads: int, problem: str) -> None:
    with pytest.raises(UserError, match=rf"train\.sequence_parallel={size}: it {problem}"):
        check_parallel(Train(sequence_parallel=size), gpus, nodes, Sizes(heads=heads))


def test_a_batch_gives_work_to_as_many_groups_as_it_has_samples() -> None:
    check_batch(Train(sequence_parallel=2), 256)
    with pytest.raises(UserError, match=r"at least train\.global_batch=256, or at most 256 GPUs"):
        check_batch(Train(sequence_parallel=2), 512)
    assert check_fit(Train(), 256, 80).occupancy.sequence_parallel == 4


def test_the_plan_divides_activations_and_names_what_is_sent() -> None:
    one, two = (plan(Train(sequence_parallel=size), 32) for size in (1, 2))
    assert one.memory["activations"] / 2 < two.memory["activations"] < 0.75 * one.memory["activations"]
    assert two.hours < one.hours and "train.sequence_parallel=2: a GPU sends 4.8 GB a step" in str(two)
    assert "sequence_parallel" not in str(one)
