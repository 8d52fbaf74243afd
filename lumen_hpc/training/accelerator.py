"""DeepSpeed imported so that it works on any machine; inside `weights_only` it runs no code from a pickle.

Import it from here and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from unittest.mock import patch

import torch

import lumen_hpc.torchvision_compat  # noqa: F401  (DeepSpeed looks at transformers, which looks at torchvision)
from lumen_hpc.environment import variable
from lumen_hpc.weights import FORCE_WEIGHTS_ONLY

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


def weights_only() -> contextlib.AbstractContextManager[None]:
    """Has DeepSpeed read a checkpoint without running code from it: it loads with weights_only=False."""
    return variable(FORCE_WEIGHTS_ONLY, "1")


__all__ = ["FORCE_WEIGHTS_ONLY", "NAME", "deepspeed", "weights_only", "zero_to_fp32"]
