"""A run's model, opened on this machine to be asked: `python launch.py ask` and `open_run(…).model(…)`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lumen_hpc.cluster.stage import Run
from lumen_hpc.config.request import Request
from lumen_hpc.errors import UserError, raise_interrupts
from lumen_hpc.files import foreign, read_json
from lumen_hpc.models import MODELS, compared_model
from lumen_hpc.plain_text import visible
from lumen_hpc.serving.image_files import image_files
from lumen_hpc.weights import locate, verify

if TYPE_CHECKING:
    from lumen_hpc.serving.ask import Question, TrainedModel


def weights_folder(run: Run, model: str, weights: str = "") -> Path:
    """Folder of a compared model's weights, or of the checkpoint that `weights` names.

    Raises UserError if the run does not compare the model or has not trained it, or if `weights` names no NVILA.
    """
    return _checkpoint(run, weights) if weights else _trained(run, model)


def _trained(run: Run, model: str) -> Path:
    try:
        entry = compared_model(model)
    except KeyError:
        raise UserError(f"model={model}: the models are {', '.join(MODELS)}") from None
    folder = run.weights(model)
    if entry.trained and not folder.is_dir():
        if entry.name not in run.settings.predict.models:
            raise UserError(f"model={model}: run {run.folder.name} has {', '.join(run.settings.predict.models)} alone")
        raise UserError(
            f"run {run.folder.name} has no trained {model} yet ({folder} is not there): "
            f"run stage=train {run.arguments} first, or give weights=FOLDER"
        )
    return folder


def _checkpoint(run: Run, weights: str) -> Path:
    folder = locate(weights, run.profile.cache)
    if not (folder / "config.json").is_file():
        raise UserError(f"weights={weights}: no config.json in {folder}; give a checkpoint's folder")
    if not (folder / "llm").is_dir() and "text_config" not in (folder / "config.json").read_text(errors="replace"):
        raise UserError(
            f"weights={weights}: no NVILA in {folder}: it has neither llm/ (the official layout) nor text_config in "
            "config.json (the hub's); give an NVILA's folder"
        )
    return folder


def max_tokens(folder: Path) -> int:
    """Most tokens that a checkpoint's language model reads, in either layout; 0 where its config.json does not say.

    Read without torch, which a login node may not have; a config.json that is broken is its loader's to report.
    """
    try:
        config = read_json(folder / "llm" / "config.json", None) or read_json(folder / "config.json", {})["text_config"]
        return int(config.get("max_position_embeddings", 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return 0


def open_model(run: Run, model: str, weights: str = "") -> TrainedModel:
    """A run's model, or the checkpoint in `weights`, with the experts whose words its prompts had in training."""
    from lumen_hpc.serving.ask import TrainedModel
    from lumen_hpc.training.predict import open_model

    folder = weights_folder(run, model, weights)
    if not weights:
        folder = verify(folder, run.profile.cache)
    nvila_model = open_model(folder, run=run.folder)
    settings = run.settings
    prompt_form = nvila_model.config.prompt_form
    if prompt_form.clinical or (settings.instruct.clinical and not weights):
        raise UserError(f"{model} was trained with lines of the clinical state, which a question here cannot have")
    experts = None
    if prompt_form.expert_text if weights else settings.instruct.expert_text:
        from lumen_hpc.serving.expert_words import ExpertWords

        if not weights and settings.experts.model == "xrv" and (reason := foreign(run.folder.resolve())):
            raise UserError(
                f"{run.folder}: {reason}; its experts are pickles, which could run another user's code: "
                "copy the run if you trust whoever wrote it"
            )
        experts = ExpertWords(settings.experts, cache=run.profile.cache, pretrained=run.path("pretrain"))
    return TrainedModel(nvila_model, experts=experts, max_new_tokens=settings.predict.max_new_tokens)


COMPARISON_WORDS = re.compile(
    r"\b(changed|compared|comparison|different|worse|better|improved|previous|prior|earlier)\b", re.I
)
"""Words of a question about two images, unless it asks what will be."""


def _warnings(question: Question, learned: bool) -> Iterator[str]:
    """What whoever asks may not have meant; the question is answered all the same.

    `learned`: the model was trained on the dataset's questions, so that it answers others worse.
    """
    from lumen_hpc.data.diff_vqa import TEMPLATES, is_in_its_words
    from lumen_hpc.data.images import COLOURED, has_colours
    from lumen_hpc.serving.media import patient

    asks_future = "will" in question.text.casefold().split()
    if len(question.files) == 1 and COMPARISON_WORDS.search(question.text) and not asks_future:
        yield "the question seems to compare, and one image is given; reference=FILE is the earlier one"
    elif learned and not asks_future and not is_in_its_words(question.text):
        example = TEMPLATES["abnormality" if len(question.files) == 1 else "difference"][0]
        yield f"the dataset asks in other words, and the model learned those alone; one of its questions: {example}"
    for name, picture in zip(question.files, question.pictures, strict=True):
        if has_colours(picture):
            yield f"{name}: {COLOURED}"
    if len(question.files) == 2 and asks_future:
        yield "the question asks what will be, which is learned from one image: give the earlier one alone, image="
    if len(question.files) == 2:
        if question.files["image"] == question.files["reference"]:
            yield "image and reference are the same file"
        if question.days is not None and question.days < 0:
            yield f"the reference is {-question.days} days later than the image; the earlier one is the reference"
        if all(patients := [patient(data) for data in question.files.values()]) and len(set(patients)) == 2:
            yield "image and reference are of different patients, by their PatientID"


def ask(request: Request, run: Run) -> int:
    """Prints the answer; with json=true an object with the findings line and the prompt too.

    Raises UserError without an image or a question, before any model is needed.
    """
    if not request.image:
        raise UserError("say about which image: image=FILE (JPG, PNG or DICOM), and reference=FILE for an earlier one")
    if not request.question:
        raise UserError('ask a question, such as: python launch.py ask image=FILE "is there edema?"')
    days = None
    if request.days:
        try:
            days = int(request.days)
        except ValueError:
            raise UserError(f"days={request.days}: takes a whole number of days") from None
    name, weights = request.settings.serve.model, request.settings.serve.weights
    weights_folder(run, name, weights)
    files = image_files(request.image, request.reference or None, days)
    from lumen_hpc.serving.ask import read_question  # seconds: what the command line itself says is checked first

    raise_interrupts()
    question = read_question(request.question, files, days)
    for warning in _warnings(question, learned=bool(weights) or compared_model(name).trained):
        print(f"lumen: {warning}", file=sys.stderr)
    print(f"loading {weights or name} …", file=sys.stderr, flush=True)
    model = open_model(run, name, weights)
    reply = model.answer(question)
    if reply.cut:
        max_new_tokens = run.settings.predict.max_new_tokens
        print(f"lumen: the answer was cut after {max_new_tokens} tokens (predict.max_new_tokens)", file=sys.stderr)
    if request.json:
        print(
            json.dumps({"answer": reply.answer, "findings": reply.findings, "prompt": reply.prompt, "cut": reply.cut})
        )
    else:
        print(visible(reply.answer))
    return 0
