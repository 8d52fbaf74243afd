"""A small expert for phantoms: it replaces TorchXRayVision in the demo, which has no access to published weights.

An NVILA vision side (SigLIP tower and 2x2 projector) trained to classify every attribute of a phantom image. It
serves stage `experts`, where its rows have `"expert": "phantom"`; its tower and projector also initialise the demo's
tiny NVILA, as SigLIP's pretraining initialises the real one. Trained from scratch as a whole, the tiny model does not
learn within minutes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn
from torch.nn import functional as F

import lumen_hpc.torchvision_compat  # noqa: F401  (before transformers looks at torchvision)
from lumen_hpc.config.data_schema import Phantom
from lumen_hpc.config.schema import Experts
from lumen_hpc.data import images, phantom
from lumen_hpc.data import phantom_states as ps
from lumen_hpc.errors import UserError
from lumen_hpc.files import atomic
from lumen_hpc.muon import Muon
from lumen_hpc.nvila.new_config import official_config
from lumen_hpc.nvila.projector import Projector
from lumen_hpc.nvila.vision import tower_hidden
from lumen_hpc.replicas import PARTS, Replicas, one_core_threads
from lumen_hpc.schedule import rate_at

from transformers import SiglipVisionConfig, SiglipVisionModel  # isort: skip

_FINDINGS_WITH_SIDE = ("pleural effusion", "nodule")
_FINDINGS_WITH_TEXTURE = ("pleural effusion", "consolidation", "edema")
ATTRIBUTES: dict[tuple[str, str], tuple[str, ...]] = {
    **{(finding, "present"): ("no", "yes") for finding in ps.FINDINGS},
    **{(finding, "where"): ps.SIDES for finding in _FINDINGS_WITH_SIDE},
    ("consolidation", "where"): ps.PLACES,
    **{(finding, "level"): levels for finding, levels in ps.LEVELS.items()},
    **{(finding, "texture"): ps.TEXTURES for finding in _FINDINGS_WITH_TEXTURE},
    ("heart", "size"): ("0", "1", "2", "3"),
    **{("spot", side): ("no", "yes") for side in ps.SIDES},
    ("image", "view"): ("PA", "AP"),
}
"""(finding, attribute) → its classes; an attribute of an absent finding has no target.

Heart size and spots are what the image shows of cardiomegaly and nodules, which no single image can tell for certain.
"""
_CLASS_COUNTS = [len(classes) for classes in ATTRIBUTES.values()]
NO_TARGET = -100
MATRIX_RATE, WARMUP = 0.02, 0.05
Probabilities = Mapping[tuple[str, str], Sequence[float]]
SELECT_LAYER = -2
"""The tower's hidden state that NVILA uses: its last layer is not run."""


def targets(states: ps.States, portable: bool) -> list[int]:
    """Class numbers in the order of ATTRIBUTES; -100 where the finding is absent."""
    numbers = []
    for (finding, attribute), classes in ATTRIBUTES.items():
        if finding == "image":
            numbers.append(int(portable))
        elif finding == "heart":
            numbers.append(ps.heart_size(states["cardiomegaly"]))
        elif finding == "spot":
            numbers.append(int(attribute in ps.spots(states["nodule"])))
        elif attribute == "present":
            numbers.append(int(states[finding].present))
        else:
            value = getattr(states[finding], attribute)
            numbers.append(classes.index(value) if value else NO_TARGET)
    return numbers


