"""NVILA trained from its folder to its folder."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from lumen_hpc import nvila
from lumen_hpc.config.schema import Predict, Train
from lumen_hpc.data.records import Records
from lumen_hpc.distributed import Ranks, leave
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.prompt_form import PromptForm
from lumen_hpc.training import record_index, train
from lumen_hpc.training.folder import RESULTS
from lumen_hpc.training.predict import open_predictor
from lumen_hpc.training.record_index import BLOCK
from lumen_hpc.training.train import Inputs, fine_tune
from tests.training import tiny, toy

STEPS = 5
"""40 samples at 8 a step."""
MIXTURE = {"diagnostic": 4, "difference": 2, "prediction": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """Names of whole runs, each beside its folder."""
    folder = tmp_path_factory.mktemp("trained")

    def run(name, **settings):
        return tiny.run(folder / name, dataset, **settings)

    def start(*runs, world_size):
        toy.train(*runs, world_size=world_size, script=tiny.__file__)

    mixed = run("mixed", mixture=MIXTURE, loss="kinds", steps=3)
    fused = {"attention": "flex", "compiled": True}
    zero2 = run("zero2", zero=2, checkpointing="selective", **fused)
    auto = run("auto", zero="auto", checkpointing="auto")
    start(run("zero1"), zero2, run("zero3", zero=3, checkpointing="full", **fused), auto, mixed, world_size=2)
    nodes = run("node_shards", zero=3, node_shards=True, checkpoint_every=2) | {"nodes": 2}
    start(nodes | {"stop_at": 3}, nodes, world_size=4)
    early = run("early") | {"stop_at": 1}  # to stop before the first step
    frozen_twice = {"tune": ["projector", "llm"], "epochs": 2.4}
    kept = run("kept", **frozen_twice, cache_images_gb=0.1)
    whole = run("kept_whole", **frozen_twice, cache_images_gb=0.1)
    start(run("not_kept", **frozen_twice), whole, kept | {"stop_at": 5}, kept, world_size=1)
    frozen = run("frozen", tune=["projector", "llm"], zero=3, checkpointing="full")
    start(run("one"), run("separate", shared_prefix=False), frozen, early, run("short", epochs=0.4), world_size=1)
    return folder


def weights(out):
    return nvila.load(out / "final").state_dict()


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3", "auto", "node_shards"])
def test_several_processes_equal_one(trained, name):
    assert toy.losses(trained / name) == pytest.approx(toy.losses(trained / "one"), abs=1e-5)
    for key, tensor in weights(trained / "one").items():
        # A key's bias adds the same to every score, so its gradient is rounding alone, and AdamW makes steps of it.
        assert key.endswith("k_proj.bias") or torch.allclose(weights(trained / name)[key], tensor, atol=1e-5), key


def test_every_record_is_trained_on_once(trained, dataset):
    ids = [row["id"] for row in Records(dataset / "records.jsonl")]
    for name in ("one", "zero3", "separate"):
        assert Counter(toy.consumed(trained / name)) == Counter(ids)


def test_it_learns_and_the_loss_is_the_token_mean_over_the_whole_batch(trained, dataset):
    rows = toy.metrics(trained / "separate")
    assert rows[-1]["loss"] < rows[0]["loss"]
    ids = toy.consumed(trained / "separate")[:8]
    model = nvila.load(dataset / "base")
    chosen = [row for row in Records(dataset / "records.jsonl") if row["id"] in ids]
    batch = model.preprocess(chosen, inline=True).batch()
    with torch.inference_mode():
        assert rows[0]["loss"] == pytest.approx(float(model(batch).loss), abs=1e-5)
    assert rows[0]["supervised"] == batch.supervised


def test_every_rank_draws_dropout_of_its_own(trained):
    (checkpoint,) = (trained / "auto" / "checkpoints").glob("step-*5")
    states = [torch.load(checkpoint / f"rng-{rank:05d}.pt", weights_only=True)["torch"] for rank in range(2)]
    assert not torch.equal(*states)


def test_shared_images_give_the_losses_of_separate_samples_in_fewer_tokens(trained, dataset):
    one, separate = toy.metrics(trained / "one"), toy.metrics(trained / "separate")
    assert sum(row["tokens"] for row in one) < 0.7 * sum(row["tokens"] for row in separate)


def test_the_final_model_has_the_official_names_and_frozen_parts_are_untouched(trained, dataset):
    for part in ("llm", "vision_tower", "mm_projector"):
        before = load_file(dataset / "base" / part / "model.safetensors")
        after = load_file(trained / "frozen" / "final" / part / "model.safetensors")
        assert {k: (v.shape, v.dtype) for k, v in before.items()} == {k: (v.shape, v.dtype) for k, v in after.items()}
        assert all(torch.equal(after[k], v) for k, v in before.items()) == (part == "vision_tower")
    whole = load_file(trained / "one" / "final" / "vision_tower" / "model.safetensors")
    before = load_file(dataset / "base" / "vision_tower" / "model.safetensors")
    changed = {k for k, v in before.items() if not torch.equal(whole[k], v)}
    assert any("layers.1." in k for k in changed)
    # The last layer feeds nothing (hidden state -2 is taken), so it stays as it was.
    assert not any("layers.2." in k or "post_layernorm" in k for k in changed)


def test_the_final_model_says_how_it_was_trained_and_answers_that_way(trained, dataset):
    model = nvila.load(trained / "one" / "final")
    assert model.config.prompt_form == PromptForm.trained()
    rows = Records(dataset / "records.jsonl")
    asked = [rows[place] for place in range(0, len(rows), 3)]
    expected = open_predictor(trained / "one" / "final", Predict(max_new_tokens=12), model="lumen").answer(
        asked, range(len(asked))
    )
    assert [answer.text for answer in model.generate(asked, max_new_tokens=12)] == [row["answer"] for row in expected]


def test_final_weights_have_the_mode_of_other_files(trained):
    modes = {path.stat().st_mode for path in (trained / "one" / "final").rglob("*") if path.is_file()}
    assert modes == {(trained / "one" / "metrics.jsonl").stat().st_mode}


def test_a_stop_before_the_first_step_leaves_before_loading(trained):
    assert not (trained / "early" / "metrics.jsonl").exists()
    assert not (trained / "early" / record_index.FILE).exists()


def test_a_full_disk_at_the_export_names_the_checkpoint_to_go_on_from(alone, monkeypatch, tmp_path):
    (tmp_path / "checkpoints" / "step-000003").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000003" / "COMPLETE.json").touch()

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(train, "_write_final", full)
    with pytest.raises(UserError, match=r"No space left.*last complete checkpoint is .*step-000003"):
        train._export(SimpleNamespace(weights=dict), None, tmp_path, 3)


def test_all_that_a_training_writes_is_set_aside_with_it_or_of_one_job_only(trained):
    names = {path.name for run in ("zero3", "frozen") for path in (trained / run).iterdir()}
    of_the_job = {"health.json", "training.lock"}
    assert {name for name in names if not name.startswith("job-")} == {*RESULTS, *of_the_job} - {
        "restarts.jsonl",
        record_index.PARTS,
        "validation",
    }


def test_a_folder_in_which_another_job_trains_is_refused(dataset, tmp_path):
    code = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); f.write('job 7 on n1'); "
    code += "f.flush(); print(flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "training.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match=r"another training is running in .*\(job 7 on n1\)"):
            fine_tune(
                Train(**tiny.SETTINGS),
                Inputs(records=dataset / "records.jsonl", base=dataset / "base"),
                tmp_path,
                seed=0,
                ranks=Ranks(),
                should_stop=lambda: False,
            )
        leave()
        assert not (tmp_path / "training.json").exists()


def test_a_finished_training_ends_at_once_and_so_does_one_that_other_settings_set_aside(trained, dataset):
    out = trained / "short"
    first = (out / "final" / "complete.json").stat().st_mtime_ns
    of_speed = tiny.run(out, dataset, epochs=0.4, checkpoint_every=1, token_budget=600)
    other = tiny.run(out, dataset, epochs=0.4, learning_rate=2e-3)
    toy.train(of_speed, other, of_speed, script=tiny.__file__)
    # Had one of them trained again, or only resumed, it would have written the final model again.
    assert (out / "final" / "complete.json").stat().st_mtime_ns == first
    assert (out / "earlier" / "001" / "final" / "complete.json").stat().st_mtime_ns != first
    assert [folder.name for folder in (out / "earlier").iterdir()] == ["001"]
    assert len(toy.metrics(out)) == len(toy.metrics(out / "earlier" / "001")) == 2


def test_answers_are_the_same_from_the_final_model_and_from_a_checkpoint(trained, dataset):
    settings = Predict(max_new_tokens=8, controls=["swapped", "same", "other_patient", "no_image"])
    questions = Records(dataset / "records.jsonl")
    for name in ("zero1", "zero3", "frozen"):
        checkpoint = max((trained / name / "checkpoints").glob("step-*"))
        rows = [
            [
                {k: v for k, v in row.items() if k != "seconds"}
                for row in open_predictor(folder, settings, model="lumen", run=trained).answer(questions, range(5, 15))
            ]
            for folder in (trained / name / "final", checkpoint)
        ]
        assert rows[0] == rows[1]
    answered = [row["question_id"] for row in rows[0] if "control" not in row]
    assert answered == [questions[i]["id"] for i in range(5, 15)]
    assert Counter(row.get("control") for row in rows[0]) == {
        None: 10,
        "no_image": 10,
        "swapped": 2,
        "same": 2,
        "other_patient": 2,
    }


def test_shards_of_any_number_hold_the_same_answers(trained, dataset):
    questions = Records(dataset / "records.jsonl")

    def answers(*spans, batch_tokens):
        predictor = open_predictor(trained / "one" / "final", Predict(batch_tokens=batch_tokens), model="lumen")
        return [(row["question_id"], row["answer"]) for span in spans for row in predictor.answer(questions, span)]

    whole = answers(range(12), batch_tokens=32768)
    assert whole == answers(range(5), range(5, 12), batch_tokens=60)


def test_a_mixture_with_the_sum_of_kind_means(trained, dataset):
    for row in toy.metrics(trained / "mixed"):
        parts = [row[f"loss_{kind}"] for kind in MIXTURE]
        assert row["loss"] == pytest.approx(sum(parts), abs=1e-6)
    questions = {row["id"]: row["meta"]["type"] for row in Records(dataset / "records.jsonl")}
    first = Counter(questions[i] for i in toy.consumed(trained / "mixed")[:8])
    assert first == {"presence": 4, "difference": 2, "prediction": 2}


def spoiled(dataset, folder, change):
    """The records many times over, more than the first rank indexes, one of the second rank's changed."""
    lines = [json.loads(line) for line in (dataset / "records.jsonl").read_text().splitlines()]
    rows = [{**row, "id": f"{row['id']}-{again}"} for again in range(BLOCK // len(lines) + 2) for row in lines]
    texts = [json.dumps(row) for row in rows]
    texts[BLOCK + 7] = change(rows[BLOCK + 7])
    folder.mkdir()
    (folder / "base").symlink_to(dataset / "base")
    (folder / "records.jsonl").write_text("\n".join(texts))
    return folder


def test_every_rank_names_the_bad_record_that_one_of_them_met(dataset, tmp_path):
    no_images = spoiled(dataset, tmp_path / "fields", lambda row: json.dumps({**row, "images": None}))
    no_json = spoiled(dataset, tmp_path / "json", lambda row: json.dumps(row)[:40])
    runs = [tiny.run(tmp_path / f"out-{place.name}", place) | {"fails": True} for place in (no_images, no_json)]
    number = BLOCK + 8
    for text in toy.train(*runs, world_size=2, script=tiny.__file__):
        assert f"1 of {len((no_images / 'records.jsonl').read_text().splitlines())} records are bad" in text
        assert f"the first is record {number} " in text and "its images are not a list of paths" in text
        assert f"records.jsonl line {number}: not JSON" in text
        assert "Connection closed" not in text


def test_kept_features_change_no_bit_where_a_training_goes_on_and_no_loss_beside_none(trained):
    kept, whole, none = (toy.metrics(trained / name) for name in ("kept", "kept_whole", "not_kept"))
    assert len(kept) == 12
    assert kept == whole
    assert [step["loss"] for step in kept] == pytest.approx([step["loss"] for step in none], rel=1e-4)
