"""TorchXRayVision's models as experts: pathologies, age, race and view.

Their outputs are used as they are: the pathology models already apply the sigmoid and put each operating point at 0.5,
the race model gives log-probabilities, the view model logits, the age model years. A head that was not trained, or has
no operating point, always gives exactly 0.5; it is left out, not averaged in.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

import lumen_hpc.torchvision_compat  # noqa: F401  (torchxrayvision imports torchvision)
from lumen_hpc.config.schema import Experts
from lumen_hpc.data import images
from lumen_hpc.environment import variable
from lumen_hpc.errors import UserError
from lumen_hpc.experts import xrv_weights
from lumen_hpc.weights import FORCE_WEIGHTS_ONLY, locate_experts

EXTRA_SIZES = {"age": 320, "race": 320, "view": 224}
"""Input size of each further expert [px]."""


class TorchXRayVision:
    """The 18 conditions (one model, or several averaged), age, race and view."""

    @classmethod
    def open(cls, settings: Experts, *, cache: str, pretrained: Path) -> TorchXRayVision:
        """The models from the folder of their weights; see `protocol.open_expert`."""
        folder = locate_experts(settings.weights, cache)
        if settings.weights and not settings.trust_unknown_weights:
            xrv_weights.require_own(folder)
        return cls(settings, folder)

    def __init__(self, settings: Experts, folder: Path) -> None:
        import torchxrayvision

        files = {
            name: xrv_weights.path(name, folder, settings.trust_unknown_weights)
            for name in xrv_weights.weight_names(settings)
        }
        self.settings = settings
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with _whole_modules_allowed():
            self.models = {name: _pathology_model(name, folder).to(self.device).eval() for name in settings.pathologies}
        baseline = torchxrayvision.baseline_models
        kinds = {
            "age": baseline.riken.AgeModel,
            "race": baseline.emory_hiti.RaceModel,
            "view": baseline.xinario.ViewModel,
        }
        with _as_library_cache(folder), _whole_modules_allowed():
            self.extra = {name: kinds[name]().to(self.device).eval() for name in settings.extra}
        self.trained = {name: trained_heads(model) for name, model in self.models.items()}
        sizes = {name: int(model.input_resolution) for name, model in self.models.items()}
        self.sizes = sizes | {name: EXTRA_SIZES[name] for name in settings.extra}
        assert set(files) == set(self.sizes)

    @torch.inference_mode()
    def predict(self, studies: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """See Expert.predict; images are decoded once, by worker processes, ahead of the device."""
        study_list = list(studies)
        for batch, inputs in _batches(study_list, sorted(set(self.sizes.values())), self.settings):
            on_device = {size: array.to(self.device, non_blocking=True) for size, array in inputs.items()}
            pathologies = self._predict_pathologies(on_device)
            extra = {name: model(on_device[self.sizes[name]]).float().cpu() for name, model in self.extra.items()}
            for name, values in (pathologies | extra).items():
                _check_numbers(name, torch.as_tensor(values), batch)
            for position, study in enumerate(batch):
                row = {"study_id": study["study_id"], "dicom_id": study["dicom_id"], "expert": "torchxrayvision"}
                row["pathologies"] = {name: round(float(values[position]), 4) for name, values in pathologies.items()}
                if "age" in extra:
                    row["age"] = round(float(extra["age"][position].squeeze()), 1)
                if "race" in extra:
                    row["race"] = _class_probabilities(self.extra["race"], extra["race"][position].exp())
                if "view" in extra:
                    row["view"] = _class_probabilities(self.extra["view"], extra["view"][position].softmax(-1))
                yield row

    def _predict_pathologies(self, inputs: Mapping[int, torch.Tensor]) -> dict[str, np.ndarray]:
        """Condition → probabilities [n], the mean over the models that were trained for it."""
        outputs: dict[str, list[np.ndarray]] = {}
        for name, model in self.models.items():
            output = model(inputs[self.sizes[name]]).float().cpu().numpy()
            for condition, column in self.trained[name].items():
                outputs.setdefault(condition, []).append(output[:, column])
        return {condition: np.mean(values, axis=0) for condition, values in outputs.items()}


def trained_heads(model: Any) -> dict[str, int]:
    """Condition → column of the heads that a pathology model was trained for and has an operating point for."""
    thresholds = np.asarray(model.op_threshs, dtype=float)
    return {name: at for at, name in enumerate(model.targets) if name and not np.isnan(thresholds[at])}


def _pathology_model(name: str, folder: Path) -> torch.nn.Module:
    import torchxrayvision

    kind = torchxrayvision.models.ResNet if name.startswith("resnet") else torchxrayvision.models.DenseNet
    return kind(weights=name, cache_dir=str(folder))


def _whole_modules_allowed() -> AbstractContextManager[None]:
    """Lets torch unpickle TorchXRayVision's whole modules, verified by now, where a site forbids it for all pickles."""
    return variable(FORCE_WEIGHTS_ONLY, None)


@contextmanager
def _as_library_cache(folder: Path) -> Iterator[None]:
    """Lets models that search only the home folder find their weights in `folder`."""
    with tempfile.TemporaryDirectory() as top:
        (Path(top) / ".torchxrayvision").mkdir()
        (Path(top) / ".torchxrayvision" / "models_data").symlink_to(folder.absolute())
        with variable("HOME", top):
            yield


def _check_numbers(name: str, values: torch.Tensor, batch: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError for an output that is no number; a row would have `null` there, which is no prediction."""
    bad_rows = (~values.isfinite().reshape(len(batch), -1).all(1)).nonzero()
    if len(bad_rows):
        study = batch[int(bad_rows[0])]["study_id"]
        raise UserError(
            f"experts: {name} is no number for study {study} (NaN or infinite); its weights are damaged: remove them "
            "and run stage=fetch again"
        )


def _class_probabilities(model: Any, probabilities: torch.Tensor) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(model.targets, probabilities.flatten(), strict=True)}


class _Inputs(torch.utils.data.Dataset):
    """Study → its decoded inputs by size; a UserError is returned, since a worker would wrap it in another."""

    def __init__(self, studies: Sequence[Mapping[str, Any]], sizes: Sequence[int]) -> None:
        self.studies, self.sizes = studies, sizes

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> dict[int, np.ndarray] | UserError:
        try:
            image = images.decode(self.studies[index]["image"])
        except UserError as error:
            return error
        return {size: images.xrv_input(image, size) for size in self.sizes}


def _collate(items: list[dict[int, np.ndarray] | UserError]) -> dict[int, torch.Tensor] | UserError:
    samples = []
    for item in items:
        if isinstance(item, UserError):
            return item
        samples.append(item)
    return {size: torch.from_numpy(np.stack([item[size] for item in samples])) for size in samples[0]}


def _batches(
    studies: Sequence[Mapping[str, Any]], sizes: Sequence[int], settings: Experts
) -> Iterator[tuple[Sequence[Mapping[str, Any]], dict[int, torch.Tensor]]]:
    """(studies, size → float32 [n, 1, size, size]) in order, decoded ahead by `settings.workers` processes."""
    single_batch = len(studies) <= settings.batch_size
    loader = torch.utils.data.DataLoader(
        _Inputs(studies, sizes),
        batch_size=settings.batch_size,
        num_workers=0 if single_batch else min(settings.workers, len(os.sched_getaffinity(0))),
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
    )
    for position, inputs in enumerate(loader):
        if isinstance(inputs, UserError):
            raise inputs
        yield studies[position * settings.batch_size : (position + 1) * settings.batch_size], inputs
