"""NVILA on today's transformers: the official checkpoint in and out. docs/nvila.md begins with its four calls."""

import lumen_hpc.torchvision_compat
import lumen_hpc.transformers_compat  # noqa: F401  (both before transformers)

from .checkpoint import load, save
from .inputs import Inputs, Preprocessor
from .model import NVILA, Output
from .packing import Batch, Sample, pack, packed_length, pad

__all__ = [
    "NVILA",
    "Batch",
    "Inputs",
    "Output",
    "Preprocessor",
    "Sample",
    "load",
    "pack",
    "packed_length",
    "pad",
    "save",
]
