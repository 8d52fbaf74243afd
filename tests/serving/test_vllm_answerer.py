"""vLLM's prompts, answers and probabilities are those of `NVILA.generate`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lumen_hpc import nvila
from lumen_hpc.errors import UserError
from lumen_hpc.nvila import generate
from lumen_hpc.nvila.generate import first_tokens
from lumen_hpc.nvila.packing import PICTURE
from lumen_hpc.serving import vllm_answerer

pytest.importorskip("vllm")
ROOT = Path(__file__).resolve().parents[2]


def _log_probabilities(model: nvila.NVILA, sample: nvila.Sample, answer: list[int]) -> torch.Tensor:
    """The native model's log probability of each token of an answer."""
    ids = torch.cat([torch.from_numpy(sample.token_ids), torch.tensor(answer)]).numpy()
    longer = nvila.Sample(ids, ids * 0 - 100, ids, ids * 0 - 100, sample.tiles, sample.blocks)
    with torch.no_grad():
        logits = model(nvila.pad([longer]), logits="all").logits[0, -len(answer) - 1 : -1]
    return logits.float().log_softmax(-1)[range(len(answer)), answer]


@pytest.mark.parametrize("prefix_cache", [True, False], ids=["prefix_cache", "no_prefix_cache"])
def test_prompts_answers_and_probabilities_equal_the_native_ones(folder, native, records, open_vllm, prefix_cache):
    inputs = native.preprocess(records, generation=True, inline=True)
    expected = native.generate(inputs, max_new_tokens=12)
    model = open_vllm(folder, enable_prefix_caching=prefix_cache)

    batched = model.ask(records, 12, logprobs=0)
    alone = [model.ask([record], 12)[0][0] for record in records]

    for sample, answer, (ids, output), single in zip(inputs.samples, expected, batched, alone, strict=True):
        image = native.tokenizer.image
        assert [PICTURE if i == image else i for i in output.prompt_token_ids] == sample.token_ids.tolist()
        assert ids == single == answer.ids
        theirs = torch.tensor([step[token].logprob for step, token in zip(output.outputs[0].logprobs, ids)])
        assert (theirs - _log_probabilities(native, sample, ids)).abs().max() < 1e-4
    assert [answer.text for answer in model.generate(records, max_new_tokens=12)] == [a.text for a in expected]
    cached = [output.num_cached_tokens for _, output in model.ask([records[1], records[4]], 2)]
    assert (max(cached) > 0) == (prefix_cache and len(inputs.samples[1]) > 32), "two questions share their images"


def test_a_record_is_read_as_the_native_engine_reads_it(folders, pictures):
    """Its one picture may be under LLaVA's `image`, its answer is no part of the prompt, and it must ask something."""
    prepare = nvila.Preprocessor.open(folders["resize"])
    turns = [{"from": "human", "value": "<image>\nWhat has changed?"}, {"from": "gpt", "value": "Nothing."}]
    record = {"image": pictures[0], "conversations": turns}
    vllm_request = vllm_answerer.request(record, prepare, {})
    assert (
        vllm_request["prompt_token_ids"]
        == prepare([record], generation=True, inline=True).samples[0].input_ids.tolist()
    )
    assert vllm_request["multi_modal_data"]["image"] == [pictures[0]]
    with pytest.raises(UserError, match="no messages"):
        vllm_answerer.request({"conversations": turns[1:]}, prepare, {})


def test_the_order_of_the_images_matters(folders, records, open_vllm):
    """Features go to their own picture's places: swapped images give another distribution, the native one."""
    native = nvila.load(folders["dynamic_s2"], dtype=torch.float32)
    swapped_record = {**records[1], "images": records[1]["images"][::-1]}
    model = open_vllm(folders["dynamic_s2"])
    (first, before), (second, after) = model.ask([records[1], swapped_record], 8, logprobs=0)
    samples = native.preprocess([records[1], swapped_record], generation=True, inline=True).samples
    for sample, ids, output in zip(samples, (first, second), (before, after)):
        theirs = torch.tensor([step[token].logprob for step, token in zip(output.outputs[0].logprobs, ids)])
        assert (theirs - _log_probabilities(native, sample, ids)).abs().max() < 1e-4
    changed = _log_probabilities(native, samples[1], first) - _log_probabilities(native, samples[0], first)
    assert changed.abs().max() > 1e-3


