"""What a training's own log says of its speed, and which earlier measurement a plan takes."""

from __future__ import annotations

import json

import pytest

from lumen_hpc.config.data_schema import Pretrain
from lumen_hpc.config.schema import Adapter, Train
from lumen_hpc.training import speed
from lumen_hpc.training.sizing import plan


def write(folder, rows, tail="", **settings):
    begun = {"train.learning_rate": 1.5e-5, "train.zero": 2, "seed": 0, **settings}
    (folder / "training.json").write_text(json.dumps(begun))
    lines = [json.dumps({"step": step, "timing": timing}) + "\n" for step, timing in rows]
    (folder / "metrics.jsonl").write_text("".join(lines) + tail)


def timing(seconds, *, gpus=4, steps=100, **more):
    return {"seconds": seconds, "gpus": gpus, "steps": steps, **more}


def test_a_run_s_own_steps_say_how_fast_it_is(tmp_path):
    write(tmp_path, [(1, timing(90.0)), *((step, timing(10.0, mfu=0.31)) for step in range(2, 41))], '{"step": 41, "ti')
    found = speed.run_progress(tmp_path, Train(zero="auto"))
    assert found == speed.Progress(step=40, steps=100, seconds=10.0, gpus=4, mfu=0.31)
    assert found.eta_seconds == 600 and found.gpu_hours == pytest.approx(4 * 600 / 3600)
    assert str(found) == "step 40 of 100, 10 s a step on 4 GPUs, MFU 0.31, measured in this run"


def test_a_training_without_gpus_is_not_said_to_have_some(tmp_path):
    for gpus, where in ((2, "in 2 processes"), (1, "in 1 process")):
        write(tmp_path, [(step, timing(0.25, gpus=gpus)) for step in range(1, 11)])
        assert str(speed.run_progress(tmp_path, Train(zero="auto"))) == (
            f"step 10 of 100, 0.25 s a step {where}, measured in this run"
        )


def test_the_last_validation_loss_is_reported_however_long_ago(tmp_path):
    write(tmp_path, [(step, timing(10.0)) for step in range(1, 91)])
    path = tmp_path / "metrics.jsonl"
    rows = [json.loads(line) for line in path.open()]
    rows[9] |= {"validation_loss": 2.0}
    rows[19] |= {"validation_loss": 1.5, "validation_loss_difference": 1.0}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert str(speed.run_progress(tmp_path, Train(zero="auto"))).endswith("validation loss 1.5 at step 20")


def test_steps_on_another_number_of_gpus_do_not_count(tmp_path):
    write(tmp_path, [(2, timing(10.0)), (3, timing(10.0)), (4, timing(40.0, gpus=1))])
    assert speed.run_progress(tmp_path, Train(zero="auto")).seconds == 40.0


def test_the_first_step_with_the_start_in_its_time_does_not_count(tmp_path):
    write(tmp_path, [(1, timing(90.0)), (2, timing(10.0))])
    assert speed.run_progress(tmp_path, Train(zero="auto")).seconds == 10.0


def test_a_pretraining_of_another_length_is_not_this_one(tmp_path):
    write(tmp_path, [(step, timing(10.0, steps=60)) for step in (1, 2)])
    assert speed.pretraining_progress(tmp_path, Pretrain(expert_steps=40, base_steps=20)).step == 2
    assert speed.pretraining_progress(tmp_path, Pretrain(expert_steps=40, base_steps=30)) is None


@pytest.mark.parametrize("rows", [None, [], [(1, timing(90.0))], [(2, {"seconds": 10.0})]])
def test_before_a_second_step_nothing_is_measured(tmp_path, rows):
    if rows is not None:
        write(tmp_path, rows)
    assert speed.run_progress(tmp_path, Train(zero="auto")) is None


def test_a_training_of_other_settings_is_not_this_one(tmp_path):
    rows = [(step, timing(10.0)) for step in (1, 2, 3)]
    write(tmp_path, rows, **{"train.learning_rate": 1.0})
    assert speed.run_progress(tmp_path, Train(zero="auto")) is None
    write(tmp_path, rows, **{"train.zero": 3, "train.betas": [0.9, 0.999]})
    assert (
        speed.run_progress(tmp_path, Train(zero=3)) is not None and speed.run_progress(tmp_path, Train(zero=2)) is None
    )
    assert speed.run_progress(tmp_path, Train(zero=3, adapter=Adapter(kind="lora"))) is None
    write(tmp_path, rows, **{"train.tune": ["llm", "projector"]})
    assert speed.run_progress(tmp_path, Train(zero="auto", tune=["projector", "llm"])) is not None


def test_the_nearest_measurement_counts_and_is_named():
    shared, separate = (
        speed.nearest_measurement("A100", shared_prefix=sharing, checkpointing="none", compiled=True)
        for sharing in (True, False)
    )
    assert (shared.mfu, separate.mfu) == (0.387, 0.304)
    alike = speed.nearest_measurement("H200", shared_prefix=True, checkpointing="selective", compiled=True)
    assert alike.mfu == 0.457
    plain = speed.nearest_measurement("H200", shared_prefix=True, checkpointing="selective", compiled=False)
    assert plain.mfu == 0.344
    assert "MFU 0.34 (measured on one H200, 2026-11-28: plain layers, full recomputation)" in str(plan(Train(), 4))


def test_a_run_s_own_measurement_replaces_the_table_in_the_plan():
    own = speed.Progress(step=200, steps=4030, seconds=6.0, gpus=8, mfu=0.41)
    found = plan(Train(), 8, progress=own)
    assert found.hours == pytest.approx(6.0 * 4030 / 3600, rel=1e-3) and found.mfu == 0.41
    assert 1.8 < plan(Train(), 4, progress=own).hours / found.hours < 2  # fewer GPUs are filled better
    assert "MFU 0.41 (measured in this run)" in str(found)


def test_peaks_are_found_by_a_part_of_the_device_s_name():
    assert speed.peak_flops("NVIDIA H100 80GB HBM3") == 989e12 and speed.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert speed.peak_flops("a CPU") == 0
