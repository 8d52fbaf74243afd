"""One rank of a tensor-parallel NVILA: python -m tests.serving.tensor_parallel_worker CHECKPOINT RENDEZVOUS RANK.

Rank 0 prints the ids.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(checkpoint: str, rendezvous: str, rank: int) -> None:
    from lumen_hpc.distributed import Ranks
    from lumen_hpc.language.vllm_engine import join_vllm, prepare_process, release_segments
    from lumen_hpc.serving.vllm_answerer import VLLMModel
    from tests.serving.conftest import make_records

    prepare_process()
    join_vllm(Ranks(rank=rank, world_size=2, local_rank=rank, job="of this test"), Path(rendezvous))
    options = {"tensor_parallel": 2, "distributed_executor_backend": "external_launcher"}
    model = VLLMModel(checkpoint, dtype="float32", max_model_len=1024, **options)
    release_segments()
    answers = [answer.ids for answer in model.generate(make_records(), max_new_tokens=8)]
    if rank == 0:
        print("ids", json.dumps(answers), flush=True)
    os._exit(0)  # gloo may abort while it is torn down


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
