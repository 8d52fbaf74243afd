"""Lets a CUDA build of torchvision import beside a CPU build of torch.

The registry's torchvision wheel registers no operators without CUDA, and its import then fails at `torchvision::nms`
(and `qnms`), as do transformers' models, which import torchvision. Declaring the two schemas first is enough: nothing
here calls them. Import this module before torchvision,
torchxrayvision, transformers or vllm; with a matching torchvision it does nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library = None


def _operators_load() -> bool:
    """True if torchvision's own compiled operators register beside this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return True
    for file in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(str(file))
        except OSError:
            return False
    return all(hasattr(torch.ops.torchvision, name) for name in _SCHEMAS)


if not _operators_load():
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for _name, _schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, _name):
            _library.define(_schema)


def applied() -> bool:
    """True if torchvision's own operators did not load here; a child process then needs this module too."""
    return _library is not None
