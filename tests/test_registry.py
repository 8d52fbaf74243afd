"""Every name that settings offer has an implementation behind it, and a new one is taken by its entry alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lumen_hpc import registry
from lumen_hpc.config.schema import EngineSettings, Experts
from lumen_hpc.experts.protocol import open_expert
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.grammar import GrammarEngine


class Constant:
    """The ten lines of registry.py: an expert that says the same of every study."""

    @classmethod
    def open(cls, settings: Experts, *, cache: str, pretrained: Path) -> Constant:
        return cls()

    def predict(self, studies) -> Iterator[dict]:
        for study in studies:
            yield {"study_id": study["study_id"], "expert": "constant", "pathologies": {"Edema": 0.7}}


class Echo(GrammarEngine):
    """An engine of somebody's own."""


@pytest.mark.parametrize("entry", [*registry.EXPERTS.values(), *registry.ENGINES.values()])
def test_every_entry_names_a_class_that_opens(entry: str):
    assert callable(registry.implementation(entry).open)


def test_an_expert_is_added_by_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(registry.EXPERTS, "constant", f"{__name__}:Constant")
    expert = open_expert(Experts(model="constant"), cache=str(tmp_path), pretrained=tmp_path)
    assert [row["pathologies"] for row in expert.predict([{"study_id": 1}])] == [{"Edema": 0.7}]


def test_an_engine_is_added_by_one_entry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.ENGINES, "echo", f"{__name__}:Echo")
    assert isinstance(open_engine(EngineSettings(kind="echo", model="any")), Echo)
