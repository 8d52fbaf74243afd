"""Seconds that our `manifest.missing` takes; run by slurm_shards in a process of its own.

python slurm_missing.py FOLDER SHARDS ABSENT      (ABSENT: JSON list of the shards left out)
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path

from lumen_hpc.cluster import manifest
from lumen_hpc.cluster.shards import Shard, write_shard


def main(folder: Path, shards: int, absent: list[int]) -> None:
    missing = set(absent)
    for index in range(shards):
        shard = Shard(index, shards)
        if index in missing:
            continue
        file = write_shard(folder, shard, [{"shard": index}])
        line = {
            "shard": index, "of": shards, "rows": file.rows, "sha256": file.sha256, "content": file.content,
            "bytes": file.bytes, "mtime_ns": file.mtime_ns, "files": [], "inputs": "0" * 16, "config": "1" * 16,
            "code": "2" * 16, "seconds": 0.003, "gpu_seconds": 0.003, "node": "n1", "attempt": 1,
            "finished": manifest.now(),
        }  # fmt: skip
        manifest.append(folder / manifest.NAME, line)
    gc.set_threshold(100_000)  # as launch.py does for every command
    start = time.perf_counter()
    missing_shards = manifest.missing_shards(folder, shards, "1" * 16, ["0" * 16] * shards)
    seconds = time.perf_counter() - start
    assert set(missing_shards) == missing
    print(seconds)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3]))
