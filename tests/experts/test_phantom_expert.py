"""The phantom expert: its targets, its rows, and that it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from lumen_hpc.config.schema import Experts
from lumen_hpc.data import phantom_states as ps
from lumen_hpc.errors import UserError
from lumen_hpc.experts import phantom_expert as phantom

VISION = {"hidden_size": 32, "image_size": 64, "intermediate_size": 64, "num_attention_heads": 2,
          "num_hidden_layers": 2, "patch_size": 8}  # fmt: skip


@pytest.fixture(scope="module")
def phantoms():
    return phantom.training_images(seed=3, patients=40, size=64)


@pytest.fixture
def expert():
    torch.manual_seed(0)
    return phantom.blank_expert(VISION, width=32).eval()


def test_targets_cover_each_attribute_except_those_of_absent_findings():
    states = {finding: ps.ABSENT for finding in ps.FINDINGS}
    states["edema"] = ps.State(True, "", "severe", "smooth")
    states["cardiomegaly"], states["nodule"] = ps.State(constant="medium"), ps.State(constant="left")
    named = dict(zip(phantom.ATTRIBUTES, phantom.targets(states, portable=True), strict=True))
    assert named.pop(("edema", "level")) == 2
    assert named.pop(("edema", "texture")) == ps.TEXTURES.index("smooth")
    assert named.pop(("edema", "present")) == named.pop(("image", "view")) == 1
    assert (named.pop(("heart", "size")), named.pop(("spot", "left")), named.pop(("spot", "right"))) == (1, 1, 0)
    assert {number for (_, attribute), number in named.items() if attribute == "present"} == {0}
    assert {number for (_, attribute), number in named.items() if attribute != "present"} == {phantom.NO_TARGET}


def test_training_lowers_the_loss_of_images_never_seen(expert, phantoms):
    pixels, labels, _ = phantoms

    def unseen():
        with torch.no_grad():
            logits = expert(phantom.tower_pixels(torch.from_numpy(pixels[60:])))
            return phantom.loss(logits, torch.from_numpy(labels[60:])).item()

    before = unseen()
    steps = list(phantom.train(expert, pixels[:60], labels[:60], steps=15, batch=16))
    assert [step["step"] for step in steps] == list(range(1, 16))
    assert unseen() < before - 0.5


def test_an_unknown_target_teaches_nothing(expert, phantoms):
    pixels, labels, _ = phantoms
    logits = expert(phantom.tower_pixels(torch.from_numpy(pixels[:4])))
    nothing = torch.full((4, labels.shape[1]), phantom.NO_TARGET)
    assert phantom.loss(logits, nothing).item() == 0


def test_a_saved_expert_predicts_the_same(expert, phantoms, tmp_path):
    phantom.save_expert(expert, tmp_path / "expert.safetensors")
    again = phantom.load_expert(tmp_path / "expert.safetensors")
    for one, two in zip(
        again.probabilities(phantoms[0][:5]), expert.probabilities(phantoms[0][:5], batch_size=2), strict=True
    ):
        assert all(np.allclose(one[name], two[name], atol=1e-5) for name in phantom.ATTRIBUTES)


def test_the_same_expert_is_the_same_bytes_and_another_file_is_refused(expert, tmp_path):
    saved = set()
    for number in range(8):
        phantom.save_expert(expert, tmp_path / f"{number}.safetensors")
        saved.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(saved) == 1
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors", metadata={"vision": "{}"})
    with pytest.raises(UserError, match="not a phantom expert"):
        phantom.load_expert(tmp_path / "other.safetensors")


def test_probabilities_of_an_attribute_sum_to_one(expert, phantoms):
    for probabilities in expert.probabilities(phantoms[0][:3]):
        assert all(len(probabilities[name]) == len(classes) for name, classes in phantom.ATTRIBUTES.items())
        assert all(sum(shares) == pytest.approx(1, abs=1e-5) for shares in probabilities.values())


def test_rows_name_the_phantom_expert_and_come_in_order(expert, phantoms, tmp_path):
    phantom.save_expert(expert, tmp_path / "expert.safetensors")
    studies = []
    for number, pixels in enumerate(phantoms[0][:5]):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        studies.append({"study_id": f"s{number}", "dicom_id": f"d{number}", "image": str(tmp_path / f"{number}.png")})
    predictor = phantom.open_predictor(tmp_path / "expert.safetensors", Experts(model="phantom", batch_size=2))
    rows = list(predictor.predict(iter(studies)))
    assert [row["study_id"] for row in rows] == [f"s{n}" for n in range(5)]
    assert {row["expert"] for row in rows} == {"phantom"}
    for row, expected in zip(rows, expert.probabilities(phantoms[0][:5]), strict=True):
        assert row["pathologies"]["edema"] == pytest.approx(expected["edema", "present"][1], abs=1e-4)
        assert sum(row["view"].values()) == pytest.approx(1, abs=1e-3)


def test_images_of_other_sizes_are_resized_to_the_tower():
    pixels = np.random.default_rng(0).integers(0, 255, (200, 150), dtype=np.uint8)
    assert phantom.tower_image(pixels, 64).shape == (64, 64)


@pytest.mark.parametrize("content", [None, b"no weights"])
def test_a_missing_or_corrupt_expert_names_the_stage_that_trains_it(tmp_path: Path, content):
    path = tmp_path / "expert.safetensors"
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match="stage=pretrain"):
        phantom.load_expert(path)
