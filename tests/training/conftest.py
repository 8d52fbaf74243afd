"""A process group of one rank, for tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from lumen_hpc.distributed import Ranks, join, leave


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """This process as the only rank; vLLM, in tests that ran in this process before, may have left such a group."""
    if dist.is_initialized():
        assert dist.get_world_size() == 1
        yield
        return
    join(Ranks(), tmp_path)
    yield
    assert dist.is_initialized()
    leave()
