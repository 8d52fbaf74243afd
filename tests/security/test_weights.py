"""Attacks by the author of a weights folder: code in a pickle, in a checkpoint, or in the model's own Python."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from lumen_hpc import nvila
from lumen_hpc.cluster import run_model
from lumen_hpc.cluster.stage import Run
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import EngineSettings, Experts, Predict, Settings
from lumen_hpc.errors import UserError
from lumen_hpc.experts import xrv_weights
from lumen_hpc.experts.protocol import open_expert
from lumen_hpc.files import foreign, sha256
from lumen_hpc.language.engine import open_engine
from lumen_hpc.nvila.tensors import read_tensors
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.serving.export import export
from lumen_hpc.training.accelerator import FORCE_WEIGHTS_ONLY
from lumen_hpc.training.checkpointing import MARKER, StagedWriter, _convert
from lumen_hpc.training.generators import restore_rng, rng_state
from lumen_hpc.training.predict import open_model, open_predictor
from lumen_hpc.watchdog import unwatched
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


def test_the_payload_of_these_tests_runs_when_it_is_unpickled(checkpoint, witness):
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


@pytest.mark.parametrize("earlier", [None, "0"])
def test_a_checkpoint_that_was_opened_leaves_other_pickles_of_the_process_readable(
    checkpoint, witness, tmp_path, monkeypatch, earlier
):
    if earlier is not None:
        monkeypatch.setenv(FORCE_WEIGHTS_ONLY, earlier)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        open_model(checkpoint, run=tmp_path / "run")
    assert os.environ.get(FORCE_WEIGHTS_ONLY) == earlier
    torch.load(checkpoint / "deepspeed" / "mp_rank_00_model_states.pt", weights_only=False)
    assert witness.exists()


def test_a_checkpoint_that_was_changed_after_it_was_written_is_not_opened(checkpoint, tmp_path):
    marker = json.loads((checkpoint / MARKER).read_text())
    name = "deepspeed/mp_rank_00_model_states.pt"
    file = checkpoint / name
    marker["files"] = {name: [file.stat().st_size, sha256(file)]}
    (checkpoint / MARKER).write_text(json.dumps(marker))
    file.write_bytes(file.read_bytes()[:-1] + b"~")
    with pytest.raises(UserError, match=f"{name} was changed after it was written"):
        open_model(checkpoint, run=tmp_path / "run")
    (checkpoint / MARKER).write_text('{"step": 1')
    with pytest.raises(UserError, match="its marker cannot be read"):
        open_model(checkpoint, run=tmp_path / "run")


def test_a_checkpoint_whose_base_was_removed_names_the_base(checkpoint, tmp_path):
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(UserError, match=f"was trained from {tmp_path / 'base'}.*put that model back there"):
        open_model(checkpoint, run=tmp_path / "run")


def test_deepspeeds_optimizer_files_run_no_code(checkpoint, witness, tmp_path):
    torch.save({"optimizer_state_dict": Payload(witness)}, checkpoint / "deepspeed" / "zero_pp_rank_0_optim_states.pt")
    with pytest.raises(Exception, match=r"(?i)weights.only|not found|zero"):
        open_model(checkpoint, run=tmp_path / "run")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        StagedWriter().load(str(checkpoint / "deepspeed" / "mp_rank_00_model_states.pt"))
    assert not witness.exists()


def test_a_checkpoint_that_is_converted_for_other_ranks_runs_no_code(checkpoint, witness, tmp_path):
    torch.save({"optimizer_state_dict": Payload(witness)}, checkpoint / "deepspeed" / "zero_pp_rank_0_optim_states.pt")
    with pytest.raises(RuntimeError, match=r"(?i)weights.only"):
        _convert(checkpoint / "deepspeed", tmp_path / "universal", unwatched)
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


@pytest.fixture
def expert_pickle(tmp_path, witness) -> Path:
    """A folder with a pickle that runs code, and with its hash, as the folder's author writes both."""
    folder = tmp_path / "experts"
    folder.mkdir()
    file = folder / xrv_weights.url(EXPERT).rsplit("/", 1)[-1]
    torch.save(Payload(witness), file)
    (folder / xrv_weights.HASHES_FILE).write_text(json.dumps({file.name: sha256(file)}))
    return folder


