"""NVILA trained on two nodes of a real cluster, undisturbed and interrupted in every way that a cluster knows."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest

from sandbox.checkout import ROOT, make
from sandbox.slurm import Cluster
from tests.cluster.conftest import Site
from tests.training import tiny, toy

STEPS, BATCH, EVERY = 20, 8, 5
HELD_AFTER = 12  # of training_chain/train.py
IDS = Counter()
"""How often each record must have been trained on; filled by `inputs`."""


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.make(tmp_path_factory.mktemp("tiny"))
    ids = [json.loads(line)["id"] for line in (folder / "records.jsonl").read_text().splitlines()]
    epochs, rest = divmod(STEPS * BATCH, len(ids))
    assert rest == 0
    IDS.update(dict.fromkeys(ids, epochs))
    (folder / "recipe.yaml").write_text("data: {source: phantom}\ntrain: {base: tiny, precision: fp32}\n")
    return folder


@pytest.fixture(scope="session")
def training(cluster: Cluster, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A checkout whose jobs are the project's own training, on given records."""
    folder = tmp_path_factory.mktemp("training")
    shutil.copytree(Path(__file__).parent / "training_chain", folder / "jobs")
    shutil.copy(ROOT / "jobs" / "train.py", folder / "jobs" / "training.py")
    return Site(make(folder / "checkout", jobs=folder / "jobs"), cluster, folder / "runs")


def submit(site: Site, inputs: Path, run: str, *words: str, **changes: object) -> Path:
    """Submits a training and returns its folder; `changes` are settings of section `train`."""
    values = {**tiny.SETTINGS, "steps": STEPS, "global_batch": BATCH, "checkpoint_every": EVERY, "zero": 3, **changes}
    settings = [f"train.{key}={str(value).lower()}" for key, value in values.items()]
    where = (f"recipe={inputs / 'recipe.yaml'}", f"train.base={inputs / 'base'}")
    site.submit(run, *where, "predict.models=[lumen]", "profile.resources.train.successors=3", *settings, *words)
    return site.runs / run / "train-lumen"


def held(site: Site, inputs: Path, run: str, *words: str, **changes: object) -> tuple[Path, Path]:
    """A training that waits in mid-run, with a checkpoint written: its folder, and the file that holds it."""
    hold = site.runs / f"{run}.hold"
    hold.parent.mkdir(exist_ok=True)
    hold.touch()
    out = submit(site, inputs, run, *words, **changes)
    site.wait(lambda: toy.steps(out) == HELD_AFTER, 240, f"{HELD_AFTER} steps of {run}")
    return out, hold


def ended(site: Site, run: str) -> None:
    site.wait(lambda: (site.runs / run / "train-lumen" / "finished.json").exists(), 300, f"the end of {run}")
    site.wait_until_left(run)


@pytest.fixture(scope="session")
def whole(training: Site, inputs: Path) -> Path:
    """The undisturbed training."""
    out = submit(training, inputs, "whole")
    ended(training, "whole")
    return out


def test_two_nodes_equal_one_process(whole: Path, inputs: Path, tmp_path: Path) -> None:
    reports = json.loads((whole / "health.json").read_text())
    assert len({report["host"] for report in reports}) == 2
    toy.train(tiny.run(tmp_path, inputs, steps=STEPS, global_batch=BATCH), script=tiny.__file__)
    assert toy.losses(whole) == pytest.approx(toy.losses(tmp_path), abs=1e-5)
    assert Counter(toy.consumed(whole)) == IDS


def process_of_last_node(out: Path) -> int:
    """The rank of this training that runs now on the last of its nodes."""
    found = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                environment = dict(
                    line.partition("=")[::2] for line in (process / "environ").read_text().split("\0") if "=" in line
                )
                words = (process / "cmdline").read_text().split("\0")
            except (OSError, UnicodeDecodeError):
                continue
            if "SLURM_PROCID" in environment and "lumen_hpc.cluster.task" in words and str(out.parent) in str(words):
                found[environment["SLURMD_NODENAME"]] = int(process.name)
    return found[max(found)]


