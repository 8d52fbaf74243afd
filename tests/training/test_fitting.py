"""Records too long for `train.max_tokens` lose their oldest images, alike in training and in prediction."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lumen_hpc import nvila
from lumen_hpc.config.schema import Predict
from lumen_hpc.data.records import Records, write_jsonl
from lumen_hpc.distributed import Ranks
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.tiny import make_tiny
from lumen_hpc.training import record_index
from lumen_hpc.training.fitting import ANSWER_SHARE, fit
from lumen_hpc.training.layout import SharedSequence
from lumen_hpc.training.lengths import measure
from lumen_hpc.training.predict import open_predictor
from lumen_hpc.training.samples import Batcher, Pictures

pytestmark = pytest.mark.usefixtures("alone")


def row(paths: list[Path], images: int, *, answer: str = "nothing has changed.", name: str = "") -> dict[str, Any]:
    """A difference record of the last `images` of these."""
    older = [f"earlier image, {5 * place} days before: <image>" for place in range(images - 2, 0, -1)]
    lines = [*older, "reference image: <image>", "main image, 5 days later: <image>", "what has changed?"]
    turns = [{"from": "human", "value": "\n".join(lines)}, {"from": "gpt", "value": answer}]
    meta = {"question_id": name or f"{images} images", "type": "difference", "question": lines[-1],
            "subject_id": "1", "study_id": "2", "ref_study_id": "1"}  # fmt: skip
    return {"id": meta["question_id"], "images": [str(path) for path in paths[-images:]], "conversations": turns,
            "meta": meta}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A tiny NVILA whose images take several tiles, five images, and records of two to five of them."""
    folder = tmp_path_factory.mktemp("fitting")
    rng = np.random.default_rng(0)
    paths = [folder / f"{place}.png" for place in range(5)]
    for path in paths:
        Image.fromarray(rng.integers(256, size=(90, 70), dtype=np.uint8)).save(path)
    rows = [row(paths, images) for images in (2, 3, 4, 5)]
    texts = [turn["value"] for record in rows for turn in record["conversations"]]
    sizes = {"vision_width": 32, "width": 32, "layers": 2, "vision_layers": 3, "image_size": 32}
    nvila.save(make_tiny(texts, aspect="dynamic_s2", projector="mlp_downsample", **sizes), folder / "base")
    prepare = nvila.Preprocessor.open(folder / "base")
    prompts = [one.prompt for one in measure(rows, prepare)]
    limit = next(limit for limit in range(prompts[1], prompts[2] * 2) if limit - limit // ANSWER_SHARE == prompts[1])
    return {"folder": folder, "rows": rows, "paths": paths, "prepare": prepare, "limit": limit}


def indexed(made: dict[str, Any], folder: Path, rows: list[dict[str, Any]], on_bad: str = "stop", limit: int = 0):
    path = folder / "records.jsonl"
    write_jsonl(path, rows)
    return record_index.build(
        Records(path), made["prepare"], Ranks(), folder=folder,
        max_tokens=limit or made["limit"], on_bad=on_bad, version="1",
    )  # fmt: skip


def test_the_longest_prompt_that_fits_stays_whole_and_longer_ones_lose_their_oldest_images(made) -> None:
    measured = partial(measure, preprocessor=made["prepare"])
    for limit, counts in ((made["limit"], [0, 0, 1, 2]), (made["limit"] - 1, [0, 1, 2, 3])):
        fitted = fit(made["rows"], measured, limit)
        assert [one.images_left_out for one in fitted] == counts
        for one, whole in zip(fitted, made["rows"], strict=True):
            assert one.record["images"] == whole["images"][one.images_left_out :]
            assert [one.measure] == measured([one.record])


def test_training_reads_the_records_that_the_index_fitted(made, tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        found = indexed(made, tmp_path, made["rows"])
    assert found.images_left_out.tolist() == [0, 0, 1, 2]
    assert "2 of 4 records are too long for train.max_tokens and lose their oldest images, 3 in all" in caplog.text
    listed = [json.loads(line) for line in (tmp_path / "images_left_out.jsonl").open()]
    assert listed == [{"id": "4 images", "row": 2, "images": 1}, {"id": "5 images", "row": 3, "images": 2}]
    assert len(set(found.groups[1:].tolist())) == 1, "the same three images are shared"
    batcher = Batcher(Records(tmp_path / "records.jsonl"), found, made["prepare"], Pictures())
    shown = made["prepare"]([made["rows"][1]], inline=True).samples[0]
    for sample in (1, 2, 3):
        micro = batcher.build([SharedSequence((sample,), 1)])
        assert micro.tokens == len(shown) == (found.prefix + found.suffix)[sample]
        assert micro.batch.token_ids[0, : len(shown)].tolist() == shown.token_ids.tolist()


def test_a_pair_that_does_not_fit_alone_is_a_bad_record_and_is_not_listed(made, tmp_path) -> None:
    limit = measure(made["rows"][:1], made["prepare"])[0].total - 1
    with pytest.raises(UserError, match=f"4 of 4 records are bad.*more than train.max_tokens={limit}"):
        indexed(made, tmp_path, made["rows"], limit=limit)


def test_prediction_leaves_out_what_training_leaves_out(made) -> None:
    def answers(rows: list[dict[str, Any]], limit: int | None) -> list[dict[str, Any]]:
        opened = open_predictor(made["folder"] / "base", Predict(max_new_tokens=8), model="lumen", max_tokens=limit)
        seen: list[dict[str, Any]] = []
        generate = opened._model.generate
        opened._model.generate = lambda records, **more: seen.extend(records) or generate(records, **more)
        found = list(opened.answer(rows, range(len(rows))))
        return [{**one, "shown": len(record["images"])} for one, record in zip(found, seen, strict=True)]

    rows = answers(made["rows"], made["limit"])
    assert [one["shown"] for one in rows] == [2, 3, 3, 3]
    assert [one.get("images_left_out") for one in rows] == [None, None, 1, 2]
    assert rows[3]["answer"] == rows[2]["answer"] == rows[1]["answer"]
    assert [one["shown"] for one in answers(made["rows"], None)] == [2, 3, 4, 5]


def test_the_answer_does_not_decide_which_images_are_shown(made) -> None:
    measured = partial(measure, preprocessor=made["prepare"])
    for answer in ("no.", "nothing has changed. " * 20):
        [fitted] = fit([row(made["paths"], 3, answer=answer)], measured, made["limit"])
        assert fitted.images_left_out == 0
