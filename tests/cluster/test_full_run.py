"""The project's own eight stages on a real Slurm: one submission, attacked while it runs, ends by itself and with the
tables of a run that was left alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox.checkout import ROOT, make
from sandbox.slurm import Cluster
from tests.cluster.conftest import Site
from tests.training import toy

MODELS = ("nvila", "ft", "lumen")
STEPS, EVERY = 30, 5
HELD_AFTER = 12  # of training_chain/train.py
RECIPE = (
    "pretrain.patients=40", "pretrain.expert_steps=20", "pretrain.base_steps=10",
    "data.phantom.patients=40", "data.phantom.test_fraction=0.2", "prepare.image_threads=1",
    f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}", "train.workers=1", "experts.workers=0",
    "predict.controls=[same]", "predict.max_new_tokens=8", "evaluate.gates=false", "evaluate.bootstrap=50",
)  # fmt: skip
"""The demo's recipe, scaled down."""
SITE = (
    "profile.environment={OMP_NUM_THREADS: '1', HF_HUB_OFFLINE: '1'}",
    "profile.resources.train.partition=preempt", "profile.resources.gpu.tasks=2", "profile.resources.judge.tasks=2",
    "profile.resources.gpu.successors=2", "profile.resources.train.successors=4",
    "profile.resources.train.gpus=2",  # so that both trainings run at once on two of three nodes
)  # fmt: skip
HELD = """
import time
from dataclasses import replace
from jobs import pretraining

STAGE = pretraining.STAGE

def work(task):
    hold = task.run.folder.with_name(f"{task.run.folder.name}.hold-pretrain")

    def beat(*doing, **options):
        while hold.exists() and not task.should_stop():
            time.sleep(0.05)
        task.beat(*doing, **options)

    return pretraining.work(replace(task, beat=beat))
"""
"""The project's own pretraining, which lies beside it as pretraining.py, held while a test says so."""


class Attacked:
    """One run of the project's own stages."""

    def __init__(self, site: Site, name: str) -> None:
        self.site, self.name, self.folder = site, name, site.runs / name

    def submit(self) -> None:
        self.site.submit(self.name, "recipe=demo", *RECIPE, *SITE)

    def lines(self, path: str) -> list[dict]:
        file = self.folder / path
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def steps(self, model: str) -> int:
        return len(self.lines(f"train-{model}/metrics.jsonl"))

    def node(self, step: str) -> str:
        """Where the step's newest attempt began."""
        return self.lines(f"{step}/attempts.jsonl")[-1]["node"]

    def events(self, step: str) -> list[str]:
        return [row["event"] for row in self.lines(f"{step}/attempts.jsonl")]

    def wait(self, reached: Callable[[], object], seconds: float, what: str) -> None:
        self.site.wait(reached, seconds, f"{what} of run {self.name}")

    def tables(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "report").glob("tables.*")}


@pytest.fixture(scope="module")
def demo_site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A checkout with the project's own jobs, whose trainings wait in mid-run while a test holds them."""
    folder = tmp_path_factory.mktemp("full")
    jobs = folder / "jobs"
    shutil.copytree(ROOT / "jobs", jobs, ignore=shutil.ignore_patterns("__pycache__"))
    (jobs / "train.py").rename(jobs / "training.py")
    shutil.copy(Path(__file__).parent / "training_chain" / "train.py", jobs)
    (jobs / "pretrain.py").rename(jobs / "pretraining.py")
    (jobs / "pretrain.py").write_text(HELD)
    return Site(make(folder / "checkout", jobs=jobs), cluster, folder / "runs")


@pytest.fixture(scope="module")
def left_alone(demo_site: Site) -> Attacked:
    run = Attacked(demo_site, "alone")
    run.submit()
    demo_site.wait_until_left("alone", 400)
    return run


