"""`ask`: one question about image files, in the prompt form of training, from Python and at the terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import launch
from lumen_hpc import nvila
from lumen_hpc.config.schema import Predict
from lumen_hpc.errors import UserError
from lumen_hpc.nvila.generate import Answer
from lumen_hpc.nvila.prompt_form import PromptForm
from lumen_hpc.serving import image_files
from lumen_hpc.serving.ask import TrainedModel
from lumen_hpc.training.predict import open_predictor
from tests.data.test_images import dicom
from tests.training import tiny

ROOT = Path(__file__).parents[2]
DIFFERENCE = "what has changed?"
DATASETS_DIFFERENCE = "what has changed compared to the reference image?"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`base/`, a small model, and images of a few patients."""
    return tiny.make(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def model(made):
    return TrainedModel(nvila.load(made / "base"), max_new_tokens=8)


def _predicted(made, images: list[str], prompt: str) -> str:
    """The answer of stage `predict` to a record."""
    record = {
        "id": "q",
        "images": images,
        "conversations": [{"from": "human", "value": prompt}],
        "meta": {"question_id": "q", "type": "difference", "subject_id": "1", "study_id": "2", "ref_study_id": "3"},
    }
    settings = Predict(max_new_tokens=8, models=["nvila"])
    [row] = open_predictor(made / "base", settings, model="nvila").answer([record], [0])
    return row["answer"]


def test_two_images_are_asked_about_as_the_training_records_are(made, model):
    images = [str(made / "0-reference.png"), str(made / "0-main.png")]
    reply = model.ask(DIFFERENCE, image=images[1], reference=images[0], days=3)
    assert reply.prompt == "reference image: <image>\nmain image, 3 days later: <image>\nwhat has changed?"
    assert reply.answer == _predicted(made, images, reply.prompt)
    swapped_reply = model.ask(DIFFERENCE, image=images[0], reference=images[1], days=-3)
    assert "main image, 3 days before: <image>" in swapped_reply.prompt
    assert swapped_reply.answer == _predicted(made, images[::-1], swapped_reply.prompt)


def test_one_image_is_asked_about_as_the_training_records_are(made, model):
    image = str(made / "1-main.png")
    reply = model.ask("is there finding 0?", image=image)
    assert reply.prompt == "<image>\nis there finding 0?"
    assert str(reply) == reply.answer == _predicted(made, [image], reply.prompt)


def test_the_experts_words_follow_their_picture(made):
    expert_model = TrainedModel(nvila.load(made / "base"), experts=lambda data: f"{len(data)} bytes.", max_new_tokens=1)
    paths = [made / "0-reference.png", made / "0-main.png"]
    reply = expert_model.ask(DIFFERENCE, image=paths[1], reference=paths[0], days=1)
    first, second = (path.stat().st_size for path in paths)
    assert reply.prompt == (
        f"reference image: <image>\n{first} bytes.\nmain image, 1 day later: <image>\n{second} bytes.\n{DIFFERENCE}"
    )


def test_a_dicom_is_decoded_as_in_training_and_gives_its_date(made, model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4096, (80, 64)).astype(np.uint16)
    before = dicom(tmp_path / "before.dcm", pixels, StudyDate="21480228")
    after = dicom(tmp_path / "after.dcm", pixels[::-1].copy(), StudyDate="21480301")
    reply = model.ask(DIFFERENCE, image=after, reference=before)
    assert "main image, 2 days later: <image>" in reply.prompt  # 2148 is a leap year
    assert reply.answer == _predicted(made, [str(before), str(after)], reply.prompt)
    undated = model.ask(DIFFERENCE, image=made / "0-main.png", reference=before)
    assert "at an unknown distance in time" in undated.prompt


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.webp", "cannot be read: give a whole JPG, PNG or DICOM"), ("a.gif", "cannot be read: give a whole"),
        ("a.tiff", "cannot be read: give a whole"), ("folder", "a folder, where a file should be"),
        ("deep.png", "a PNG of 16 bits"), ("one.png", "a PNG of 1 bits"), ("palette.png", "with a palette"),
        ("cmyk.jpg", "has 4 components"), ("turned.jpg", "EXIF orientation 6"), ("empty.png", "cannot be read"),
        ("circle.png", "symbolic links"),
    ],
)  # fmt: skip
def test_an_image_of_another_kind_is_refused_in_a_line(model, tmp_path, name, message):
    grey = Image.fromarray(np.arange(2400, dtype=np.uint8).reshape(60, 40))
    exif = grey.getexif()
    exif[0x112] = 6
    for suffix in ("webp", "gif", "tiff"):
        grey.save(tmp_path / f"a.{suffix}")
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(tmp_path / "deep.png")
    for mode, saved in (("1", "one.png"), ("P", "palette.png"), ("CMYK", "cmyk.jpg")):
        grey.convert(mode).save(tmp_path / saved)
    grey.save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    with pytest.raises(UserError, match=message) as caught:
        model.ask("what?", image=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_jpg_is_read_too(model, tmp_path):
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "image.jpg")
    assert model.ask("is there finding 0?", image=tmp_path / "image.jpg").prompt.startswith("<image>")


