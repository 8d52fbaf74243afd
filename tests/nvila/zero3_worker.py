"""One of two processes under DeepSpeed ZeRO-3: one has pictures, the other text alone, and they swap.

`zero3_worker.py RANK PORT`, with the port of both; prints a line a step: the mean loss of both, and the loss of their
samples together in one process.
"""

import copy
import os
import sys

import deepspeed
import deepspeed.ops
import numpy as np
import torch
import torch.distributed as dist

from lumen_hpc import nvila
from lumen_hpc.nvila.tiny import make_tiny

torch.set_num_threads(1)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles C++
os.environ |= {"RANK": sys.argv[1], "LOCAL_RANK": sys.argv[1], "WORLD_SIZE": "2"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[2]}
deepspeed.init_distributed("gloo")
RANK, WORLD = dist.get_rank(), dist.get_world_size()


def sync_tower_calls(calls: int) -> int:
    most = torch.tensor([calls])
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return int(most)


model = make_tiny(["What has changed? Nothing."], vision_width=32, width=32, layers=1, image_size=32).train()
model.tiles_at_once = 2
model.gradient_checkpointing()
alone = copy.deepcopy(model)
model.sync_tower_calls = sync_tower_calls
config = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3},
    "optimizer": {"type": "SGD", "params": {"lr": 0.0}},
    "zero_allow_untested_optimizer": True,
}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
rng = np.random.default_rng(0)
turns = [{"from": "human", "value": "What has changed?"}, {"from": "gpt", "value": "Nothing."}]
for step in range(2):
    images = [{"images": [rng.integers(0, 256, (40, 40), dtype=np.uint8)], "conversations": turns} for _ in range(5)]
    both = [images, [{"conversations": turns}]]
    batches = [nvila.pad(alone.preprocess(records).samples) for records in both]
    total = sum(batch.supervised for batch in batches)
    loss = engine(batches[(RANK + step) % 2], loss_denominator=total / WORLD).loss
    engine.backward(loss)
    engine.step()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    expected = sum(alone(batch, loss_denominator=total).loss.item() for batch in batches)
    if RANK == 0:
        print("losses", mean.item() / WORLD, expected, flush=True)
dist.barrier()
engine.destroy()
dist.destroy_process_group()
