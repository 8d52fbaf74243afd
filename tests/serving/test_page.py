"""The page in a real browser, before a model's server that is scripted: what it shows, sends, and never asks for."""

from __future__ import annotations

import base64
import io
import json
import re

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from lumen_hpc.data.images import grey_levels
from lumen_hpc.errors import UserError
from lumen_hpc.serving import page
from lumen_hpc.serving.answer_facts import read_facts
from tests.serving.pages import ANSWERS, Model, answered, listening, load, needs_chromium


@needs_chromium
def test_two_files_are_asked_about_as_in_training_and_the_facts_stand_beside(browser_page, files, model):
    load(browser_page, files)
    assert browser_page.locator("#interval").input_value() == "7"
    words = browser_page.locator("[data-name=main] .experts textarea")
    assert words.input_value() == "Expert models predict: maybe edema."
    words.fill("")  # editable: left out, it leaves the prompt
    browser_page.locator("#ask").click()
    assert answered(browser_page, 1) == ANSWERS["given"]
    assert browser_page.locator("#answers .chips li").all_inner_texts() == ["pleural effusion · new"]
    assert model.parts(-1)[0]["text"] == (
        "reference image: <image>\nExpert models predict: no edema.\nmain image, 7 days later: <image>\n"
        "what has changed compared to the reference image?"
    )
    dark, bright = model.images(-1)
    assert np.array_equal(dark, grey_levels(files / "dark.dcm")) and np.array_equal(
        bright, grey_levels(files / "bright.jpg")
    )
    assert model.asked[-1]["authorization"] == "Bearer server-key"
    assert "server-key" not in browser_page.content()


@needs_chromium
def test_the_controls_are_one_click_each(browser_page, files, model):
    load(browser_page, files)
    for count, (how, chip) in enumerate(
        {"swapped": "pleural effusion · resolved", "same": "nothing has changed"}.items(), start=1
    ):
        browser_page.locator(f"#{how}").click()
        assert answered(browser_page, count) == ANSWERS[how]
        assert browser_page.locator("#answers li .chips").first.inner_text() == chip
    assert browser_page.locator("#answers h3").all_inner_texts() == ["Same image twice", "Images swapped"]


@needs_chromium
def test_the_answer_streams_and_can_be_stopped(browser_page, files, model):
    load(browser_page, files)
    model.held = True
    browser_page.locator("#ask").click()
    text, status = browser_page.locator("#answers .text").first, browser_page.locator("#status")
    expect(text).to_have_text("The")
    expect(status).to_have_text("The model answers …")
    model.held = False
    assert answered(browser_page, 1) == ANSWERS["given"]
    model.held = True
    browser_page.locator("#ask").click()
    expect(text).to_have_text("The")
    browser_page.locator("#stop").click()
    expect(status).to_have_text("Stopped.")
    expect(browser_page.locator("#ask")).to_be_enabled()
    expect(browser_page.locator("#fault")).to_be_empty()
    model.held = False


def _drop(opened, name: str, file) -> None:
    """Drop a file on a radiograph's place, as a file manager does."""
    dropped = opened.evaluate_handle(
        """([name, data]) => {
            const dropped = new DataTransfer();
            dropped.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name));
            return dropped;
        }""",
        [file.name, base64.b64encode(file.read_bytes()).decode()],
    )
    opened.locator(f"[data-name={name}]").dispatch_event("drop", {"dataTransfer": dropped})
    opened.locator(f"[data-name={name}] .about", has_text=file.name).wait_for()


@needs_chromium
def test_files_can_be_dropped_and_days_follow_from_their_dates_alone(browser_page, files, model):
    _drop(browser_page, "reference", files / "dark.dcm")
    _drop(browser_page, "main", files / "bright.jpg")
    interval = browser_page.locator("#interval")
    assert interval.input_value() == "7"
    Image.fromarray(np.full((80, 80), 220, np.uint8)).save(files / "undated.png")
    _drop(browser_page, "main", files / "undated.png")
    assert interval.input_value() == "", "seven days were those of another image"
    browser_page.locator("#ask").click()
    answered(browser_page, 1)
    assert "main image, at an unknown distance in time" in model.parts(-1)[0]["text"]
    interval.fill("30")
    _drop(browser_page, "main", files / "undated.png")
    assert interval.input_value() == "30", "what was typed stays"
    browser_page.locator("#swapped").click()
    answered(browser_page, 2)
    assert "main image, 30 days later" in model.parts(-1)[0]["text"]


