import errno
import gc
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import checkpoint
from lumen_hpc.nvila.generate import generate
from lumen_hpc.nvila.tiny import make_tiny

TEXTS = ["What has changed? Nothing has changed. The heart size is normal."]


@pytest.fixture
def saved(tiny, tmp_path):
    return nvila.save(tiny, tmp_path / "model")


def _contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_save_load_save_is_byte_equal(family, tmp_path, dtype):
    nvila.save(family, tmp_path / "one")
    nvila.save(nvila.load(tmp_path / "one", dtype=dtype), tmp_path / "two")
    nvila.save(nvila.load(tmp_path / "two"), tmp_path / "three")
    assert _contents(tmp_path / "two") == _contents(tmp_path / "three")
    assert (_contents(tmp_path / "one") == _contents(tmp_path / "two")) == (dtype is None)


def test_config_names_the_format_that_is_stored(saved, tmp_path):
    nvila.save(nvila.load(saved, dtype=torch.bfloat16), tmp_path / "half")
    root = json.loads((tmp_path / "half" / "config.json").read_text())
    assert root["model_dtype"] == "torch.bfloat16"
    assert root["llm_cfg"]["torch_dtype"] == "bfloat16"


def test_unknown_keys_survive(saved, tmp_path):
    path = saved / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"look_close_mode": "after_image"}))
    (saved / "complete.json").unlink()
    nvila.save(nvila.load(saved), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["look_close_mode"] == "after_image"


def test_shards_carry_an_index_and_load_back(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    folder = nvila.save(tiny, tmp_path / "sharded")
    index = json.loads((folder / "llm" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 1
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in tiny.llm.parameters())
    for name, tensor in nvila.load(folder).state_dict().items():
        assert torch.equal(tensor, tiny.state_dict()[name]), name
    missing = folder / "llm" / index["weight_map"]["lm_head.weight"]
    missing.unlink()
    (folder / "complete.json").unlink()
    with pytest.raises(UserError, match=f"{missing.name} is missing, though model.safetensors.index.json names it"):
        nvila.load(folder)
    (folder / "llm" / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"llm/model.safetensors.index.json is missing"):
        nvila.load(folder)


def test_given_tensors_stand_in_for_the_model_s_own(tiny, tmp_path):
    tensors = {name: tensor + 1 for name, tensor in tiny.state_dict().items()}
    model = nvila.load(nvila.save(tiny, tmp_path / "gathered", tensors))
    assert torch.equal(model.llm.lm_head.weight, tiny.llm.lm_head.weight + 1)


def test_a_head_tied_to_the_embeddings_is_stored_once(tiny, tmp_path):
    tiny.config.llm["tie_word_embeddings"] = True
    tiny.llm.lm_head.weight = tiny.llm.model.embed_tokens.weight
    folder = nvila.save(tiny, tmp_path / "tied")
    assert "lm_head.weight" not in load_file(folder / "llm" / "model.safetensors")
    model = nvila.load(folder)
    assert model.llm.lm_head.weight is model.llm.model.embed_tokens.weight
    assert torch.equal(model.llm.lm_head.weight, tiny.llm.lm_head.weight)


def test_an_interrupted_save_leaves_the_old_checkpoint(tiny, saved, monkeypatch):
    before = _contents(saved)
    monkeypatch.setattr(checkpoint, "_put_in_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        nvila.save(tiny, saved)
    assert _contents(saved) == before
    with pytest.raises(UserError, match="unfinished save"):
        nvila.load(saved.with_name("model.partial"))


def test_a_save_that_fails_leaves_the_old_checkpoint_and_no_part_of_a_new_one(tiny, saved, monkeypatch):
    before = _contents(saved)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        nvila.save(tiny, saved)
    assert _contents(saved) == before and list(saved.parent.iterdir()) == [saved]


def test_saving_over_a_checkpoint_replaces_it(tiny, saved):
    with torch.no_grad():
        tiny.llm.lm_head.weight.zero_()
    nvila.save(tiny, saved)
    assert not nvila.load(saved).llm.lm_head.weight.any()
    assert sorted(path.name for path in saved.parent.iterdir()) == ["model"]


def test_a_file_that_was_cut_short_is_named(saved):
    weights = saved / "mm_projector" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"mm_projector/model.safetensors has .* bytes, complete.json says"):
        nvila.load(saved)
    (saved / "complete.json").unlink()
    with pytest.raises(UserError, match=r"mm_projector/model.safetensors is not a complete safetensors file"):
        nvila.load(saved)


SMALL = ["llm/generation_config.json", "llm/tokenizer.json", "mm_projector/config.json"]
BROKEN = [(name, content) for name in SMALL for content in (b"", b'{"eos_token_id": ', b"\xff\x00")]


@pytest.mark.parametrize("name, content", [*BROKEN, *((name, b"{}") for name in SMALL[1:])])
def test_a_broken_small_file_is_named_when_it_is_loaded(saved, name, content):
    (saved / "complete.json").unlink()
    (saved / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        nvila.load(saved)


def test_missing_unfit_and_unknown_tensors_are_named(saved):
    (saved / "complete.json").unlink()
    path = saved / "mm_projector" / "model.safetensors"
    whole = load_file(path)
    for change, message in [
        ({"layers.1.weight": None}, r"lacks the weights of \['mm_projector.layers.1.weight'\]: copy it again"),
        ({"layers.1.weight": torch.zeros(3)}, r"mm_projector.layers.1.weight is \(3,\), config.json needs \(128,\)"),
        ({"layers.9.weight": torch.zeros(3)}, "'mm_projector.layers.9.weight' has no place"),
    ]:
        save_file({name: tensor for name, tensor in (whole | change).items() if tensor is not None}, path)
        with pytest.raises(UserError, match=message):
            nvila.load(saved)


def test_the_flat_names_of_nvila_8b_hf_are_read(tmp_path, records):
    """As SGLang's models/nvila.py reads them: llm.*, mm_projector.*, vision_tower.vision_model.*."""
    sizes = dict(image_size=32, vision_width=32, width=32, layers=2, vocab_size=400)
    model = make_tiny(TEXTS, aspect="dynamic_s2", projector="mlp_downsample", **sizes)
    official = nvila.save(model, tmp_path / "official")
    flat = tmp_path / "flat"
    flat.mkdir()
    tensors = {}
    for part in ("llm", "vision_tower", "mm_projector"):
        tensors |= {f"{part}.{k}": v for k, v in load_file(official / part / "model.safetensors").items()}
    save_file(tensors, flat / "model.safetensors")
    config = {"architectures": ["NVILAForConditionalGeneration"], "model_type": "nvila"}
    config |= {"text_config": model.config.llm, "vision_config": model.config.vision_tower}
    (flat / "config.json").write_text(json.dumps(config))
    for path in (official / "llm").glob("*.json"):
        if path.name != "config.json":
            (flat / path.name).write_bytes(path.read_bytes())

    read = nvila.load(flat)
    inputs = model.preprocess(records)
    assert torch.equal(read(read.preprocess(records)).loss, model(inputs).loss)
    again = nvila.load(nvila.save(read, tmp_path / "back"))
    assert torch.equal(again(inputs).loss, model(inputs).loss)


def test_loading_needs_the_model_once_not_twice(tmp_path):
    """Peak resident memory while 107 MB of weights are read from one file a part."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not clear.exists():
        pytest.skip("no /proc: peak memory cannot be reset here")
    folder = nvila.save(make_tiny(TEXTS, width=1024, layers=2, vocab_size=400), tmp_path / "large")
    size = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    gc.collect()

    def kilobytes(field):
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1])

    clear.write_text("5")
    before = kilobytes("VmRSS:")
    model = nvila.load(folder)
    peak = (kilobytes("VmHWM:") - before) * 1024
    assert sum(p.nbytes for p in model.parameters()) > 0.9 * size > 90e6
    assert peak < 1.5 * size


def _change(path, **values):
    (path.parents[path.parent.name in ("llm", "vision_tower", "mm_projector")] / "complete.json").unlink(
        missing_ok=True
    )
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))


def test_stored_truncation_and_padding_do_not_touch_an_answer(saved, records):
    plain = nvila.load(saved).preprocess(records)
    _change(
        saved / "llm" / "tokenizer.json",
        truncation={"direction": "Right", "max_length": 7, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 900}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "[PAD]"},
    )  # fmt: skip
    for one, other in zip(plain.samples, nvila.load(saved).preprocess(records).samples):
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.labels.tolist() == other.labels.tolist()


def test_paths_in_the_root_config_are_saved_as_configurations(saved, tmp_path):
    published = json.loads((saved / "config.json").read_text())
    parts = ("llm_cfg", "vision_tower_cfg", "mm_projector_cfg")
    _change(saved / "config.json", **{key: f"/scratch/run/{key.removesuffix('_cfg')}" for key in parts})
    again = nvila.save(nvila.load(saved), tmp_path / "again")
    root = json.loads((again / "config.json").read_text())
    assert {key: root[key] for key in parts} == {key: published[key] for key in parts}
    assert root | {key: None for key in parts} == published | {key: None for key in parts}


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"llm_cfg": 3}, "llm_cfg in config.json is a int"),
        ("config.json", {"max_tiles": None}, "max_tiles=null in config.json"),
        ("config.json", {"dynamic_s2": "false"}, 'dynamic_s2="false" in config.json'),
        ("config.json", {"s2_scales": "448,large"}, "s2_scales="),
        ("config.json", {"mm_vision_select_layer": "-2"}, "mm_vision_select_layer="),
        ("llm/config.json", {"eos_token_id": "400"}, 'eos_token_id="400" in llm/config.json'),
        ("llm/config.json", {"tie_word_embeddings": "no"}, "tie_word_embeddings="),
        ("llm/generation_config.json", {"eos_token_id": ["400"]}, r'eos_token_id=\["400"\] in llm/generation'),
        ("config.json", {"min_tiles": 12, "max_tiles": 2}, "min_tiles=12 with max_tiles=2"),
        ("config.json", {"max_tiles": 10**9}, "max_tiles=1000000000 in config.json: it takes a whole number from 1 to"),
        ("config.json", {"quantization_config": {"quant_method": "fp8"}}, "quantization_config in config.json"),
        ("llm/config.json", {"quantization_config": {"quant_method": "awq"}}, "quantization_config in llm/config.json"),
        ("llm/config.json", {"model_type": "llama"}, 'model_type="llama" in llm/config.json'),
        ("vision_tower/config.json", {"model_type": "clip_vision_model"}, 'model_type="clip_vision_model" in vision'),
        ("config.json", {"image_encoder": "{"}, "image_encoder in config.json is no object"),
        ("config.json", {"image_encoder": [1]}, "image_encoder in config.json is no object"),
        ("llm/config.json", {"num_hidden_layers": "2"}, 'num_hidden_layers="2" in llm/config.json'),
        ("llm/config.json", {"num_attention_heads": 0}, "num_attention_heads=0 in llm/config.json"),
        ("llm/config.json", {"rope_theta": "1000000"}, "no model can be built"),
        ("llm/config.json", {"hidden_act": "relu99"}, "no model can be built .*relu99"),
        ("llm/config.json", {"torch_dtype": "float99"}, 'torch_dtype="float99" in llm/config.json'),
        ("llm/config.json", {"pad_token_id": 99999}, "no model can be built"),
        ("vision_tower/config.json", {"patch_size": 0}, "patch_size=0 in vision_tower/config.json"),
        ("vision_tower/config.json", {"num_attention_heads": -1}, "num_attention_heads=-1 in vision_tower/config.json"),
        ("vision_tower/config.json", {"num_attention_heads": 7}, "no model can be built .*num_heads"),
        ("vision_tower/config.json", {"layer_norm_eps": "1e-6"}, "no model can be built .*layer_norm_eps"),
        (
            "vision_tower/preprocessor_config.json",
            {"do_normalize": False},
            "preprocessor_config.json has .*do_normalize",
        ),
        ("vision_tower/preprocessor_config.json", {"rescale_factor": 1.0}, "preprocessor_config.json has .*rescale"),
        ("vision_tower/preprocessor_config.json", {"do_center_crop": True}, "preprocessor_config.json has .*do_center"),
        (
            "config.json",
            {"mm_vision_select_layer": 99},
            r"mm_vision_select_layer=99 in config.json: the vision tower has \d",
        ),
        ("config.json", {"mm_vision_select_layer": -99}, "mm_vision_select_layer=-99 in config.json"),
        ("llm/config.json", {"layer_types": ["sliding_attention"] * 4}, "layer_types in llm/config.json"),
        ("llm/config.json", {"rope_theta": True}, "rope_theta=true in llm/config.json"),
        ("llm/config.json", {"rope_theta": 0}, "rope_theta=0 in llm/config.json"),
        ("llm/config.json", {"rope_theta": -1e6}, "rope_theta=-1000000.0 in llm/config.json"),
        ("llm/config.json", {"rope_theta": float("nan")}, r"llm/config.json cannot be read as json: NaN is no number"),
        ("llm/config.json", {"model_max_length": -5}, "model_max_length=-5 in llm/config.json"),
        ("llm/config.json", {"model_max_length": 1e30}, r"model_max_length=1e\+30 in llm/config.json"),
        (
            "llm/adapter_config.json",
            {"r": 8},
            r"llm holds an adapter \(adapter_config.json\), which belongs to a base; give the merged",
        ),
        ("llm/model.safetensors.index.json", {"weight_map": ["a"]}, "its weight_map does not give"),
        ("llm/model.safetensors.index.json", {"weight_map": {"lm_head.weight": 3}}, "its weight_map does not give"),
    ],
)
def test_a_value_of_another_type_is_named_at_load(saved, file, values, message):
    _change(saved / file, **values)
    with pytest.raises(UserError, match=message):
        nvila.load(saved)


def test_scales_that_no_tiles_can_show_are_named_at_load(tmp_path):
    sizes = dict(image_size=32, vision_width=32, width=32, layers=2, vocab_size=400)
    model = make_tiny(TEXTS, aspect="dynamic_s2", projector="mlp_downsample", **sizes)
    folder = nvila.save(model, tmp_path / "model")
    for values, message in (
        ({"max_tiles": 8}, "max_tiles=8 in config.json: the finest of s2_scales has at least 9 tiles"),
        ({"max_tiles": 12, "s2_resize_output_to_scale_idx": 7}, "there are 3 scales"),
        ({"s2_resize_output_to_scale_idx": -4}, "there are 3 scales"),
        (
            {"s2_resize_output_to_scale_idx": 0, "s2_scales": [32.5, 64, 96]},
            r"s2_scales=\[32.5, 64, 96\] in config.json",
        ),
        ({"s2_scales": "32,32,64"}, 's2_scales="32,32,64" in config.json'),
    ):
        _change(folder / "config.json", **values)
        with pytest.raises(UserError, match=message):
            nvila.load(folder)


@pytest.mark.parametrize(
    "files",
    [
        {"llm/._config.json": b"\0\5\x16\7", "._config.json": b"\0"}, {"llm/trainer_state.json": b'{"loss": NaN}'},
        {"llm/.DS_Store": b"\0"},
    ],
)  # fmt: skip
def test_a_file_that_is_no_part_of_the_model_is_left_alone(saved, tmp_path, files):
    for name, content in files.items():
        (saved / name).write_bytes(content)
    again = nvila.save(nvila.load(saved), tmp_path / "again")
    assert not any((again / name).exists() for name in files)


@pytest.mark.parametrize(
    "name", ["llm/adapter_model.safetensors", "adapter_model.bin", "non_lora_trainables.bin", "adapter_config.json"]
)
def test_an_adapter_without_its_base_is_refused(saved, name):
    (saved / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"holds an adapter .{Path(name).name}., .* give the merged model"):
        nvila.load(saved)


@pytest.mark.parametrize("content", ["{}", '{"files": null}', '{"files": []}', "[]"])
def test_a_marker_that_lists_no_files_is_named(saved, content):
    (saved / "complete.json").write_text(content)
    with pytest.raises(UserError, match=r"complete\.json"):
        nvila.load(saved)


def test_what_the_parts_were_told_to_return_changes_nothing(saved, records):
    plain = nvila.load(saved)
    for part in ("llm", "vision_tower"):
        _change(saved / part / "config.json", return_dict=False, output_hidden_states=True, output_attentions=True)
    again = nvila.load(saved)
    samples = plain.preprocess(records, generation=True).samples
    ours, theirs = (generate(model, samples, max_new_tokens=4) for model in (plain, again))
    assert [answer.ids for answer in ours] == [answer.ids for answer in theirs]


@pytest.mark.parametrize("word", ["the", "nodule", "pleural effusion"])
def test_a_word_that_is_marked_special_is_named(saved, word):
    tokens = json.loads((saved / "llm" / "tokenizer.json").read_text())["added_tokens"]
    more = {"id": max(token["id"] for token in tokens) + 1, "content": word, "special": True, "normalized": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    _change(saved / "llm" / "tokenizer.json", added_tokens=[*tokens, more | flags])
    with pytest.raises(UserError, match=f"marks '{re.escape(word)}' as a special token: every answer would lose it"):
        nvila.load(saved)


def test_a_folder_of_the_hubs_cache_names_its_snapshot(saved, tmp_path):
    snapshot = tmp_path / "models--A--B" / "snapshots" / "1f2e"
    snapshot.parent.mkdir(parents=True)
    saved.rename(snapshot)
    with pytest.raises(UserError, match=r"a folder of the hub's cache: give the snapshot in it, .*/snapshots/1f2e"):
        nvila.load(tmp_path / "models--A--B")
    nvila.load(snapshot)


def test_stored_dropout_of_a_tokenizer_makes_no_text_two_texts(saved, records):
    plain = nvila.load(saved).preprocess(records)
    model = json.loads((saved / "llm" / "tokenizer.json").read_text())["model"]
    _change(saved / "llm" / "tokenizer.json", model=model | {"dropout": 0.5})
    again = nvila.load(saved)
    for _ in range(3):
        for one, other in zip(plain.samples, again.preprocess(records).samples):
            assert one.input_ids.tolist() == other.input_ids.tolist()


@pytest.mark.parametrize("name", ["config.json", "llm/config.json", "llm/tokenizer.json"])
def test_a_byte_order_mark_is_no_part_of_a_small_file(saved, tmp_path, name):
    (saved / "complete.json").unlink()
    (saved / name).write_bytes(b"\xef\xbb\xbf" + (saved / name).read_bytes())
    nvila.load(nvila.save(nvila.load(saved), tmp_path / "again"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_no_numbers_are_named_at_load(saved, value, dtype):
    path = saved / "mm_projector" / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    (saved / "complete.json").unlink()
    save_file(tensors, path)
    nvila.load(saved, dtype=dtype)
    tensors["layers.2.weight"][3, 2] = value
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"mm_projector.layers.2.weight holds values that are no numbers"):
        nvila.load(saved, dtype=dtype)


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_whole_numbers_are_no_weights_whatever_dtype_is_chosen(saved, kind, dtype):
    path = saved / "mm_projector" / "model.safetensors"
    save_file({name: tensor.to(kind) for name, tensor in load_file(path).items()}, path)
    (saved / "complete.json").unlink()
    with pytest.raises(UserError, match=r"is stored as \w+: quantised weights are not read"):
        nvila.load(saved, dtype=dtype)


def test_weights_that_are_there_twice_are_named(saved):
    (saved / "complete.json").unlink()
    whole = saved / "llm" / "model.safetensors"
    tensors = load_file(whole)
    first = min(tensors)
    shards = {
        "model-00001-of-00002.safetensors": tensors,
        "model-00002-of-00002.safetensors": {first: tensors[first] + 1},
    }
    for name, content in shards.items():
        save_file(content, saved / "llm" / name)
    index = {"weight_map": dict.fromkeys(tensors, min(shards)) | {"another": max(shards)}}
    (saved / "llm" / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"model\.safetensors lies beside model\.safetensors\.index\.json"):
        nvila.load(saved)
    whole.unlink()
    with pytest.raises(UserError, match=rf"00002-of-00002\.safetensors: llm\.{first} is stored in an earlier file too"):
        nvila.load(saved)


@pytest.mark.parametrize("file", ["config.json", "llm/config.json", "vision_tower/config.json"])
def test_a_key_that_is_there_twice_is_named(saved, file):
    text = (saved / file).read_text().rstrip().removesuffix("}")
    key = next(iter(json.loads((saved / file).read_text())))
    (saved / "complete.json").unlink()
    (saved / file).write_text(f'{text}, "{key}": 1}}')
    with pytest.raises(UserError, match=f"{file} cannot be read as json: '{key}' is there twice"):
        nvila.load(saved)


OTHER_TOKENIZERS = {
    "no decoder": lambda content: content | {"decoder": None},
    "lower case": lambda content: content | {"normalizer": {"type": "Lowercase"}},
    "no pieces of words": lambda content: content | {"pre_tokenizer": None},
    "a letter lost": lambda content: content | {
        "model": content["model"] | {
            "vocab": {name: i for name, i in content["model"]["vocab"].items() if "Y" not in name},
            "merges": [pair for pair in content["model"]["merges"] if "Y" not in "".join(pair)],
        }
    },
    "another model": lambda content: content | {"model": {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]]}},
}  # fmt: skip


@pytest.mark.parametrize("what", OTHER_TOKENIZERS)
def test_a_tokenizer_that_does_not_give_back_what_it_reads_is_named(saved, what):
    path = saved / "llm" / "tokenizer.json"
    _change(path, **OTHER_TOKENIZERS[what](json.loads(path.read_text())))
    with pytest.raises(UserError, match=r"the tokenizer in llm/ gives .* for 'Yes, abc"):
        nvila.load(saved)


def test_weights_that_are_there_in_another_form_are_told(saved):
    (saved / "complete.json").unlink()
    (saved / "llm" / "model.safetensors").rename(saved / "llm" / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"model.safetensors is missing; fix: save pytorch_model.bin .* as safetensors"):
        nvila.load(saved)


def test_mixed_stored_dtypes_are_named_unless_one_is_chosen(saved):
    path = saved / "mm_projector" / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path)
    (saved / "complete.json").unlink()
    with pytest.raises(UserError, match=r"stored as bfloat16, .* holds float32"):
        nvila.load(saved)
    assert {p.dtype for p in nvila.load(saved, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_token_ids_beyond_the_embedding_are_named_at_load(saved):
    path = saved / "llm" / "tokenizer.json"
    content = json.loads(path.read_text())
    extra = {"id": 5000, "content": "<extra>", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}  # fmt: skip
    _change(path, added_tokens=[*content["added_tokens"], extra])
    with pytest.raises(UserError, match=r"token id \d+, but vocab_size=\d+"):
        nvila.load(saved)


def test_only_the_files_that_load_reads_count(saved):
    before = checkpoint.read_files(saved)
    (saved / "llm" / ".nfs0000001").write_text("left by NFS")
    (saved / "notes.md").write_text("a user's")
    (saved / "old").mkdir()
    (saved / "old" / "config.json").write_text("{}")
    assert checkpoint.read_files(saved) == before
    assert {path.suffix for path in before} >= {".json", ".safetensors"}


@pytest.mark.parametrize("name", ["bfloat16", "torch.bfloat16"])
def test_a_dtype_may_be_given_by_its_name(saved, name):
    assert nvila.load(saved, dtype=name).llm.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["auto", "bf16", "int8", "nn", torch.int8, 16])
def test_another_dtype_is_named(saved, dtype):
    with pytest.raises(UserError, match=r"use one such as torch\.bfloat16"):
        nvila.load(saved, dtype=dtype)


def test_a_default_device_on_which_no_file_can_be_read_is_named(saved, records):
    model = nvila.load(saved)
    inputs = model.preprocess(records)
    for call in (lambda: nvila.load(saved), lambda: model(inputs), lambda: model.generate(records)):
        with torch.device("meta"), pytest.raises(UserError, match=r"torch's default device is meta.* unset it"):
            call()


def test_a_model_that_was_loaded_in_inference_mode_learns(saved, records):
    with torch.inference_mode():
        model = nvila.load(saved)
    model(model.preprocess(records)).loss.backward()
    assert model.llm.lm_head.weight.grad is not None
