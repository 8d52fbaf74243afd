"""What settings choose by name, and where the class behind each name is: experts and language engines.

To add an expert, write a class with `open` and `predict` (`lumen_hpc.experts.protocol.Expert`) and name it in EXPERTS:

    EXPERTS = {..., "mine": "my_package.expert:MyExpert"}

    class MyExpert:
        @classmethod
        def open(cls, settings, *, cache, pretrained): return cls(Path(cache) / "mine.safetensors")
        def predict(self, studies):
            for study in studies:
                yield {"study_id": study["study_id"], "dicom_id": study["dicom_id"], "expert": "mine",
                       "pathologies": {"Edema": 0.7}}

The package lies in the checkout (tracked by git, since jobs run a copy of the tracked files) or is installed where jobs
run. `settings.weights` may name a file of yours, such as a table of probabilities.

An engine (for rewriting or judging) is a subclass of `lumen_hpc.language.protocol.Engine`, named in ENGINES in the same
way; canaries then tell whether it is fit to judge. Compared models are in lumen_hpc/models.py, outcomes in
lumen_hpc/outcomes/outcomes.py (OUTCOMES), measures in lumen_hpc/metrics/measures.py (MEASURES).
"""

from __future__ import annotations

import importlib
from typing import Any

EXPERTS = {
    "xrv": "lumen_hpc.experts.torchxrayvision:TorchXRayVision",
    "phantom": "lumen_hpc.experts.phantom_expert:PhantomPredictor",
}
"""`experts.model` → class. TorchXRayVision's models, and the small expert that stage `pretrain` trains on phantoms."""
ENGINES = {
    "vllm": "lumen_hpc.language.vllm_engine:VLLMEngine",
    "transformers": "lumen_hpc.language.transformers_engine:TransformersEngine",
    "server": "lumen_hpc.language.server_engine:ServerEngine",
    "grammar": "lumen_hpc.language.grammar:GrammarEngine",
}
"""`engine.kind` → class."""


def implementation(entry: str) -> Any:
    """The class that an entry (`module:Class`) names; its module, which may be heavy, is imported here."""
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)
