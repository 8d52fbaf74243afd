"""A small graph of stages that need nothing, for what can be tested without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from lumen_hpc.cluster.stage import Run, Stage
from lumen_hpc.config.profile import Profile
from lumen_hpc.config.schema import Settings


def stage(name: str, **more: object) -> Stage:
    given = {"paper": "", "about": "", "resources": "gpu", "settings": ("seed", "predict.shards"), **more}
    return Stage(name=name, **given)  # type: ignore[arg-type]


@pytest.fixture
def stages() -> list[Stage]:
    four = {"shards": lambda settings: settings.predict.shards, "models": lambda settings: ["a", "b"]}
    return [
        stage("first", resources="cpu"),
        stage("answer", after=("first",), volatile=("seconds",), **four),
        stage("score", after=("first", "answer-{model}"), shardwise_after="answer-{model}", **four),
        stage("last", resources="cpu", after=("answer-*", "score-*")),
    ]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", Settings(), Profile())
