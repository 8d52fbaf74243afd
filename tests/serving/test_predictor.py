"""`predict.engine`: rows of both engines are the same; what is not installed is said."""

from __future__ import annotations

import pytest

from lumen_hpc.config.schema import Predict
from lumen_hpc.data.records import Records
from lumen_hpc.errors import UserError
from lumen_hpc.serving import predictor
from tests.training import tiny


@pytest.mark.parametrize("aspect", [{"aspect": "resize"}, {"aspect": "dynamic_s2", "projector": "mlp_downsample"}])
def test_both_engines_write_the_same_rows(tmp_path, aspect):
    pytest.importorskip("vllm")
    made = tiny.make(tmp_path, image=(70, 90), image_size=32, **aspect)
    questions = Records(made / "records.jsonl")
    controls = ["swapped", "same", "other_patient", "no_image"]

    def rows(engine: str) -> list[dict]:
        settings = Predict(engine=engine, max_new_tokens=8, controls=controls, batch_tokens=200)
        opened = predictor.open_predictor(made / "base", settings, model="lumen")
        spans = (range(3), range(3, 15))  # two shards of one task
        found = [row for span in spans for row in opened.answer(questions, span)]
        if engine == "vllm":
            opened._model.llm.llm_engine.engine_core.shutdown()
        return [{key: value for key, value in row.items() if key != "seconds"} for row in found]

    native = rows("native")
    assert len(native) > 15 and any("control" in row for row in native)
    assert rows("vllm") == native


def test_auto_is_native_and_vllm_is_taken_where_it_is_named(monkeypatch):
    monkeypatch.setattr(predictor.importlib.util, "find_spec", lambda name: object())
    assert not predictor.uses_vllm("auto")
    assert predictor.uses_vllm("vllm")
    monkeypatch.setattr(predictor.importlib.util, "find_spec", lambda name: None)
    assert not predictor.uses_vllm("auto")
    with pytest.raises(UserError, match=r"predict\.engine=vllm: vLLM is not installed"):
        predictor.uses_vllm("vllm")
