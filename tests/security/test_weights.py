"""Attacks by the author of a weights folder: code in a pickle, in a checkpoint, or in the model's own Python."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from lumen_hpc import nvila
from lumen_hpc.config.schema import EngineSettings, Predict
from lumen_hpc.errors import UserError
from lumen_hpc.files import foreign
from lumen_hpc.language.engine import open_engine
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training.checkpointing import MARKER, StagedWriter, restore_rng, rng_state
from lumen_hpc.training.predict import open_model, open_predictor
from sandbox.small_models import tiny_llama


class Payload:
    """Runs code when it is unpickled: it creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


@pytest.fixture
def witness(tmp_path) -> Path:
    return tmp_path / "code-ran"


@pytest.fixture
def checkpoint(tmp_path, witness) -> Path:
    """A folder like a training checkpoint, whose pickle runs code."""
    folder = tmp_path / "run" / "train-ft" / "checkpoints" / "step-000001"
    (folder / "deepspeed").mkdir(parents=True)
    torch.save({"module": Payload(witness)}, folder / "deepspeed" / "mp_rank_00_model_states.pt")
    base = tmp_path / "base"
    nvila.save(make_tiny(["is there edema?"]), base)
    marker = {"step": 1, "world_size": 1, "state": {"base": str(base), "fingerprint": {}}, "files": {}}
    (folder / MARKER).write_text(json.dumps(marker))
    return folder


def test_the_payload_of_these_tests_runs_when_it_is_unpickled(checkpoint, witness, monkeypatch):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    torch.load(checkpoint / "deepspeed" / "mp_rank_00_model_states.pt", weights_only=False)
    assert witness.exists()


def test_predict_does_not_read_a_checkpoint_given_as_a_base(checkpoint, witness):
    with pytest.raises(UserError, match="within the run that wrote it"):
        open_predictor(checkpoint, Predict(), model="nvila")
    assert not witness.exists()


def test_a_symlink_into_the_run_is_not_within_it(checkpoint, witness, tmp_path):
    outside = tmp_path / "elsewhere"
    shutil.move(checkpoint, outside)
    checkpoint.symlink_to(outside)
    with pytest.raises(UserError, match="within the run that wrote it"):
        open_model(checkpoint, run=tmp_path / "run")
    assert not witness.exists()


def test_a_checkpoint_in_the_runs_own_folder_runs_no_code_either(checkpoint, witness, tmp_path):
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        open_model(checkpoint, run=tmp_path / "run")
    assert not witness.exists()


def test_deepspeeds_optimizer_files_run_no_code(checkpoint, witness, tmp_path):
    torch.save({"optimizer_state_dict": Payload(witness)}, checkpoint / "deepspeed" / "zero_pp_rank_0_optim_states.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only|not found|zero"):
        open_model(checkpoint, run=tmp_path / "run")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        StagedWriter().load(str(checkpoint / "deepspeed" / "mp_rank_00_model_states.pt"))
    assert not witness.exists()


def test_a_checkpoint_that_others_can_write_is_refused(checkpoint, witness, tmp_path):
    os.chmod(checkpoint / "deepspeed", 0o777)
    with pytest.raises(UserError, match="written by any user"):
        open_model(checkpoint, run=tmp_path / "run")
    assert not witness.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_strangers_checkpoint_is_refused(checkpoint, witness, tmp_path):
    file = checkpoint / "deepspeed" / "mp_rank_00_model_states.pt"
    os.chown(file, 12345, -1)
    assert "belongs to user 12345" in foreign(file)
    with pytest.raises(UserError, match="belongs to user 12345"):
        open_model(checkpoint, run=tmp_path / "run")
    assert not witness.exists()


def test_generators_are_saved_without_pickled_code(tmp_path):
    import random

    import numpy as np

    state = rng_state()
    torch.save(state, tmp_path / "rng.pt")
    drawn = (random.random(), np.random.random(), float(torch.rand(())))
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True))
    assert (random.random(), np.random.random(), float(torch.rand(()))) == drawn


def test_a_language_models_pickled_weights_are_not_read(tmp_path, witness):
    folder = tiny_llama(tmp_path / "model")
    for file in folder.glob("*.safetensors"):
        file.unlink()
    torch.save({"weight": Payload(witness)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot load engine\.model"):
        open_engine(EngineSettings(kind="transformers", model=str(folder), dtype="float32"))
    assert not witness.exists()


def test_a_language_models_own_python_is_not_run(tmp_path, witness):
    folder = tiny_llama(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"from pathlib import Path\nPath({str(witness)!r}).touch()\n")
    with pytest.raises(UserError, match=r"cannot load engine\.model"):
        open_engine(EngineSettings(kind="transformers", model=str(folder), dtype="float32"))
    assert not witness.exists()
