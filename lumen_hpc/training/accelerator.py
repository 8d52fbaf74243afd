"""DeepSpeed imported so that it works on any machine; inside `weights_only` it runs no code from a pickle.

Import it from here and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from unittest.mock import patch

import torch

import lumen_hpc.torchvision_compat  # noqa: F401  (DeepSpeed looks at transformers, which looks at torchvision)

NAME = "cuda" if torch.cuda.is_available() else "cpu"
os.environ.setdefault("DS_ACCELERATOR", NAME)

import deepspeed  # noqa: E402
from deepspeed.runtime.fp16.loss_scaler import LossScaler  # noqa: E402
from deepspeed.runtime.zero.config import ZeroStageEnum  # noqa: E402
from deepspeed.utils import zero_to_fp32  # noqa: E402
from deepspeed.utils.tensor_fragment import fragment_address  # noqa: E402

if NAME == "cpu":
    # Otherwise DeepSpeed compiles C++ for most of a minute, for a shared-memory all-reduce no faster here than gloo's.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

# Otherwise every rank imports torch's compiler, for an optimizer that is not used here: a fifth of the start's time.
with (
    contextlib.suppress(ImportError, AttributeError),  # another version of DeepSpeed
    patch.object(deepspeed.runtime.compiler, "compile", lambda *_, **__: lambda function: function),
):
    import deepspeed.runtime.zero.muon.muon_optimizer

# All that DeepSpeed's checkpoints contain besides tensors and plain values.
torch.serialization.add_safe_globals([LossScaler, ZeroStageEnum, fragment_address])
deepspeed.utils.logger.setLevel("WARNING")
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls, not ours

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""The variable that lets torch unpickle only weights and plain values, whatever `torch.load` is asked for."""


@contextlib.contextmanager
def weights_only() -> Iterator[None]:
    """Has DeepSpeed read a checkpoint without running code from it.

    It loads with weights_only=False, which this overrides. Only inside the block: the process may be a notebook, whose
    user reads other pickles.
    """
    earlier = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if earlier is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = earlier


__all__ = ["FORCE_WEIGHTS_ONLY", "NAME", "deepspeed", "weights_only", "zero_to_fp32"]