def test_what_cannot_be_asked_is_refused_in_a_line(made, model, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    (tmp_path / "notes.txt").write_text("no image")
    main = made / "0-main.png"
    for words, message in (
        ({"question": " ", "image": made / "0-main.png"}, "ask a question"),
        ({"question": "\N{ZERO WIDTH SPACE}?!", "image": main}, "this one has no words"),
        ({"question": "what?", "image": made / "0-main.png", "days": 2}, "days=2: they are counted from an earlier"),
        ({"question": "what?", "image": main, "reference": main, "days": "3"}, "days='3'"),
        ({"question": "what?", "image": main, "reference": main, "days": 1.5}, "days=1.5"),
        ({"question": "a \ud800", "image": made / "0-main.png"}, "half a character"),
        ({"question": "what is <image>?", "image": main}, "the text holds <image>, which stands for a picture"),
        ({"question": "what <vila/video>?", "image": main}, "the text holds <vila/video>"),
        ({"question": "what?", "image": "https://site/a.png"}, "image=https://site/a.png: an address; no address is"),
        ({"question": "what?", "image": f"file://{main}"}, "main.png: an address; no address is read"),
        ({"question": "what?", "image": main, "reference": main, "days": 10**20}, "at most 36525, a century"),
        ({"question": "what?", "image": np.zeros((8, 8), np.uint8)}, "image: takes the path .* not a ndarray"),
        ({"question": "what?", "image": main, "reference": Image.open(main)}, "reference: takes the path .*, not a "),
        ({"question": "what?", "image": tmp_path / "none.png"}, "none.png: No such file"),
        ({"question": "what?", "image": tmp_path / "broken.png"}, r"image=.*broken\.png is truncated"),
        ({"question": "what?", "image": tmp_path / "notes.txt", "reference": tmp_path / "notes.txt"},
         r"notes\.txt cannot be read: give a whole JPG, PNG or DICOM"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            model.ask(**words)


def test_the_terminal_answers_and_says_what_is_missing(made, tmp_path, capsys):
    words = ["ask", f"runs={tmp_path}", "run=none", f"weights={made / 'base'}", "predict.max_new_tokens=8"]
    images = [f"image={made / '0-main.png'}", f"reference={made / '0-reference.png'}", "days=3"]
    assert launch.main([*words, *images, "what", "has changed?", "json=true"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["prompt"] == "reference image: <image>\nmain image, 3 days later: <image>\nwhat has changed?"
    for wrong, message in (
        ([*words, "what?"], "image=FILE"),
        ([*words, *images], "ask a question"),
        ([*words, *images[:2], "days=soon", "what?"], "days=soon: takes a whole number"),
        ([*words, "image=/nowhere.png", "what?"], "image=/nowhere.png: No such file or directory; give a JPG"),
        (["ask", f"runs={tmp_path}", "run=none", *images, "what?"], "run=none: there is no"),
        (["status", *images], "status has no use for it"),
        ([*words, f"image={tmp_path}", "what?"], f"image={tmp_path}: a pipe, a device or a folder"),
        (["ask", "weights=/nowhere", *images, "what?"], "weights=/nowhere: no config.json"),
        ([*words, images[0], "days=3", "what?"], "days=3: they are counted from an earlier image"),
        ([*words, f"image={__file__}", "what?"], "test_ask.py cannot be read: give a whole JPG, PNG or DICOM"),
        ([*words, *images, "page=true", "what?"], "page=true: ask has no use for it"),
        ([*words, *images, "serve.port=5", "what?"], "serve.port=5: ask has no use for it"),
        ([*words, *images, "question=what has changed?"], 'behind its verb without a key: ask "what has changed?"'),
    ):
        assert launch.main(wrong) == 2
        error = capsys.readouterr().err
        assert message in error and "loading" not in error, "said before a model is loaded"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image=/nowhere.png"], "image=/nowhere.png: No such file"),
        (["image=/a.png,/b.png"], "give a JPG, PNG or DICOM file, one alone: the earlier one is reference=FILE"),
        (["image={made}/0-main.png", "days=3"], "days=3: they are counted from an earlier image"),
        (["image={made}/0-main.png", "days=3"], "what will be says its days itself, such as: what will have changed"),
    ],
)
def test_a_wrong_file_is_said_before_torch_is_loaded(made, tmp_path, words, message):
    words = ["ask", f"runs={tmp_path}", f"weights={made / 'base'}", *(word.format(made=made) for word in words), "so?"]
    program = f"import sys, launch; code = launch.main({words!r}); assert 'torch' not in sys.modules; sys.exit(code)"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 2 and message in process.stderr, process.stderr


@pytest.mark.parametrize(
    ("words", "doubt"),
    [
        (["image=0-main.png", "what has changed?"], "the question seems to compare, and one image is given"),
        (["image=0-main.png", "What will have changed in 30 days?"], ""),
        (["image=0-main.png", "is there edema?"], ""),
        (["image=0-main.png", "reference=0-main.png", DATASETS_DIFFERENCE], "image and reference are the same file"),
        (["image=0-main.png", "reference=0-reference.png", "days=-3", DATASETS_DIFFERENCE],
         "the reference is 3 days later than the image"),
        (["image=0-main.png", "reference=0-reference.png", DATASETS_DIFFERENCE], ""),
        (["image=0-main.png", "reference=0-reference.png", "What has changed in the left lung area?"], ""),
        (["image=0-main.png", "reference=0-reference.png", "what has changed?"],
         "one of its questions: what has changed compared to the reference image?"),
        (["image=0-main.png", "does it look normal?"],
         "one of its questions: what abnormalities are seen in this image?"),
        (["image=screen.png", "is there edema?"], "image: the image has colours, which no radiograph has"),
        (["image=0-main.png", "reference=0-reference.png", "What will have changed in 30 days?"],
         "give the earlier one alone"),
    ],
)  # fmt: skip
def test_what_may_not_be_meant_is_said_and_answered(made, monkeypatch, capsys, words, doubt):
    monkeypatch.chdir(made)
    Image.new("RGB", (64, 64), (200, 90, 20)).save("screen.png")
    assert launch.main(["ask", "weights=base", "predict.max_new_tokens=1", *words]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lumen: ")]
    warnings.remove("lumen: the answer was cut after 1 tokens (predict.max_new_tokens)")
    assert len(warnings) == bool(doubt) and doubt in "".join(warnings)


@pytest.mark.parametrize(
    ("ids", "warned"),
    [(("7001", "7002"), True), (("7001", "7001 "), False), (("7001", ""), False), (("7001", None), False)],
)
def test_two_dicoms_of_different_patients_are_named_and_their_numbers_are_not(made, monkeypatch, capsys, ids, warned):
    monkeypatch.chdir(made)
    pixels = np.random.default_rng(0).integers(0, 4096, (80, 64)).astype(np.uint16)
    for name, number in zip(("reference", "image"), ids, strict=True):
        dicom(f"{name}.dcm", pixels, StudyDate="21480228", **({} if number is None else {"PatientID": number}))
    words = ["image=image.dcm", "reference=reference.dcm", "what has changed?"]
    assert launch.main(["ask", "weights=base", "predict.max_new_tokens=1", *words]) == 0
    printed = "".join(capsys.readouterr())
    assert ("image and reference are of different patients, by their PatientID" in printed) is warned
    assert "7001" not in printed and "7002" not in printed


def test_a_cut_answer_is_told_from_a_whole_one(made, model, monkeypatch):
    """ "No change is seen" may be half of "No change is seen but in the left lung"."""
    for ids, cut in (([5, 6], True), ([5, model.nvila.tokenizer.end], False)):
        monkeypatch.setattr(type(model.nvila), "generate", lambda *_, ids=ids, **__: [Answer("No change is seen", ids)])
        assert model.ask("any change?", image=made / "0-main.png").cut is cut


def test_the_findings_line_of_the_training_is_no_part_of_the_answer(made, monkeypatch):
    """Whatever findings the dataset or `instruct.line` gave it: `config.json` has their names."""
    line, sentence = "edema no yes new fracture old old same", "The image shows a new edema."
    monkeypatch.setattr(nvila.NVILA, "generate", lambda *_, **__: [Answer(f"{line} ; {sentence}", [5])])
    for form, answer in (
        (PromptForm.trained(findings_line=True, line=("edema", "fracture")), sentence),
        (PromptForm.trained(findings_line=True), f"{line} ; {sentence}"),  # the phantoms', which this is not
    ):
        trained = nvila.load(made / "base")
        trained.config = trained.config.with_prompt_form(form)
        reply = TrainedModel(trained).ask("any change?", image=made / "0-main.png")
        assert reply.answer == answer and reply.findings == (line if answer == sentence else "")


def test_the_terminal_reads_an_image_once(made, monkeypatch, capsys):
    """Of a pipe or a slow file system the second reading would be another file."""
    read, whole = [], image_files.image_bytes
    monkeypatch.setattr(image_files, "image_bytes", lambda name, path: read.append(name) or whole(name, path))
    monkeypatch.chdir(made)
    images = ["image=0-main.png", "reference=0-reference.png"]
    assert launch.main(["ask", "weights=base", "predict.max_new_tokens=1", *images, DIFFERENCE]) == 0
    assert read == ["reference", "image"]


def test_a_run_that_has_not_trained_the_model_says_so(tmp_path):
    from lumen_hpc.cluster.run_model import open_model
    from lumen_hpc.cluster.stage import Run
    from lumen_hpc.config.profile import Profile
    from lumen_hpc.config.schema import Settings

    run = Run(tmp_path / "early", Settings(), Profile())
    with pytest.raises(UserError, match="run early has no trained lumen yet"):
        open_model(run, "lumen")
    with pytest.raises(UserError, match="model=lumne: the models are nvila, ft, lumen"):
        open_model(run, "lumne")
    with pytest.raises(UserError, match="run early has no trained lumen@1 yet"):
        open_model(run, "lumen@1")
    with pytest.raises(UserError, match="model=lumen-outcomes: run early has nvila, ft, lumen alone"):
        open_model(run, "lumen-outcomes")
