"""TorchXRayVision's own classes with stand-in weights: the rows from their outputs, and what is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumen_hpc.config.schema import Experts
from lumen_hpc.data.images import decode, xrv_input
from lumen_hpc.errors import UserError
from lumen_hpc.experts import xrv_weights
from lumen_hpc.experts.confidence_words import sentence, word
from lumen_hpc.experts.protocol import open_expert
from lumen_hpc.experts.torchxrayvision import trained_heads


@pytest.mark.parametrize(
    ("probability", "expected"),
    [(0, "no"), (0.2499, "no"), (0.25, "maybe no"), (0.4999, "maybe no"), (0.5, "maybe yes"), (0.7499, "maybe yes"),
     (0.75, "yes"), (1, "yes")],
)  # fmt: skip
def test_the_four_words_meet_at_their_bounds(probability: float, expected: str):
    assert word(probability) == expected


@pytest.mark.parametrize("probability", [-0.01, 1.01, float("nan")])
def test_a_number_outside_0_to_1_has_no_word(probability: float):
    with pytest.raises(ValueError, match=r"not in 0\.\.1"):
        word(probability)


ROW = {
    "pathologies": {"Pleural_Thickening": 0.3, "Effusion": 0.8},
    "age": 63.4,
    "race": {"Asian": 0.1, "Black": 0.2, "White": 0.7},
    "view": {"Frontal": 0.9, "Lateral": 0.1},
}


def test_the_sentence_contains_the_named_experts():
    bounds = (0.25, 0.5, 0.75)
    text = sentence(ROW, ("pathologies", "age", "race", "view"), bounds)
    assert text == (
        "Expert models predict: view frontal, age about 63 years, race White, "
        "pleural thickening maybe no, effusion yes."
    )
    assert "White" not in sentence(ROW, ("pathologies", "age", "view"), bounds)
    assert sentence(ROW, (), bounds) == ""


def _stand_in(name: str, folder: Path) -> Path:
    """A file of random weights in the form that the package loads."""
    import torchxrayvision

    torch.manual_seed(0)
    file = folder / xrv_weights.url(name).rsplit("/", 1)[-1]
    folder.mkdir(parents=True, exist_ok=True)
    heads = len(torchxrayvision.models.model_urls[name]["labels"])
    torch.save(torchxrayvision.models.DenseNet(num_classes=heads), file)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    for name in ("densenet121-res224-all", "densenet121-res224-rsna"):
        _stand_in(name, folder)
    return folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    top = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    found = []
    for index in range(3):
        path = top / f"{index}.jpg"
        Image.fromarray(draw.integers(0, 255, (240 + index, 300), dtype=np.uint8)).save(path)
        found.append({"study_id": f"s{index}", "dicom_id": f"d{index}", "image": str(path)})
    return found


def _settings(folder: Path, *pathologies: str, **more: object) -> Experts:
    arguments = {"extra": [], "trust_unknown_weights": True, "batch_size": 2, "workers": 1, **more}
    return Experts(pathologies=list(pathologies), weights=str(folder), **arguments)  # type: ignore[arg-type]


def _rows(settings: Experts, studies: list[dict]) -> list[dict]:
    return list(open_expert(settings, cache="", pretrained=Path()).predict(iter(studies)))


def test_weights_load_where_the_site_forbids_pickled_code(
    folder: Path, studies: list[dict], monkeypatch: pytest.MonkeyPatch
):
    settings = Experts(extra=[], trust_unknown_weights=True, weights=str(folder), workers=0)
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    assert len(list(open_expert(settings, cache="", pretrained=folder).predict(studies[:1]))) == 1
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"


def test_rows_equal_the_library_on_its_own_preprocessing(
    folder: Path, studies: list[dict], monkeypatch: pytest.MonkeyPatch
):
    import torchxrayvision as xrv

    rows = _rows(_settings(folder, "densenet121-res224-all"), studies)
    model = xrv.models.DenseNet(weights="densenet121-res224-all", cache_dir=str(folder)).eval()
    for row, study in zip(rows, studies, strict=True):
        pixels = xrv.datasets.normalize(np.asarray(Image.open(study["image"])), 255)[None]
        square = xrv.datasets.XRayResizer(224)(xrv.datasets.XRayCenterCrop()(pixels))
        with torch.no_grad():
            expected = model(torch.from_numpy(square)[None].float())[0]
        assert [row["study_id"], row["dicom_id"]] == [study["study_id"], study["dicom_id"]]
        assert list(row["pathologies"].values()) == pytest.approx(expected.tolist(), abs=1e-3)


def test_untrained_heads_are_left_out_of_an_ensemble(folder: Path, studies: list[dict]):
    alone = _rows(_settings(folder, "densenet121-res224-all"), studies)
    few = _rows(_settings(folder, "densenet121-res224-rsna"), studies)
    both = _rows(_settings(folder, "densenet121-res224-all", "densenet121-res224-rsna"), studies)
    assert set(few[0]["pathologies"]) == {"Pneumonia", "Lung Opacity"}
    for one, two, mixed in zip(alone, few, both, strict=True):
        assert mixed["pathologies"]["Hernia"] == one["pathologies"]["Hernia"]
        mean = (one["pathologies"]["Pneumonia"] + two["pathologies"]["Pneumonia"]) / 2
        assert mixed["pathologies"]["Pneumonia"] == pytest.approx(mean, abs=2e-4)


def test_a_prediction_that_is_no_number_stops_the_expert(
    tmp_path: Path, studies: list[dict], monkeypatch: pytest.MonkeyPatch
):
    file = _stand_in("densenet121-res224-all", tmp_path)
    model = torch.load(file, weights_only=False)
    torch.nn.init.constant_(model.classifier.weight, torch.nan)
    torch.save(model, file)
    with pytest.raises(UserError, match="is no number for study s0"):
        _rows(_settings(tmp_path, "densenet121-res224-all"), studies)


def test_a_head_without_operating_point_is_untrained():
    class Model:
        targets = ("A", "", "C")
        op_threshs = torch.tensor([0.1, float("nan"), float("nan")])

    assert trained_heads(Model) == {"A": 0}


def test_batches_and_workers_change_nothing(folder: Path, studies: list[dict]):
    one = _rows(_settings(folder, "densenet121-res224-rsna", batch_size=8), studies)
    two = _rows(_settings(folder, "densenet121-res224-rsna", batch_size=1, workers=2), studies)
    for left, right in zip(one, two, strict=True):
        assert left["pathologies"] == pytest.approx(right["pathologies"], abs=2e-4)


class _AgeNet(torch.nn.Module):
    """60, and the mean of an image's first channel, as an age."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 60 + x[:, :1].mean(dim=(2, 3))


