"""What the documents show can be typed: their commands, settings and imports resolve, and their files are there."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import PIPELINE
from lumen_hpc.cluster import estimate, plan, submit
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Settings
from lumen_hpc.config.validate import keys

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def _blocks(text: str) -> list[str]:
    """The fenced blocks of a document, indented ones too."""
    return re.findall(r"^ *```[a-z]*\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_imports_in_examples_resolve(document):
    lines = [line.strip() for block in _blocks(document.read_text()) for line in block.splitlines()]
    for line in lines:
        if re.match(r"(from lumen_hpc\S* import|import lumen_hpc)\b", line):
            exec(line.split("#")[0], {})


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_exist(document):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


MODULES = sorted(
    {
        name
        for document in DOCUMENTS
        for name in re.findall(r"python -m\s+((?:benchmarks|lumen_hpc|sandbox|tests)(?:\.\w+)+)", document.read_text())
    }
    - {"lumen_hpc.nvila.cards"}  # takes no arguments: it prints its table
)


@pytest.mark.parametrize("module", ["benchmarks.cheats", "benchmarks.fact_check"])
def test_a_benchmark_of_a_file_that_is_not_there_says_so_in_a_line(module, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", module, "absent"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode and "absent" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("module", MODULES)
def test_a_module_that_the_pages_run_explains_itself(module, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-500:]
    assert module in done.stdout or "usage:" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_command_in_the_documents_is_understood(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    found = 0
    for page in DOCUMENTS:
        text = page.read_text().replace("\\\n", " ")
        for words in re.findall(r"^ *(?:[A-Z_]+=\S+ )*python launch\.py +(\S[^\n`]*)$", text, re.MULTILINE):
            words = [word for word in shlex.split(words.split(" # ")[0]) if not set("…<>|[") & set(word)]
            if words and "--help" not in words and not any(word.startswith(("config=", "profile=")) for word in words):
                found += 1
                resolve([word for word in words if not word.isupper()])
    assert found >= 5


def test_every_setting_in_the_documents_exists():
    known = {"profile", "stage", "run", "runs", "recipe", "config", "dry_run", "watch", "json", "data"}
    known |= set(keys(Settings, "")) | {f"profile.{key}" for key in keys(Profile, "")}
    sections = {item.name for item in dataclasses.fields(Settings)} | {"profile"}
    named = {
        (page.name, key)
        for page in DOCUMENTS
        for code in re.findall(r"`([^`\n]+)`", page.read_text())
        for key in re.findall(r"(?<![\w/.])([a-z]\w*(?:\.\w+)+)(?==|$|\s|,)", code)
        if key.split(".")[0] in sections and not key.endswith((".py", ".yaml", ".jsonl", ".json", ".md"))
    }
    assert len(named) >= 30
    assert {
        (page, key) for page, key in named if key not in known and not key.startswith("profile.resources.")
    } == set()


def test_there_is_something_to_check():
    assert sum(len(_blocks(document.read_text())) for document in DOCUMENTS) > 20


def _plans(tmp_path, *words):
    """The request of a dry run of everything, and its plans."""
    request = resolve(["stage=full", f"runs={tmp_path}", "run=figures", *words])
    plans, _ = submit.make_plans(request, PIPELINE.stages, submit.open_run(request))
    return request, {item.step.name: item for item in plans}


def _training(tmp_path, *words):
    """Whole hours by the clock and GB a GPU of LUMEN's training, and the MFU that they assume."""
    request, _ = _plans(tmp_path, *words)
    text = str(estimate.training(submit.open_run(request), "lumen"))
    found = re.search(r"^(\d+) GB a GPU.*; ([\d.]+) h on .* at MFU 0(\.\d+)", text)
    assert found, text
    return round(float(found[2])), int(found[1]), found[3]


def test_the_readmes_estimates_are_those_of_a_dry_run(tmp_path):
    text = " ".join((ROOT / "README.md").read_text().split())
    _, whole = _plans(tmp_path, "profile=h100", "recipe=lumen")
    _, one_judge = _plans(tmp_path, "profile=h100", "recipe=lumen", "judge.second=null")
    total, less = (round(plan.total_gpu_hours(list(plans.values()))) for plans in (whole, one_judge))
    training = round(sum(whole[name].gpu_hours for name in ("train-ft", "train-lumen")))
    loading = round(sum(item.load_hours * len(item.packs) * item.gpus for item in whole.values()))
    assert f"about {total} GPU-hours for the whole of the paper and a second judge ({less} with" in text
    hours, memory, mfu = _training(tmp_path, "profile=h100", "recipe=lumen")
    assert (
        f"Of the {total} GPU-hours on nodes of 4 H100, training takes {training}: {hours} hours by the clock for"
        in text
    )
    assert f"with {memory} GB per GPU, at the MFU of {mfu} that" in text
    assert f"Loading models, once per task, takes {loading}." in text
    one_gpu = ("profile.resources.train.gpus=1", "profile.resources.train.tasks_per_node=1")
    hours, memory, _ = _training(tmp_path, "profile=h100", "recipe=lora", *one_gpu)
    assert f"about {hours} hours for LUMEN on one GPU of 80 GB, with {memory} GB by the plan" in text
    _, memory, _ = _training(tmp_path, "profile=gpu24", "recipe=lumen")
    assert f"one GPU of 24 GB, with {memory} GB by the plan" in text
