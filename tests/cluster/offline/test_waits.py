"""How often the tests on a cluster look whether what they wait for has come."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from sandbox.slurm import Cluster, ClusterError


@pytest.mark.parametrize(("look", "pause"), [(0.0, 0.05), (0.02, 0.08), (1.0, 0.25)])
def test_a_look_that_takes_long_is_followed_by_a_longer_pause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: float, pause: float
) -> None:
    now, pauses = [0.0], []

    def passes(seconds: float) -> None:
        now[0] += seconds

    def reached() -> bool:
        passes(look)
        return len(pauses) == 3

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: (pauses.append(seconds), passes(seconds)))
    cluster = Cluster(tmp_path)
    cluster.wait(reached, 60, "the third pause")
    assert pauses == pytest.approx([pause] * 3)
    with pytest.raises(ClusterError, match="waited 60 s for: what never comes"):
        cluster.wait(lambda: passes(look), 60, "what never comes")
