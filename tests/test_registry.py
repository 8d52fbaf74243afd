"""Every name that settings offer has an implementation behind it, and a new one is taken by its entry alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.experts import STAGE
from lumen_hpc import registry
from lumen_hpc.config.schema import EngineSettings, Experts, Settings
from lumen_hpc.errors import UserError
from lumen_hpc.experts.protocol import open_expert, predict
from lumen_hpc.language.engine import open_engine
from lumen_hpc.language.grammar import GrammarEngine
from lumen_hpc.language.protocol import Completion, Engine


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


class Silent(Engine):
    """An engine without a model."""

    def _continue(self, conversations, max_tokens, temperature, seeds):
        return [Completion("") for _ in conversations]

    def _choose(self, conversations, choices):
        return [Completion(choices[0]) for _ in conversations]


@pytest.mark.parametrize("entry", [*registry.EXPERTS.values(), *registry.ENGINES.values()])
def test_every_entry_names_a_class_that_opens(entry: str):
    assert callable(registry.implementation(entry).open)


def test_an_expert_is_added_by_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(registry.EXPERTS, "constant", f"{__name__}:Constant")
    expert = open_expert(Experts(model="constant"), cache=str(tmp_path), pretrained=tmp_path)
    assert [row["pathologies"] for row in expert.predict([{"study_id": 1}])] == [{"Edema": 0.7}]


STUDIES = [{"study_id": 1}, {"study_id": 2}]


class Given:
    """An expert whose rows are given, as those of a table made elsewhere."""

    def __init__(self, *rows: dict) -> None:
        self._rows = rows

    def predict(self, studies) -> Iterator[dict]:
        yield from self._rows


def _row(study: int, **pathologies: float | None) -> dict:
    return {"study_id": study, "expert": "given", "pathologies": pathologies}


def test_rows_as_the_protocol_asks_are_taken():
    rows = [_row(1, Edema=0), _row(2, Edema=1.0)]
    assert list(predict(Given(*rows), STUDIES)) == rows
    assert list(predict(Given(_row(1), _row(2)), STUDIES)) == [_row(1), _row(2)]  # experts.pathologies=[]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([_row(1, Edema=0.3)], "fewer rows than studies"),
        ([_row(1, Edema=0.3), _row(2, Edema=0.3), _row(3, Edema=0.3)], "more rows than studies"),
        ([_row(2, Edema=0.3), _row(1, Edema=0.3)], "study 1: its row is of study 2"),
        ([_row(1, Edema=0.3), _row(2, Edema=1.2)], "study 2: Edema is 1.2"),
        ([_row(1, Edema=float("nan")), _row(2, Edema=0.3)], "study 1: Edema is nan"),
        ([_row(1, Edema=None), _row(2, Edema=0.3)], "study 1: Edema is None"),
        ([_row(1, Edema=0.3), _row(2, Mass=0.3)], r"study 2: its pathologies are \['Mass'\]"),
    ],
)
def test_a_row_that_later_stages_would_misread_is_named(rows: list[dict], message: str):
    with pytest.raises(UserError, match=message):
        list(predict(Given(*rows), STUDIES))


def test_a_table_that_changes_makes_the_experts_run_again(tmp_path: Path):
    (tmp_path / "table.csv").write_text("study_id,Edema\n")
    table, folder = (Settings(experts=Experts(weights=str(path))) for path in (tmp_path / "table.csv", tmp_path))
    assert [STAGE.external(settings) for settings in (table, folder)] == [[str(tmp_path / "table.csv")], []]


def test_an_engine_is_added_by_one_entry(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.ENGINES, "echo", f"{__name__}:Echo")
    assert isinstance(open_engine(EngineSettings(kind="echo", model="any")), Echo)


def test_an_own_engine_needs_no_model_and_is_called_by_its_kind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(registry.ENGINES, "silent", f"{__name__}:Silent")
    assert open_engine(EngineSettings(kind="silent")).name == "silent"
