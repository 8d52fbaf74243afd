"""Stand-in weights: whole, loadable by the stages that want them, the same for the same seed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import jobs
from lumen_hpc import nvila
from lumen_hpc.cluster import lock, manifest, status
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config.data_schema import Phantom, Pretrain
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.resolve import resolve
from lumen_hpc.config.schema import Experts, Instruct
from lumen_hpc.data import findings_line
from lumen_hpc.experts.phantom_expert import load_expert
from lumen_hpc.training import phantom_records, pretrain

SMALL = Pretrain(patients=12, expert_steps=2, base_steps=2, layers=2)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pretrain")
    beats = []
    paths = pretrain.pretrain(SMALL, Experts(model="phantom"), Instruct(), 5, folder, lambda: beats.append(1))
    return folder, paths, beats


def test_every_file_is_named_and_there(pretrained):
    folder, paths, beats = pretrained
    assert paths[0] == folder / "expert.safetensors"
    assert (folder / "nvila" / "config.json") in paths
    assert all(path.is_file() for path in paths)
    assert len(beats) == SMALL.steps
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["part"]) for row in rows] == [(1, "expert"), (2, "expert"), (3, "base"), (4, "base")]


def test_the_base_starts_from_the_experts_tower(pretrained):
    folder, _, _ = pretrained
    tower = dict(load_expert(folder / "expert.safetensors").tower.named_parameters())
    for name, weight in nvila.load(folder / "nvila").vision_tower.named_parameters():
        assert torch.equal(weight, tower[name]), name


def test_the_base_has_the_layers_of_the_settings(pretrained):
    assert len(nvila.load(pretrained[0] / "nvila").llm.model.layers) == SMALL.layers


def test_the_tokenizer_has_whole_words_for_what_the_models_say(pretrained):
    tokenizer = nvila.load(pretrained[0] / "nvila").tokenizer
    for text in ("the level of edema has changed from mild to severe.", "There is no evidence of cardiomegaly.",
                 "Expert models predict: view ap, nodule maybe yes."):  # fmt: skip
        words = text.replace(".", " .").replace(",", " ,").replace(":", " :").split()
        assert len(tokenizer.encode(text)) <= len(words) + 1
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_same_seed_makes_the_same_expert(pretrained, tmp_path):
    pretrain.pretrain(SMALL, Experts(model="phantom"), Instruct(), 5, tmp_path)
    one, two = (load_expert(folder / "expert.safetensors").state_dict() for folder in (pretrained[0], tmp_path))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_log_tells_how_far_it_is(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=iter([0.0, 40.0, 80.0, 120.0]).__next__))
    pretrain._StepLog(tmp_path, SMALL).write(iter([0.9, 0.5, 0.25]), "base", 3, lambda: None)
    lines = ["base step 1/3: loss 0.900, ETA 80 s", "base step 2/3: loss 0.500, ETA 40 s", "base step 3/3: loss 0.250"]
    assert capsys.readouterr().out.splitlines() == lines


def test_status_shows_how_long_both_trainings_will_take(monkeypatch, tmp_path):
    run = Run(tmp_path, resolve(["stage=full", "profile=local"]).settings, Profile())
    run.settings.pretrain = Pretrain(expert_steps=3, base_steps=5)
    folder = run.path("pretrain")
    times = iter([0.0, 9.0, 11.0, 13.0, 100.0, 102.0])
    monkeypatch.setattr(pretrain, "time", SimpleNamespace(monotonic=times.__next__))
    steps = pretrain._StepLog(folder, run.settings.pretrain)
    steps.write(iter([3.0, 2.0, 1.0]), "expert", 3, lambda: None)
    steps.write(iter([4.0]), "base", 5, lambda: None)
    manifest.append(folder / "attempts.jsonl", {"event": "began", "job": "", "chain": "", "pack": 0})
    with lock.held(tmp_path):
        found = status.read(run, [jobs.pretrain.STAGE])[0]
    assert found.progress == "step 4 of 8, 2 s a step in 1 process, measured in this run"
    assert found.eta_seconds == 8.0
    pretrain._StepLog(folder, run.settings.pretrain)
    assert jobs.pretrain.STAGE.progress(run.settings, folder) is None, "a new attempt begins anew"


def test_records_in_memory_show_the_images_and_say_what_the_stages_say():
    from lumen_hpc.data import phantom

    timelines = [phantom.patient(1, number, Phantom()) for number in range(8)]
    rows = phantom_records.records(timelines, Instruct(findings_first=True, expert_text=False), seed=0)
    kinds = [row["meta"]["type"] for row in rows]
    assert kinds.count("difference") == kinds.count("prediction") == len(timelines)
    for row in rows:
        assert [id(image) for image in row["images"]] == [
            id(study.pixels) for timeline in timelines for study in timeline
            if str(study.study_id) in ((row["meta"]["ref_study_id"], row["meta"]["study_id"])
                                      if row["meta"]["type"] == "difference" else
                                      (row["meta"]["ref_study_id"],) if row["meta"]["type"] == "prediction" else
                                      (row["meta"]["study_id"],))
        ]  # fmt: skip
        answer = row["conversations"][1]["value"]
        assert findings_line.strip(answer) == row["meta"]["long_answer"]
        assert (findings_line.strip(answer) != answer) == (row["meta"]["type"] in ("difference", "prediction"))


def test_image_groups_are_the_records_with_the_same_pictures():
    one, two = np.zeros((2, 2)), np.zeros((2, 2))
    groups = pretrain.image_groups([{"images": [one]}, {"images": [two]}, {"images": [one]}, {"images": [one, two]}])
    assert groups.tolist() == [0, 1, 0, 2]