@needs_chromium
@pytest.mark.parametrize(("kind", "images"), [("diagnostic", ["bright.jpg"]), ("prediction", ["dark.dcm"])])
def test_the_datasets_questions_and_free_ones_of_the_other_kinds(browser_page, files, model, kind, images):
    load(browser_page, files)
    browser_page.locator(f"input[value={kind}]").check()
    assert browser_page.locator("#questions option").all_inner_texts() == page.QUESTIONS[kind]
    assert browser_page.locator("#swapped").is_disabled() and browser_page.locator("#same").is_disabled()
    browser_page.locator("#questions").select_option(index=1)
    chosen = page.QUESTIONS[kind][1].replace("{days}", "7")
    browser_page.locator("#ask").click()
    answered(browser_page, 1)
    browser_page.locator("#question").fill("Is the heart large?")
    browser_page.locator("#ask").click()
    answered(browser_page, 2)
    for place, question in ((-2, chosen), (-1, "Is the heart large?")):
        assert model.parts(place)[0]["text"].endswith(f"\n{question}")
        assert [
            np.array_equal(picture, grey_levels(files / name))
            for picture, name in zip(model.images(place), images, strict=True)
        ] == [True]


@needs_chromium
def test_it_works_by_keyboard_and_speaks(browser_page, files):
    load(browser_page, files)
    browser_page.locator("#question").focus()
    browser_page.keyboard.press("Tab")
    assert browser_page.evaluate("document.activeElement.id") == "ask"
    browser_page.keyboard.press("Enter")
    answered(browser_page, 1)
    assert ANSWERS["given"] in browser_page.locator("#status").inner_text()
    assert browser_page.locator("#status").get_attribute("aria-live") == "polite"


@needs_chromium
def test_zoom_and_window_change_the_view_and_not_what_is_asked(browser_page, files, model):
    load(browser_page, files)
    canvas = browser_page.locator("[data-name=reference] canvas")
    before = canvas.evaluate("c => c.toDataURL()")
    canvas.focus()
    for key in ("+", "+", "ArrowLeft"):
        browser_page.keyboard.press(key)
    zoomed = canvas.evaluate("c => c.toDataURL()")
    browser_page.locator("[data-name=reference] .level").fill("90")
    levelled = canvas.evaluate("c => c.toDataURL()")
    browser_page.locator("[data-name=reference] .window").fill("40")
    windowed = canvas.evaluate("c => c.toDataURL()")
    assert len({before, zoomed, levelled, windowed}) == 4
    browser_page.locator("#ask").click()
    answered(browser_page, 1)
    assert np.array_equal(model.images(-1)[0], grey_levels(files / "dark.dcm"))
    browser_page.locator("[data-name=reference] .reset").click()
    assert canvas.evaluate("c => c.toDataURL()") == before


@needs_chromium
def test_bad_input_is_one_line_on_the_page(browser_page, files, model):
    fault = browser_page.locator("#fault")
    browser_page.locator("#ask").click()
    expect(fault).not_to_be_empty()
    assert fault.inner_text() == "the earlier radiograph is missing: this kind of question is about it"
    (files / "notes.txt").write_text("no image")
    browser_page.locator("[data-name=main] input[type=file]").set_input_files(files / "notes.txt")
    expect(fault).to_have_text("notes.txt: the image cannot be read: give a whole JPG, PNG or DICOM file")
    load(browser_page, files)
    model.refuse = "This model's maximum context length is 64 tokens."
    browser_page.locator("#ask").click()
    expect(fault).to_contain_text("maximum context length is 64 tokens")