def test_age_race_and_view_are_the_librarys_by_its_own_names(tmp_path: Path, studies: list[dict]):
    import torchvision
    from torchxrayvision import baseline_models

    race, view = torchvision.models.resnet34(weights=None), torchvision.models.resnet50(weights=None)
    race.fc = torch.nn.Sequential(torch.nn.Linear(512, 3), torch.nn.LogSoftmax(dim=1))
    for layer in (race.fc[0], view.fc):
        torch.nn.init.zeros_(layer.weight)
        layer.bias.data = torch.arange(len(layer.bias)).float()
    files = {name: tmp_path / xrv_weights.url(name).rsplit("/", 1)[-1] for name in xrv_weights.EXTRA}
    torch.save(torch.nn.DataParallel(race).state_dict(), files["race"])
    torch.save(view.state_dict(), files["view"])
    torch.jit.script(_AgeNet()).save(files["age"])
    (row,) = _rows(_settings(tmp_path, extra=["age", "race", "view"]), studies[:1])
    for name, library in (("race", baseline_models.emory_hiti.RaceModel), ("view", baseline_models.xinario.ViewModel)):
        probabilities = torch.arange(len(library.targets)).float().softmax(0).tolist()
        assert list(row[name]) == library.targets
        assert list(row[name].values()) == pytest.approx(probabilities, abs=1e-4)
    square = xrv_input(decode(studies[0]["image"]), 320)
    assert row["age"] == pytest.approx(60 + ((square.mean() + 1024) / 2048 - 0.485) / 0.229, abs=0.06)


def test_missing_weights_come_with_a_fix(tmp_path: Path):
    with pytest.raises(UserError, match=r"'age' are not at .*stage=fetch.*copy https"):
        xrv_weights.path("age", tmp_path, trust=True)


def test_an_unknown_pickle_is_not_loaded(tmp_path: Path):
    file = _stand_in("densenet121-res224-rsna", tmp_path)
    with pytest.raises(UserError, match="it can run code"):
        xrv_weights.path("densenet121-res224-rsna", tmp_path, trust=False)
    (tmp_path / xrv_weights.HASHES_FILE).write_text(json.dumps({file.name: "0" * 64}))
    with pytest.raises(UserError, match="not the file that was fetched"):
        xrv_weights.path("densenet121-res224-rsna", tmp_path, trust=True)


def test_a_file_copied_by_hand_is_recorded_once_it_is_trusted(tmp_path: Path):
    file = _stand_in("densenet121-res224-rsna", tmp_path)
    trusting = _settings(tmp_path, "densenet121-res224-rsna")
    assert xrv_weights.fetch(trusting, tmp_path, lambda line: None) == []
    assert xrv_weights.path("densenet121-res224-rsna", tmp_path, trust=False) == file


def test_weights_that_nobody_publishes_are_named_with_those_that_are():
    with pytest.raises(UserError, match=r"'densenet9'.*densenet121-res224-all"):
        xrv_weights.url("densenet9")


def test_a_broken_image_is_one_line(folder: Path, studies: list[dict], tmp_path: Path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(Path(studies[0]["image"]).read_bytes()[:200])
    with pytest.raises(UserError, match=r"bad\.jpg") as caught:
        _rows(_settings(folder, "densenet121-res224-rsna", workers=2), [*studies, {**studies[0], "image": str(bad)}])
    assert "\n" not in str(caught.value)