@pytest.mark.timeout(3600)  # two whole runs; four minutes on two idle cores
def test_a_run_that_is_attacked_on_all_sides_ends_by_itself_with_the_same_tables(
    demo_site: Site, left_alone: Attacked, cluster: Cluster, healthy_nodes: None
) -> None:
    tried = sum(path.is_dir() for path in demo_site.runs.glob("attacked*"))  # a second try takes another run
    run = Attacked(demo_site, f"attacked{tried or ''}")
    hold, hold_pretrain = (demo_site.runs / f"{run.name}.{name}" for name in ("hold", "hold-pretrain"))
    hold.touch()
    hold_pretrain.touch()
    run.submit()

    # Slurm 22.05 never gives back the GPUs of tasks that end while its controller is away; so none runs here.
    ended = (f"{run.name}.prepare", f"{run.name}.rewrite")
    run.wait(lambda: not [job for job in demo_site.jobs(run.name) if job[1] in ended], 200, "the end of rewrite")
    assert demo_site.running(run.name, "pretrain"), "the controller should be away while something runs"
    cluster.restart_controller()
    hold_pretrain.unlink()

    run.wait(lambda: run.events("instruct")[-1:] == ["done"], 200, "the end of instruct")
    corrupt(run.folder / "rewrite" / "shard-00000-of-00002.jsonl")

    run.wait(lambda: run.steps("lumen") == HELD_AFTER, 200, "steps of train-lumen")
    preempt(cluster, run.node("train-lumen"))
    run.wait(lambda: "interrupted" in run.events("train-lumen"), 60, "train-lumen to be preempted")

    run.wait(lambda: run.steps("lumen") > HELD_AFTER + EVERY, 200, "train-lumen past another checkpoint")
    victim = run.node("train-lumen")
    cluster.kill_node(victim)
    cluster.declare_dead(victim)
    assert run.steps("lumen") < STEPS, "it was killed too late"
    hold.unlink()
    corrupt(run.folder / "instruct" / "lumen-test.jsonl")

    run.wait(lambda: run.events("judge-nvila").count("done") == 2, 200, "judge-nvila")
    corrupt(run.folder / "predict-nvila" / "shard-00000-of-00002.jsonl")

    demo_site.wait_until_left(run.name, 400)
    assert left_alone.tables().keys() == {"tables.md", "tables.csv", "tables.tex"}
    assert run.tables() == left_alone.tables()
    for model in MODELS:
        assert answers(run, model) == answers(left_alone, model) != []
    for model in ("ft", "lumen"):
        one, other = (attempt.folder / f"train-{model}" for attempt in (run, left_alone))
        assert toy.metrics(one) == toy.metrics(other)
        assert toy.consumed(one) == toy.consumed(other)
        assert weights(one) == weights(other)
    assert run.events("train-lumen").count("began") > 2
    written = {step: len(run.lines(f"{step}/manifest.jsonl")) for step in ("instruct", "rewrite", "predict-nvila")}
    assert written == {"instruct": 2, "rewrite": 3, "predict-nvila": 3}, "each corrupt shard is written once more"
    page = (run.folder / "report" / "index.html").read_text()
    assert "the end of killed tasks are Slurm's (sacct)" in page
    lost = dict(re.findall(r'<tr><th scope="row">([\w-]+)</th>(?:<td>[^<]*</td>){9}<td>([^<]*)</td>', page))
    assert all(lost[step] != "0 s" for step in ("predict-nvila", "train-lumen", "all")), lost
    assert lost["prepare"] == "0 s" == lost["judge-ft"], lost
    status = json.loads(demo_site.launch("status", f"run={run.name}", "json=true"))
    assert {step["state"] for step in status["steps"]} == {"done"}


def preempt(cluster: Cluster, node: str) -> None:
    """A job of higher priority takes that node."""
    cluster.run(
        "sbatch", "-p", "h100", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1"
    )  # fmt: skip


def corrupt(file: Path) -> None:
    """Other bytes in the same number, as a bad disk or a stray script leaves them."""
    content = file.read_bytes()
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def weights(training: Path) -> dict[str, bytes]:
    files = sorted((training / "final").rglob("*.safetensors"))
    assert len(files) == 3
    return {file.parent.name: file.read_bytes() for file in files}


def answers(run: Attacked, model: str) -> list[tuple[str, str]]:
    rows = [row for k in range(2) for row in run.lines(f"predict-{model}/shard-{k:05d}-of-00002.jsonl")]
    return [(row["question_id"], row["answer"]) for row in rows]