@needs_chromium
@pytest.mark.parametrize("end", ["slow", "refused"])
def test_nothing_is_asked_about_the_image_before_the_one_that_was_chosen(browser_page, files, model, end):
    load(browser_page, files)
    (files / "notes.txt").write_text("no image")
    if end == "slow":
        browser_page.route("**/picture", lambda route: None)  # never answered
    browser_page.locator("[data-name=main] input[type=file]").set_input_files(files / "notes.txt")
    fault = browser_page.locator("#fault")
    if end == "refused":
        expect(fault).to_contain_text("notes.txt: the image cannot be read")
    browser_page.locator("#ask").click()
    expect(fault).to_contain_text("radiograph is missing")
    assert model.asked == []
    assert browser_page.locator("[data-name=main] .about").inner_text() == ""


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_says_not_for_clinical_use(browser_page, files, scheme):
    from axe_playwright_python.sync_playwright import Axe

    browser_page.emulate_media(color_scheme=scheme)
    load(browser_page, files)
    browser_page.locator("#ask").click()
    answered(browser_page, 1)
    violations = Axe().run(browser_page).response["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in violations] == []
    assert browser_page.locator("header .warning").is_visible()
    assert browser_page.get_by_text("Not for clinical use").count() == 2


def test_nothing_is_answered_without_the_pages_key(address):
    import urllib.error
    import urllib.request

    for path in ("/", "/?key=wrong", "/page.js", "/questions"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(address + path, timeout=60)
        assert caught.value.code == 401
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{address}/ask", b"{}"), timeout=60)
    assert caught.value.code == 401


def test_the_policy_forbids_every_other_origin():
    policy = page.HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert not re.search(r"https?://", (page.Path(page.__file__).parent / "page.html").read_text())


@pytest.mark.parametrize(
    ("kind", "answer", "facts"),
    [
        ("diagnostic", "There is a moderate pleural effusion.", [("pleural effusion", "present", "moderate")]),
        ("difference", ANSWERS["given"], [("pleural effusion", "new", "")]),
        ("difference", ANSWERS["same"], [("", "nothing", "")]),
        ("difference", "The level of pleural effusion has changed from small to severe.",
         [("pleural effusion", "worse", "small → severe")]),
        ("difference", "The pleural effusion has worsened.", [("pleural effusion", "worse", "")]),
        ("prediction", "I like trains.", []),
    ],
)  # fmt: skip
def test_facts_are_the_readers(kind, answer, facts):
    assert [tuple(fact.values()) for fact in read_facts(answer, kind)] == facts


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "other"}, "takes one of diagnostic, difference, prediction"),
        ({"question": "  "}, "this one has no words"),
        ({"question": "\N{ZERO WIDTH SPACE}?!"}, "this one has no words"),
        ({"question": "What in {days} days?", "interval": None}, "needs the days"),
        ({"images": {"reference": "data:…"}}, "the radiograph is missing"),
        ({"question": "what is <image>?"}, "the text holds <image>, which stands for a picture"),
        ({"experts": {"main": "<image> words"}}, "the text holds <image>"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(given, message):
    good = {"kind": "difference", "question": "What?", "images": {"reference": "data:…", "main": "data:…"}}
    with pytest.raises(UserError, match=message):
        page.PageQuestion(**good | given)


def test_a_prediction_never_shows_the_later_image():
    question = page.PageQuestion(
        "prediction", "What in {days} days?", {"reference": "data:a", "main": "data:b"}, {}, 30
    )
    text, *images = question.content()
    assert text["text"] == "<image>\nWhat in 30 days?"
    assert [image["image_url"]["url"] for image in images] == ["data:a"]


def test_the_experts_words_are_those_of_training(tmp_path):
    from lumen_hpc.config.schema import Experts
    from lumen_hpc.experts import phantom_expert
    from lumen_hpc.experts.confidence_words import sentence
    from lumen_hpc.serving.expert_words import ExpertWords
    from tests.experts.test_phantom_expert import VISION

    phantom_expert.save_expert(phantom_expert.blank_expert(VISION, width=32), tmp_path / "expert.safetensors")
    settings = Experts(model="phantom")
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(path)
    predictor = phantom_expert.open_predictor(tmp_path / "expert.safetensors", settings)
    (row,) = predictor.predict([{"study_id": "s", "dicom_id": "d", "image": str(path)}])
    words = ExpertWords(settings, cache="", pretrained=tmp_path)(path.read_bytes())
    assert words == sentence(row, settings.in_prompt, settings.thresholds) != ""


def test_the_findings_line_of_the_training_is_neither_answer_nor_fact(model: Model):
    """A dataset has other findings in its line than the phantoms."""
    model.answer = f"edema no yes new fracture old old same ; {ANSWERS['given']}"
    png = io.BytesIO()
    Image.new("L", (8, 8)).save(png, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"
    question = {"kind": "difference", "question": "what has changed?", "images": {"reference": url, "main": url}}
    with listening(model.app) as server:
        app = page.application(f"{server}/v1", "server-key", "page-key", "lumen", line=("edema", "fracture"))
        with listening(app) as address:
            reply = httpx.post(f"{address}/page-key/ask", json=question, trust_env=False)
    last = json.loads(reply.text.splitlines()[-1])
    assert last["answer"].strip() == ANSWERS["given"]
    assert last["facts"] == [{"finding": "pleural effusion", "change": "new", "level": ""}]