EXPERT = "densenet121-res224-all"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("given_away", ["", "fetched.json"])
def test_a_strangers_folder_of_expert_weights_is_not_loaded_though_it_records_its_hashes(
    expert_pickle, witness, tmp_path, given_away
):
    os.chown(expert_pickle / given_away, 12345, -1)
    settings = Experts(model="xrv", weights=str(expert_pickle), pathologies=[EXPERT], extra=[])
    with pytest.raises(UserError, match=r"experts\.weights=.* belongs to user 12345.*pickles can run code"):
        open_expert(settings, cache=str(tmp_path), pretrained=tmp_path)
    assert not witness.exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_question_to_a_strangers_run_does_not_load_its_experts(expert_pickle, witness, tmp_path):
    """Its config.yaml says where they lie, and that they are trusted."""
    settings = Settings()
    settings.instruct.expert_text = True
    settings.experts = Experts(
        model="xrv", weights=str(expert_pickle), pathologies=[EXPERT], extra=[], trust_unknown_weights=True
    )
    run = Run(tmp_path / "run", settings, Profile(cache=str(tmp_path)))
    nvila.save(make_tiny(["is there edema?"]), run.path("train", "lumen") / "final")
    os.chown(run.folder, 12345, -1)
    with pytest.raises(UserError, match=r"belongs to user 12345.*could run another user's code"):
        run_model.open_model(run, "lumen")
    assert not witness.exists()


TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [8, 0]}, {"data_offsets": [-8, 8]}, {"data_offsets": [0, 8, 8]}, {"data_offsets": [0.0, 8.0]},
        {"data_offsets": [1, 8]}, {"shape": [3]}, {"shape": [1 << 40, 1 << 40]}, {"shape": None}, {"shape": ["2"]},
        {"dtype": ["F32"]}, {"dtype": None}, {"dtype": "F32", "shape": [[2]]},
    ],
)  # fmt: skip
def test_a_header_that_lies_is_one_line_with_the_files_name(tmp_path, change):
    header = json.dumps({"a": TENSOR | change, "z": TENSOR}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match=r"model\.safetensors(: a | is not a complete)"):
        list(read_tensors(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("offsets", "size"),
    [
        ([(0, 64), (0, 64)], 64),  # a thousand names of one tensor: a small file that fills any memory
        ([(0, 64), (32, 96)], 96), ([(0, 32), (48, 80)], 80), ([(16, 48)], 48), ([(0, 0), (-64, 0)], 0),
        ([(0, 64), (64, 32)], 32),
    ],
)  # fmt: skip
def test_tensors_that_share_bytes_or_leave_some_are_refused(tmp_path, offsets, size):
    header = json.dumps(
        {str(k): {"dtype": "U8", "shape": [b - a], "data_offsets": [a, b]} for k, (a, b) in enumerate(offsets)}
    ).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(UserError, match="does not begin where the tensor before it ends"):
        list(read_tensors(tmp_path / "model.safetensors"))


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write((1 << 40).to_bytes(8, "little"))
        file.truncate(1 << 41)
    with pytest.raises(UserError, match="its header does not fit"):
        list(read_tensors(tmp_path / "model.safetensors"))


def test_a_header_nested_without_end_is_one_line(tmp_path):
    header = b"[" * 200_000
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(UserError, match="is not a complete safetensors file"):
        list(read_tensors(tmp_path / "model.safetensors"))


@pytest.fixture
def nvila_folder(tmp_path) -> Path:
    folder = nvila.save(make_tiny(["is there edema?"]), tmp_path / "models--org--name" / "snapshots" / "a1")
    (folder / "complete.json").unlink()
    return folder


@pytest.mark.parametrize("name", ["llm/notes.txt", "llm/added_tokens.json", "config.json", "vision_tower/config.json"])
def test_a_link_to_a_users_secret_is_not_copied_into_what_is_saved_or_published(nvila_folder, tmp_path, name):
    """As `git clone` of a repository creates it: `llm/notes.txt -> /home/you/.ssh/id_rsa`."""
    (tmp_path / "secret").write_text('{"auths": "secret", "hidden_size": 8, "image_size": 8, "patch_size": 8}')
    (nvila_folder / name).unlink(missing_ok=True)
    (nvila_folder / name).symlink_to(tmp_path / "secret")
    for use in (nvila.load, lambda folder: export(folder, tmp_path / "exported", "card")):
        with pytest.raises(UserError, match=rf"{name} is a link to .*secret, which is no file of this checkpoint"):
            use(nvila_folder)
    assert not (tmp_path / "exported").exists()


def test_the_links_of_the_hubs_cache_are_the_checkpoints_own(nvila_folder):
    blobs = nvila_folder.parent.parent / "blobs"
    blobs.mkdir()
    for place, path in enumerate(sorted(path for path in nvila_folder.rglob("*") if path.is_file())):
        path.rename(blobs / str(place))
        path.symlink_to(os.path.relpath(blobs / str(place), path.parent))
    nvila.load(nvila_folder)


def test_a_pipe_in_a_checkpoint_is_not_waited_for(nvila_folder):
    os.mkfifo(nvila_folder / "llm" / "notes.txt")
    nvila.load(nvila_folder)
    (nvila_folder / "config.json").unlink()
    os.mkfifo(nvila_folder / "config.json")
    with pytest.raises(UserError, match="a pipe"):
        nvila.load(nvila_folder)


@pytest.mark.parametrize("part", ["", "llm", "vision_tower", "mm_projector"])
@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"a":' * 100_000, b"{", b"[]", b"null", b"\xff", b'{"a": ' + b"9" * 10_000 + b"}", b""],
)
def test_a_config_that_is_no_object_is_one_line(nvila_folder, part, content):
    (nvila_folder / part / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json cannot be read as json"):
        nvila.load(nvila_folder)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("", {"max_tiles": 1_000_000}), ("", {"max_tiles": 129, "min_tiles": 129}), ("", {"s2_scales": "32,32000000"}),
        ("", {"s2_scales": [32, 10**30]}), ("", {"s2_scales": "9" * 5000}),
        ("", {"mm_vision_select_layer": "x"}), ("", {"image_encoder": "[]"}), ("", {"image_encoder": "{"}),
        ("", {"image_encoder": 3}), ("", {"image_aspect_ratio": ["resize"]}), ("", {"chat_template": []}),
        ("", {"text_config": 3}), ("", {"text_config": {}, "vision_config": []}), ("", {"text_config": {}}),
        ("mm_projector", {"mm_projector_type": []}), ("mm_projector", {"mm_projector_type": {"a": 1}}),
        ("llm", {"num_hidden_layers": 10**9}), ("llm", {"num_hidden_layers": -1}), ("llm", {"hidden_size": 10**12}),
        ("llm", {"vocab_size": 10**15}), ("llm", {"vocab_size": "x"}), ("llm", {"num_attention_heads": 0}),
        ("llm", {"torch_dtype": "hub"}), ("llm", {"torch_dtype": ["float32"]}),
        ("llm", {"dtype": "--trust-remote-code"}),
        ("llm", {"model_max_length": "x"}), ("llm", {"max_position_embeddings": []}),
        ("llm", {"eos_token_id": {"a": 1}}), ("vision_tower", {"image_size": 10**9}),
        ("vision_tower", {"image_size": 0}),
        ("vision_tower", {"patch_size": 0}), ("vision_tower", {"num_hidden_layers": 10**9}),
        ("vision_tower", {"hidden_size": True}),
    ],
)  # fmt: skip
def test_a_value_that_would_fill_the_memory_or_is_of_another_type_is_one_line(nvila_folder, part, change):
    """`max_tiles` of a million alone would count grids for a century."""
    path = nvila_folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="|".join(change) + "|of another type|_config|is missing"):
        nvila.load(nvila_folder)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("adapter_config.json", {"base_model_name_or_path": "attacker/model", "peft_type": "LORA"}, "an adapter"),
        ("config.json", {"speculators_config": {"verifier": {"name_or_path": "/tmp/other"}}}, "names another model"),
        ("config.json", {"_attn_implementation": "attacker/kernel"}, "attention code from the hub"),
        ("config.json", {"attn_implementation": "paged|attacker/kernel@main:flash"}, "attention code from the hub"),
        ("config.json", {"text_config": {"_attn_implementation": {"": "a/b"}}}, "attention code from the hub"),
        ("config.json", {"_attn_implementation_internal": "a/b"}, "attention code from the hub"),
    ],
)  # fmt: skip
def test_a_models_folder_does_not_lead_to_other_weights_or_code(tmp_path, nvila_folder, name, content, reason):
    for folder in (tiny_llama(tmp_path / "model"), nvila_folder):
        whole = json.loads((folder / name).read_text()) if name == "config.json" else {}
        (folder / name).write_text(json.dumps(whole | content))
    for kind in ("transformers", "vllm"):
        with pytest.raises(UserError, match=reason):
            open_engine(EngineSettings(kind=kind, model=str(tmp_path / "model"), dtype="float32"))
    with pytest.raises(UserError, match=reason):
        nvila.load(nvila_folder)


