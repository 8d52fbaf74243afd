"""`predict.engine`: rows of both engines are the same; what is not installed is said."""

from __future__ import annotations

import pytest

from lumen_hpc.config.schema import Predict
from lumen_hpc.data.records import Records
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.generate import Answer
from lumen_hpc.serving import predictor, trial
from tests.training import tiny


@pytest.mark.usefixtures("frozen_heap")
@pytest.mark.parametrize("aspect", [{"aspect": "resize"}, {"aspect": "dynamic_s2", "projector": "mlp_downsample"}])
def test_both_engines_write_the_same_rows(tmp_path, aspect):
    pytest.importorskip("vllm")
    run = tiny.make(tmp_path, image=(70, 90), image_size=32, **aspect)
    questions = Records(run / "records.jsonl")
    controls = ["swapped", "same", "other_patient", "no_image"]

    def rows(engine: str) -> list[dict]:
        settings = Predict(engine=engine, max_new_tokens=8, controls=controls, batch_tokens=200)
        engine = predictor.open_predictor(run / "base", settings, model="lumen")
        spans = (range(3), range(3, 15))  # two shards of one task
        answer_rows = [row for span in spans for row in engine.answer(questions, span)]
        if engine == "vllm":
            engine._model.llm.llm_engine.engine_core.shutdown()
        return [{key: value for key, value in row.items() if key != "seconds"} for row in answer_rows]

    native = rows("native")
    assert len(native) > 15 and any("control" in row for row in native)
    assert rows("vllm") == native


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("reason", ["", "a small model answers otherwise"])
def test_auto_is_vllm_where_it_is_installed_on_a_gpu_and_equals_native(monkeypatch, caplog, gpu, installed, reason):
    monkeypatch.setattr(predictor.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr(predictor, "try_vllm", lambda: reason)
    assert predictor.uses_vllm("auto") == (gpu and installed and not reason)
    assert (reason in caplog.text) == (bool(reason) and gpu and installed) or not reason
    assert not predictor.uses_vllm("native")
    if installed:
        assert predictor.uses_vllm("vllm")
    else:
        with pytest.raises(UserError, match=r"predict\.engine=vllm: vLLM is not installed"):
            predictor.uses_vllm("vllm")


def test_the_trial_of_vllm_is_passed_here_and_failed_by_another_answer(tmp_path, monkeypatch):
    pytest.importorskip("vllm")
    assert trial.try_vllm() == ""
    monkeypatch.setattr(trial, "TIMEOUT_S", 0.01)
    assert "did not answer within" in trial.try_vllm()
    from lumen_hpc.serving import vllm_answerer

    class Other:
        def __init__(self, folder, **options):
            pass

        def generate(self, records, max_new_tokens):
            return [Answer("", [1], None) for _ in records]

    monkeypatch.setattr(vllm_answerer, "VLLMModel", Other)
    assert "a small model answers '<image><image>What has changed?' with tokens [1]" in trial.compare(
        tmp_path / "model"
    )
