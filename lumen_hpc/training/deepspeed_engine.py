"""Sets up DeepSpeed as this project needs it: exact global batches, no compiled extensions, our checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lumen_hpc.config import schema
from lumen_hpc.distributed import Ranks
from lumen_hpc.training.accelerator import deepspeed, weights_only
from lumen_hpc.training.checkpointing import TAG, StagedWriter


def deepspeed_config(train: schema.Train, world_size: int, *, universal: bool, nodes: int = 1) -> dict[str, Any]:
    """DeepSpeed's settings; batch sizes are nominal, since this project counts samples itself.

    `train` has no `auto` about memory (`sizing.resolve`).
    """
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": world_size,
        "gradient_clipping": train.clip,
        "zero_optimization": {"stage": train.zero},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
    if train.zero == 3:
        config["zero_optimization"] |= {
            "overlap_comm": torch.cuda.is_available(),
            "contiguous_gradients": True,
            "memory_efficient_linear": False,  # F.linear adds the bias in the product, DeepSpeed's own after it
            "stage3_gather_16bit_weights_on_model_save": True,  # the export gathers the whole model
        }
        if train.node_shards is True and 1 < nodes < world_size:
            config["zero_optimization"]["zero_hpz_partition_size"] = world_size // nodes
    if train.precision == "bf16":
        config["bf16"] = {"enabled": True}
        config["communication_data_type"] = "fp32"
    if universal:
        config["checkpoint"] = {"load_universal": True}
    return config


class Engine:
    """A model under DeepSpeed: `backward` any number of times, then `step`.

    The gradients are the sums over all ranks and micro-batches of the losses given to `backward`; the caller divides by
    global counts.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        train: schema.Train,
        ranks: Ranks,
        writer: StagedWriter,
        *,
        universal: bool = False,
    ) -> None:
        """`universal`: the checkpoint to load is in DeepSpeed's universal form."""
        self._ranks = ranks
        self._adapters_only = train.adapter.kind != "none"
        # DeepSpeed reads these even though torch.distributed is already initialised.
        os.environ.update(LOCAL_RANK=str(ranks.local_rank), RANK=str(ranks.rank), WORLD_SIZE=str(ranks.world_size))
        learning = [p for p in module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            learning,
            lr=train.learning_rate,
            betas=tuple(train.betas),
            weight_decay=train.weight_decay,
            fused=True,
        )
        self.ds, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer,
            dist_init_required=False,
            config=deepspeed_config(train, ranks.world_size, universal=universal, nodes=ranks.nodes),
        )
        self.ds.checkpoint_engine = writer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.ds(*args, **kwargs)

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Adds the gradient of `loss`; `last`: it is the step's last micro-batch."""
        self.ds.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; ours is a sum.
        self.ds.backward(loss * self._ranks.world_size, scale_wrt_gas=False)

    def step(self, rate: float) -> float:
        """Clips, updates at this learning rate and clears; returns the gradient norm before clipping."""
        for group in self.ds.optimizer.param_groups:
            group["lr"] = rate
        self.ds.step()
        return float(self.ds.get_global_grad_norm())

    def stage(self, folder: Path) -> None:
        """Has DeepSpeed lay out its checkpoint under `folder`, through the staged writer."""
        self.ds.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=self._adapters_only)

    def load(self, folder: Path, tag: str) -> None:
        """Loads weights and optimizer state from `folder/tag`, written by `stage` or converted from it.

        Raises RuntimeError if DeepSpeed finds nothing there.
        """
        with weights_only():
            path, _ = self.ds.load_checkpoint(str(folder), tag=tag, load_module_strict=not self._adapters_only)
        if path is None:
            raise RuntimeError(f"DeepSpeed found nothing to load in {folder / tag}")

    def weights(self) -> dict[str, torch.Tensor] | None:
        """The whole model's weights on rank 0 (None elsewhere), for the export; all ranks call it."""
        if self.ds.zero_optimization_stage() == 3:
            return self.ds._zero3_consolidated_16bit_state_dict()
        return self.ds.module.state_dict() if self._ranks.first else None

    def close(self) -> None:
        """Ends DeepSpeed, once all ranks are here; another engine may follow in this process."""
        dist.barrier()
        self.ds.destroy()
        # DeepSpeed caches these groups, and they would outlive the process group that they belong to.
        deepspeed.utils.groups._WORLD_GROUP = deepspeed.utils.groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = None