def test_an_export_names_no_code_of_its_bases_author(nvila_folder, tmp_path):
    """Who loads the export with trust_remote_code=True would run it."""
    code = {
        "auto_map": {"AutoTokenizer": ["attacker/x--code.T", None]},
        "custom_pipelines": {"x": {"impl": "attacker"}},
    }
    for name in ("config.json", "llm/config.json", "vision_tower/config.json", "llm/tokenizer_config.json",
                 "llm/generation_config.json", "vision_tower/preprocessor_config.json"):  # fmt: skip
        path = nvila_folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | code))
    before = (nvila_folder / "llm" / "tokenizer.json").read_bytes()
    export(nvila_folder, tmp_path / "exported", "card")
    for path in (tmp_path / "exported").iterdir():
        assert b"attacker" not in path.read_bytes(), path.name
    assert (tmp_path / "exported" / "tokenizer.json").read_bytes() == before
    assert "Efficient-Large-Model" in (tmp_path / "exported" / "config.json").read_text()


def test_a_name_that_is_no_folder_is_not_asked_of_the_hub(monkeypatch):
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: pytest.fail("the network was asked"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network was asked"))
    with pytest.raises(UserError, match=r"cannot load engine\.model"):
        open_engine(EngineSettings(kind="transformers", model="attacker/model", dtype="float32"))


def test_a_tokenizer_that_names_code_on_the_hub_is_refused_and_never_asked_about(nvila_folder, monkeypatch):
    """transformers would ask on the terminal whether to run it."""
    whole = json.loads((nvila_folder / "llm" / "tokenizer.json").read_text())
    (nvila_folder / "llm" / "tokenizer.json").unlink()
    (nvila_folder / "llm" / "vocab.json").write_text(json.dumps(whole["model"]["vocab"]))
    (nvila_folder / "llm" / "merges.txt").write_text("")
    code = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["org/name--code.T", "org/name--code.T"]}}
    (nvila_folder / "llm" / "tokenizer_config.json").write_text(json.dumps(code))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("the user was asked whether to run code"))
    with pytest.raises(UserError, match=r"llm/ holds no tokenizer that is read"):
        nvila.load(nvila_folder)


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