@pytest.mark.parametrize("line", [False, True])
def test_the_probability_of_yes_is_the_native_one_however_unlikely_both_words_are(
    folders, records, open_vllm, monkeypatch, line
):
    outcome_records = [record | {"meta": {"type": "outcome"}} for record in records]
    native = nvila.load(folders["dynamic_s2"], dtype=torch.float32)
    inputs = native.preprocess(outcome_records, generation=True, inline=True)
    if line:  # the second token of the first answer ends a findings line
        end = native.generate(inputs, max_new_tokens=4)[0].ids[1]
        for module in (generate, vllm_answerer):
            monkeypatch.setattr(module, "line_ends", lambda tokenizer: [end])
    expected = native.generate(inputs, max_new_tokens=4)
    model = open_vllm(folders["dynamic_s2"])
    vllm_answers = model.generate(outcome_records, max_new_tokens=4)
    assert [answer.ids for answer in vllm_answers] == [answer.ids for answer in expected]
    ours, theirs = (torch.tensor([answer.yes for answer in answers]) for answers in (vllm_answers, expected))
    assert (ours - theirs).abs().max() < 1e-4
    assert theirs.max() - theirs.min() > 1e-3, "the questions differ in it"
    yes, no = first_tokens(native.tokenizer)
    likeliest = [set(one.outputs[0].logprobs[0]) for _, one in model.ask(outcome_records, 1, logprobs=20)]
    assert any(not ({*yes, *no} <= tokens) for tokens in likeliest), "not all of them are among the likeliest"
    assert [answer.yes for answer in model.generate(records, max_new_tokens=1)] == [None] * len(records)


@pytest.mark.parametrize("family", ["dynamic", "dynamic_s2"])
def test_the_flat_layout_answers_alike(folders, records, open_vllm, tmp_path, family):
    from lumen_hpc.serving.export import export

    export(folders[family], tmp_path / "flat", "")
    native = nvila.load(folders[family], dtype=torch.float32)
    expected = native.generate(native.preprocess(records, generation=True, inline=True), max_new_tokens=12)
    assert [a.ids for a in open_vllm(tmp_path / "flat").generate(records, max_new_tokens=12)] == [
        a.ids for a in expected
    ]


def test_the_faster_preprocessing_gives_the_native_answers_of_its_pixels(folders, open_vllm):
    """Pictures so large that the two ways to make them small differ."""
    rng = np.random.default_rng(1)
    images = [Image.fromarray(rng.integers(0, 256, (900, 700), dtype=np.uint8)) for _ in range(2)]
    record = {"images": images, "conversations": [{"from": "human", "value": "<image><image>What has changed?"}]}
    native = nvila.load(folders["dynamic_s2"], dtype=torch.float32)
    [fast], [exact] = (
        native.preprocess([record], generation=True, inline=True, exact=way).samples for way in (False, True)
    )
    assert any(not torch.equal(one, other) for one, other in zip(fast.tiles, exact.tiles))
    model = open_vllm(folders["dynamic_s2"], mm_processor_kwargs={"exact": False})
    [(ids, output)] = model.ask([record], 8, logprobs=0)
    theirs = torch.tensor([step[token].logprob for step, token in zip(output.outputs[0].logprobs, ids)])
    assert (theirs - _log_probabilities(native, fast, ids)).abs().max() < 1e-4
    assert (theirs - _log_probabilities(native, exact, ids)).abs().max() > 1e-4


@pytest.mark.parametrize("family", ["dynamic_s2"])
def test_two_processes_that_share_the_language_model_answer_alike(folders, records, family, tmp_path):
    """Tensor parallelism over the CPU's gloo; tower and projector are whole in both."""
    native = nvila.load(folders[family], dtype=torch.float32)
    expected = native.generate(native.preprocess(records, generation=True, inline=True), max_new_tokens=8)
    words = [sys.executable, "-m", "tests.serving.tensor_parallel_worker", str(folders[family]), str(tmp_path / "meet")]
    # Tests before this one have opened vLLM in this process, which set its caches and its port for itself alone.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    ranks = [
        subprocess.Popen(
            [*words, rank], env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in ("0", "1")
    ]
    printed = [rank.communicate(timeout=400)[0] for rank in ranks]
    id_lines = [line for line in printed[0].splitlines() if line.startswith("ids ")]
    assert id_lines, printed[0][-2000:]
    assert json.loads(id_lines[0][4:]) == [answer.ids for answer in expected]


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    from lumen_hpc.serving.vllm_answerer import VLLMModel

    with pytest.raises(UserError, match=f"no checkpoint folder at {tmp_path}/none"):
        VLLMModel(tmp_path / "none")
