"""One rank of a tensor-parallel NVILA: python -m tests.serving.tensor_parallel_worker FOLDER; rank 0 prints the ids."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    from lumen_hpc.serving.vllm_answerer import VLLMModel
    from tests.serving.conftest import make_records

    options = {"tensor_parallel": 2, "distributed_executor_backend": "external_launcher"}
    model = VLLMModel(sys.argv[1], dtype="float32", max_model_len=1024, **options)
    answers = [answer.ids for answer in model.generate(make_records(), max_new_tokens=8)]
    if os.environ["RANK"] == "0":
        print("ids", json.dumps(answers), flush=True)
    os._exit(0)  # gloo may abort while it is torn down


if __name__ == "__main__":
    main()
