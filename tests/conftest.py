"""What holds for every test: no profile of the user's, one thread per process, and long files first."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

# Before anything imports torch: on small models threads only wait for each other, and processes already fill the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A million objects that the tests import stay; Python looks through them once, when all are there.
gc.disable()

LONGEST = (
    "training/test_sequence_parallel.py", "language/test_facts.py", "language/test_fact_cases.py",
    "serving/test_serve.py", "training/test_loop.py", "training/test_gpu_speed.py", "training/test_train.py",
    "serving/test_vllm_answerer.py", "language/test_engines.py", "language/test_reader.py", "language/test_resume.py",
    "serving/test_predictor.py", "report/test_page.py", "language/test_smollm2.py", "training/test_adapters.py",
    "training/test_compile_trial.py", "training/test_quantisation.py", "training/test_validation.py",
    "report/test_cheats.py", "nvila/test_zero3.py", "security/test_scratch.py", "whole/test_chain.py",
    "cluster/test_full_run.py", "cluster/test_mishaps.py", "cluster/test_training.py", "cluster/test_restricted_run.py",
    "cluster/test_kinds_of_stage.py",
)  # fmt: skip
"""Files that take half a minute or more, the longest first: they begin first, so that at the end no process waits long
for another's last file. One of many processes is followed by one of a single process, which runs beside it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {Path(__file__).parent / name: number for number, name in enumerate(LONGEST)}
    assert all(path.exists() for path in order), "a name in LONGEST is no file"
    items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_profile_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LUMEN_PROFILE", raising=False)
