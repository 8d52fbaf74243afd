"""A shard is a contiguous part of the work, and its file is whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc.cluster.shards import Shard, write_shard


@pytest.mark.parametrize(("total", "count"), [(10, 3), (3, 7), (0, 2), (1000, 64)])
def test_shards_cover_everything_once_in_order(total: int, count: int):
    parts = [list(Shard(index, count).of(range(total), total)) for index in range(count)]
    assert [item for part in parts for item in part] == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_failed_shard_leaves_no_file(tmp_path: Path):
    def rows():
        yield {"a": 1}
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, Shard(0, 1), rows())
    assert list(tmp_path.iterdir()) == []