@pytest.mark.parametrize("how", ["time limit", "kill -9", "truncated"])
def test_an_interrupted_training_equals_the_undisturbed_one(
    training: Site, cluster: Cluster, inputs: Path, whole: Path, tmp_path: Path, how: str
) -> None:
    """A preemption and a lost node interrupt the training of test_full_run.py."""
    run = tmp_path.name  # another at each try
    out, hold = held(training, inputs, run)
    (job,) = training.running(run, "train-lumen")
    if how == "time limit":
        cluster.run("scancel", "--signal=USR2", job)
    elif how == "kill -9":
        os.kill(process_of_last_node(out), signal.SIGKILL)
    else:
        training.launch("cancel", f"run={run}")
        training.wait_until_left(run)
        newest = max((out / "checkpoints").glob("step-*"))
        largest = max(newest.rglob("*.pt"), key=lambda file: file.stat().st_size)
        os.truncate(largest, largest.stat().st_size // 2)
    training.wait(lambda: job not in training.running(run, "train-lumen"), 120, f"the end of job {job}")
    hold.unlink()
    if how == "truncated":
        submit(training, inputs, run)
    ended(training, run)
    assert toy.metrics(out) == toy.metrics(whole)
    assert Counter(toy.consumed(out)) == IDS
    restarts = [json.loads(line) for line in (out / "restarts.jsonl").read_text().splitlines()]
    assert restarts, "it was never interrupted"
    if how == "time limit":
        assert restarts[0]["lost_steps"] == 0
    for part in ("llm", "vision_tower", "mm_projector"):
        file = Path("final", part, "model.safetensors")
        assert (out / file).read_bytes() == (whole / file).read_bytes()
    print(f"{how}: lost {sum(r['lost_steps'] for r in restarts)} steps, {sum(r['lost_seconds'] for r in restarts)} s")


LORA = {"kind": "lora", "rank": 4, "dropout": 0.0}
FUSED = {"attention": "flex", "compiled": True, "checkpointing": "selective"}
SHORT = 6
"""Steps of the trainings whose layers run in another way."""


@pytest.fixture(scope="session")
def plain(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Losses of one process with plain layers: of whole weights, and of adapters."""
    folder = tmp_path_factory.mktemp("plain")
    short = {"steps": SHORT, "global_batch": BATCH}
    runs = [tiny.run(folder / "whole", inputs, **short), tiny.run(folder / "lora", inputs, adapter=LORA, **short)]
    toy.train(*runs, script=tiny.__file__)
    return {name: toy.losses(folder / name) for name in ("whole", "lora")}


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("learns", ["whole", "lora"])
def test_compiled_layers_and_adapters_on_two_nodes_equal_one_plain_process(
    training: Site, inputs: Path, plain: dict[str, list[float]], healthy_nodes: None, learns: str, zero: int
) -> None:
    adapter = {f"adapter.{key}": value for key, value in LORA.items()} if learns == "lora" else {}
    run = f"{learns}-zero{zero}"
    layers = FUSED | ({"compiled": "auto"} if (learns, zero) == ("lora", 3) else {})
    out = submit(training, inputs, run, zero=zero, steps=SHORT, **layers, **adapter)
    ended(training, run)
    assert toy.losses(out) == pytest.approx(plain[learns], abs=1e-5)


def test_a_training_of_auto_settings_is_interrupted_and_equals_the_undisturbed_one(
    training: Site, cluster: Cluster, inputs: Path, whole: Path, tmp_path: Path
) -> None:
    run = tmp_path.name
    auto = dict.fromkeys(("zero", "checkpointing", "attention", "compiled", "node_shards"), "auto")
    out, hold = held(training, inputs, run, **auto)
    (job,) = training.running(run, "train-lumen")
    begun = json.loads((out / "training.json").read_text())
    assert begun["train.zero"] == 1, "the stage is fixed at the first start"
    cluster.run("scancel", "--signal=USR2", job)
    training.wait(lambda: job not in training.running(run, "train-lumen"), 120, f"the end of job {job}")
    hold.unlink()
    ended(training, run)
    assert (out / "restarts.jsonl").exists() and json.loads((out / "training.json").read_text()) == begun
    assert toy.losses(out) == pytest.approx(toy.losses(whole), abs=1e-5)
    assert Counter(toy.consumed(out)) == IDS
