"""The real cluster of these tests: started once for all of them, skipped with its reason where it cannot run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.cluster.slurm import Cluster, why_not


@pytest.fixture(scope="session")
def can_run_slurm() -> None:
    """Skip where no cluster can run; fail instead where LUMEN_REQUIRE_SLURM=1 says that one must (.ci/run)."""
    if reason := why_not():
        if os.environ.get("LUMEN_REQUIRE_SLURM") == "1":
            pytest.fail(f"LUMEN_REQUIRE_SLURM=1, but {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session")
def cluster(can_run_slurm: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, with accounting."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm")).up()
    yield cluster
    cluster.down()
