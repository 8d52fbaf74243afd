"""Teaches vLLM the NVILA family: entry point `lumen_nvila` of the group `vllm.general_plugins`.

With this package installed, `vllm serve FOLDER` and `vllm.LLM(FOLDER)` take a checkpoint in the official layout (a
run's `final/`) or in the flat one of `NVILA-8B-hf`. Where the package is on the path without being installed, call
`register()` before vLLM opens the model.
"""

from __future__ import annotations


def register() -> None:
    """Register configuration, tokenizer and model with transformers and vLLM; more than once does no harm."""
    from transformers import AutoConfig, AutoTokenizer
    from vllm import ModelRegistry

    import lumen_hpc.torchvision_compat  # noqa: F401  (before transformers, which looks at torchvision)

    from .hf_checkpoint import ARCHITECTURE, CONFIGS, NVILATokenizer

    for config in CONFIGS:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoTokenizer.register(config, fast_tokenizer_class=NVILATokenizer, exist_ok=True)
    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.vllm_model:{ARCHITECTURE}")
