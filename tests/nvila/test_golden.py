"""Against tensors that the official code produced (fp32, eager attention)."""

import json
from functools import cache

import numpy as np
import pytest
import torch

from lumen_hpc import nvila

QUESTIONS = {
    "infer1": (["img_a.png"], "Describe the image."),
    "infer2": (
        ["img_a.png", "img_b.png"],
        "Compare the current frontal chest radiograph with the prior image. What has changed?",
    ),
}
CASES = [
    ("s2", "train1"),
    ("s2", "train2"),
    ("s2", "infer1"),
    ("lite", "train1"),
    ("lite", "train2"),
    ("lite", "infer1"),
    ("lite", "infer2"),
]
HIDDEN = 1e-5


@cache
def _model(folder, kernel):
    return nvila.load(folder, dtype=torch.float32, attention=kernel)


def _inputs(model, golden, case):
    if case.startswith("infer"):
        pictures, question = QUESTIONS[case]
        record = {"conversations": [{"from": "human", "value": question}]}
    else:
        record = json.loads((golden / "data.json").read_text())[int(case[-1]) - 1]
        pictures = record.get("images") or [record["image"]]
    record = record | {"images": [golden / name for name in pictures]}
    return model.preprocess([record], generation=case.startswith("infer"), official_tiles=case.startswith("infer"))


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("name, case", CASES)
def test_every_official_tensor_is_reproduced(golden, name, case, kernel):
    model = _model(golden / f"ckpt_{name}", kernel)
    stored = np.load(golden / f"golden_{name}.npz")
    want = {key.removeprefix(f"{case}."): stored[key] for key in stored.files if key.startswith(f"{case}.")}
    inputs = _inputs(model, golden, case)
    out = model(inputs, logits="all", keep=True)

    exact = {"input_ids": inputs.input_ids, "block_sizes": inputs.block_sizes}
    exact |= {"fused_labels": out.labels, "fused_attention_mask": out.attention_mask}
    if case.startswith("train"):
        exact |= {"labels": inputs.labels, "attention_mask": inputs.attention_mask}
        assert abs(out.loss.item() - float(want["loss"])) <= 1e-6
    else:
        [answer] = model.generate(inputs, max_new_tokens=12)
        exact["generated_ids"] = torch.tensor([answer.ids])
    for key, tensor in exact.items():
        assert np.array_equal(tensor.numpy(), want[key]), key
    near = {"hidden_m2": HIDDEN, "proj_in": HIDDEN, "proj_out": HIDDEN, "inputs_embeds": HIDDEN, "logits": HIDDEN}
    for key, bar in {"pixels": 2e-7, **near}.items():
        tensor = getattr(out, key).detach().numpy()
        assert tensor.shape == want[key].shape, key
        assert np.abs(tensor - want[key]).max() <= bar, key
    assert np.array_equal(inputs.pixels.numpy(), out.pixels.numpy())


@pytest.mark.parametrize("name", ["s2", "lite"])
def test_an_official_checkpoint_is_written_back_byte_for_byte(golden, tmp_path, name):
    source = golden / f"ckpt_{name}"
    nvila.save(nvila.load(source), tmp_path / "saved")
    for file in (path for path in source.rglob("*") if path.is_file()):
        copy = tmp_path / "saved" / file.relative_to(source)
        assert copy.read_bytes() == file.read_bytes(), file.name