class PhantomExpert(nn.Module):
    """A tower and a projector with two linear heads.

    `tower` and `projector` are NVILA's own modules. The answering head reads every patch of the tower; the
    teaching head reads the mean of the projector's tokens, and so trains the projector.
    """

    def __init__(self, tower: nn.Module, projector: nn.Module, vision: Mapping[str, Any], width: int) -> None:
        """`vision` is the tower's config.json, `width` the language model's."""
        super().__init__()
        self.tower, self.projector, self.vision, self.width = tower, projector, dict(vision), width
        patches = (vision["image_size"] // vision["patch_size"]) ** 2
        self.answering = nn.Linear(patches * vision["hidden_size"], sum(_CLASS_COUNTS))
        self.teaching = nn.Linear(width, sum(_CLASS_COUNTS))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels [n, 3, S, S] in -1..1 → logits of both heads, [n, classes of all attributes] each."""
        hidden = tower_hidden(self.tower, pixels, SELECT_LAYER)
        return self.answering(hidden.flatten(1)), self.teaching(self.projector(hidden).mean(1))

    @torch.no_grad()
    def probabilities(self, pixels: np.ndarray, batch_size: int = 256) -> Iterator[Probabilities]:
        """For each of uint8 [n, S, S]: attribute → the probabilities of its classes."""
        for batch_pixels in torch.from_numpy(pixels).split(batch_size):
            hidden = tower_hidden(self.tower, tower_pixels(batch_pixels.to(self.answering.weight.device)), SELECT_LAYER)
            logits = self.answering(hidden.flatten(1)).split(_CLASS_COUNTS, dim=1)
            class_probabilities = [attribute.softmax(1).tolist() for attribute in logits]
            for index in range(len(batch_pixels)):
                yield {name: shares[index] for name, shares in zip(ATTRIBUTES, class_probabilities, strict=True)}


def loss(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy per image, summed over attributes and heads; `labels` int64 [n, attributes]."""
    return sum(
        F.cross_entropy(part, labels[:, column], ignore_index=NO_TARGET, reduction="sum") / len(labels)
        for head in logits
        for column, part in enumerate(head.split(_CLASS_COUNTS, dim=1))
    )


def training_images(seed: int, patients: int, size: int) -> tuple[np.ndarray, np.ndarray, list[list[phantom.Study]]]:
    """Training phantoms in memory: uint8 [n, size, size], int64 targets [n, attributes], and the patients."""
    settings = Phantom(patients=patients, size=size, test_fraction=0)
    timelines = list(phantom.patients(seed, settings))
    studies = [study for timeline in timelines for study in timeline]
    labels = np.array([targets(study.states, study.portable) for study in studies])
    return np.stack([study.pixels for study in studies]), labels, timelines


def train(
    expert: PhantomExpert, pixels: np.ndarray, labels: np.ndarray, *, steps: int, batch: int = 64,
    learning_rate: float = 1.5e-3, seed: int = 0,
) -> Iterator[dict]:  # fmt: skip
    """Fits the expert; yields {"step", "loss"} after every step.

    `pixels` uint8 [n, S, S], `labels` int64 [n, attributes].
    """
    inputs, target_classes = torch.from_numpy(pixels), torch.from_numpy(labels)
    optimizer = Muon(expert, MATRIX_RATE, learning_rate)
    generator = torch.Generator().manual_seed(seed)

    def loss_share(replica: PhantomExpert, batch_indices: torch.Tensor) -> torch.Tensor:
        mean_loss = loss(replica(tower_pixels(inputs[batch_indices])), target_classes[batch_indices])
        return mean_loss * len(batch_indices) / batch

    with one_core_threads() as pool:
        replicas = Replicas(expert, pool)
        for step in range(steps):
            batch_indices = torch.randint(len(inputs), (batch,), generator=generator)
            batch_loss = replicas.backward(loss_share, batch_indices.tensor_split(PARTS))
            nn.utils.clip_grad_norm_(expert.parameters(), 1.0)
            optimizer.step(rate_at(step, steps, 1.0, WARMUP))
            yield {"step": step + 1, "loss": batch_loss}


def tower_pixels(grey: torch.Tensor) -> torch.Tensor:
    """uint8 [n, S, S] → float32 [n, 3, S, S] in -1..1, as NVILA's preprocessing gives them to the tower."""
    return (grey.float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def open_predictor(path: Path, settings: Experts) -> PhantomPredictor:
    """The expert of stage `experts` in the demo; raises UserError if stage `pretrain` has not written it."""
    return PhantomPredictor(load_expert(path), settings.batch_size)


class PhantomPredictor:
    """The phantom expert behind the experts' protocol (`protocol.Expert`)."""

    @classmethod
    def open(cls, settings: Experts, *, cache: str, pretrained: Path) -> PhantomPredictor:
        """The expert that stage `pretrain` wrote; see `protocol.open_expert`."""
        return open_predictor(pretrained / "expert.safetensors", settings)

    def __init__(self, expert: PhantomExpert, batch_size: int) -> None:
        self._expert, self._batch_size = expert.eval(), batch_size

    def predict(self, studies: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """A row for each study, in order; images are small, so they are decoded in this process."""
        studies_left = iter(studies)
        size = self._expert.vision["image_size"]
        while batch := list(islice(studies_left, self._batch_size)):
            pixels = np.stack([tower_image(images.grey_levels(study["image"]), size) for study in batch])
            for study, probabilities in zip(batch, self._expert.probabilities(pixels), strict=True):
                yield {"study_id": study["study_id"], "dicom_id": study["dicom_id"], **row(probabilities)}


def row(probabilities: Probabilities) -> dict[str, Any]:
    """The expert row of one image: the probability of each finding, and of each view."""
    view = zip(ATTRIBUTES["image", "view"], probabilities["image", "view"], strict=True)
    return {
        "expert": "phantom",
        "pathologies": {finding: round(probabilities[finding, "present"][1], 4) for finding in ps.FINDINGS},
        "view": {name: round(p, 4) for name, p in view},
    }


def tower_image(pixels: np.ndarray, size: int) -> np.ndarray:
    """An image uint8 [H, W] as the tower's square uint8 [size, size], resized as NVILA's preprocessing does."""
    if pixels.shape == (size, size):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))


SHAPE_KEY = "phantom_expert"
"""Entry of the file's header that holds the tower's config and the width."""


def save_expert(expert: PhantomExpert, path: str | Path) -> None:
    """Writes an expert to one safetensors file, whole or not at all; its shapes are in the file's header."""
    path = Path(path)
    # one entry: safetensors writes several in random order, and the same expert must be the same bytes
    shape = {SHAPE_KEY: json.dumps({"vision": expert.vision, "width": expert.width})}
    tensors = {name: tensor.contiguous() for name, tensor in expert.state_dict().items()}
    with atomic(path) as stream:
        stream.write(serialize(tensors, metadata=shape))


def load_expert(path: str | Path) -> PhantomExpert:
    """Reads the file of `save_expert`. Raises UserError if it is missing or not such a file."""
    try:
        with safe_open(path, "pt") as file:
            shape = file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run stage=pretrain, which trains the phantom expert") from None
    except SafetensorError as error:
        raise UserError(f"{path} is corrupt ({error}): run stage=pretrain again") from None
    if SHAPE_KEY not in shape:
        raise UserError(f"{path} is not a phantom expert")
    expert = blank_expert(**json.loads(shape[SHAPE_KEY]))
    expert.load_state_dict(load_file(path))
    return expert.eval()


def blank_expert(vision: Mapping[str, Any], width: int) -> PhantomExpert:
    """An expert with random weights; `vision` is the tower's config.json, `width` the language model's."""
    config = official_config(vision=dict(vision), llm={"hidden_size": width}, aspect="resize",
                             projector="mlp_downsample_2x2_fix")  # fmt: skip
    tower = SiglipVisionModel(SiglipVisionConfig(**config.vision_tower))
    return PhantomExpert(tower, Projector(config), config.vision_tower, width)
