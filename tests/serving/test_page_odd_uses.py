"""Odd uses of the page in a real browser: what it says, what it shows, and what it does not ask."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from lumen_hpc.data.images import COLOURED
from lumen_hpc.errors import UserError
from lumen_hpc.serving import page
from lumen_hpc.serving.media import acquisition_day
from tests.data.test_images import dicom
from tests.serving.pages import ANSWERS, answered, load, needs_chromium


@needs_chromium
def test_days_that_are_no_whole_number_are_not_asked_about(browser_page, files, model):
    load(browser_page, files)
    days, fault = browser_page.locator("#interval"), browser_page.locator("#fault")
    for typed in ("1.5", "1e", "40000", "-99999999999999999999999", "1e300"):
        days.press("Control+a")
        days.press_sequentially(typed)
        for button in ("ask", "swapped", "same"):
            browser_page.locator(f"#{button}").click()
            expect(fault).to_contain_text("is no whole number within a century")
    assert model.asked == []
    for typed, words in (("-30", "30 days before"), ("0", "on the same day"), ("36525", "36525 days later")):
        days.fill(typed)
        browser_page.locator("#ask").click()
        expect(browser_page.locator("#ask")).to_be_enabled()
        expect(fault).to_be_empty()
        assert words in model.parts(-1)[0]["text"]


@needs_chromium
def test_the_image_that_is_missing_is_named_as_the_page_names_it(browser_page, files, model):
    fault = browser_page.locator("#fault")
    reference = browser_page.locator("[data-name=reference]")
    reference.locator("input[type=file]").set_input_files(files / "dark.dcm")
    reference.locator(".about", has_text="dark.dcm").wait_for()
    for button in ("ask", "swapped"):
        browser_page.locator(f"#{button}").click()
        expect(fault).to_have_text("the radiograph is missing: this kind of question is about it")
    browser_page.locator("#same").click()
    assert answered(browser_page, 1) == ANSWERS["same"]


@needs_chromium
def test_a_file_dropped_beside_the_radiographs_leaves_the_page(browser_page):
    drop = """(type) => {
        const dropped = new DataTransfer();
        dropped.items.add(new File(["x"], "x.png"));
        const event = new DragEvent(type, { dataTransfer: dropped, bubbles: true, cancelable: true });
        document.querySelector("h1").dispatchEvent(event);
        return event.defaultPrevented;
    }"""
    assert browser_page.evaluate(drop, "dragover") and browser_page.evaluate(drop, "drop")


@needs_chromium
@pytest.mark.parametrize("count", [0, 10])
def test_a_drop_of_other_than_one_file_takes_none(browser_page, files, model, count):
    load(browser_page, files)
    browser_page.locator("[data-name=main]").evaluate(
        """(root, count) => {
            const dataTransfer = new DataTransfer();
            for (let n = 0; n < count; n++) dataTransfer.items.add(new File(["x"], `${n}.png`));
            root.dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        count,
    )
    expect(browser_page.locator("#fault")).to_have_text(
        f"drop one file on it, a JPG, PNG or DICOM: {count} were dropped"
    )
    expect(browser_page.locator("[data-name=main] .about")).to_contain_text("bright.jpg")


@needs_chromium
def test_a_file_that_failed_can_be_chosen_again(browser_page, files):
    """A browser reports no change where the same file is chosen again, and calls a missing one a network error."""
    main, fault = browser_page.locator("[data-name=main]"), browser_page.locator("#fault")
    file = files / "late.jpg"
    file.write_bytes(b"not yet")
    main.locator("input[type=file]").set_input_files(file)
    expect(fault).to_contain_text("late.jpg: the image cannot be read")
    assert main.locator("input[type=file]").input_value() == ""
    file.write_bytes((files / "bright.jpg").read_bytes())
    main.locator("input[type=file]").set_input_files(file)
    expect(main.locator(".about")).to_contain_text("late.jpg: 70 × 90 px")
    file.unlink()
    main.locator("input[type=file]").dispatch_event("change")
    expect(fault).to_contain_text("late.jpg: this browser cannot read it: choose a file, not a folder")


@needs_chromium
def test_a_photograph_of_a_screen_is_named_and_asked_about(browser_page, files, model):
    load(browser_page, files)
    Image.new("RGB", (64, 64), (200, 90, 20)).save(files / "screen.png")
    browser_page.locator("[data-name=main] input[type=file]").set_input_files(files / "screen.png")
    about = browser_page.locator("[data-name=main] .about")
    expect(about).to_have_text(f"screen.png: 64 × 64 px; {COLOURED}")
    browser_page.locator("#ask").click()
    answered(browser_page, 1)
    assert "colours" not in browser_page.locator("[data-name=reference] .about").inner_text()


@needs_chromium
def test_the_back_button_brings_nothing_of_the_last_images_back(browser_page, files):
    """A browser fills forms in again: days between images that are there no more, and files' names without them."""
    load(browser_page, files)
    browser_page.locator("input[value=diagnostic]").check()
    browser_page.goto("about:blank")
    browser_page.go_back()
    browser_page.locator("#questions option").first.wait_for(state="attached")
    main = browser_page.locator("[data-name=main]")
    assert browser_page.locator("#interval").input_value() == ""
    assert main.locator("input[type=file]").input_value() == main.locator("textarea").input_value() == ""
    load(browser_page, files)


@needs_chromium
def test_images_in_the_wrong_order_are_named(browser_page, files):
    order = browser_page.locator("#order")
    for name, file in (("reference", "bright.jpg"), ("main", "dark.dcm")):
        browser_page.locator(f"[data-name={name}] input[type=file]").set_input_files(files / file)
        browser_page.locator(f"[data-name={name}] .about", has_text=file).wait_for()
    expect(order).to_have_text("The earlier radiograph is 7 days later than the other.")
    browser_page.locator("#interval").fill("-1")
    expect(order).to_have_text("The earlier radiograph is 1 day later than the other.")
    browser_page.locator("#interval").fill("")
    expect(order).to_be_empty()
    load(browser_page, files)
    expect(order).to_be_empty()


@needs_chromium
def test_two_dicoms_of_different_patients_are_named(browser_page, files):
    order = browser_page.locator("#order")
    pixels = np.random.default_rng(0).integers(0, 4096, (80, 64)).astype(np.uint16)
    for name, number in (("a", "7001"), ("b", "7001"), ("c", "7002")):
        path = dicom(files / f"{name}.dcm", pixels, StudyDate="20200302", PatientID=number)
        assert number not in json.dumps({**page.decode_image(path.read_bytes()), "url": ""}), "a hash is sent"
    warning = "The two files are of different patients, by their PatientID."
    for reference, main, text in (("a", "b", ""), ("c", "b", warning), ("c", "bright.jpg", "")):
        for name, file in (("reference", f"{reference}.dcm"), ("main", main if "." in main else f"{main}.dcm")):
            browser_page.locator(f"[data-name={name}] input[type=file]").set_input_files(files / file)
            browser_page.locator(f"[data-name={name}] .about", has_text=file).wait_for()
        expect(order).to_have_text(text)


@needs_chromium
def test_an_answer_says_which_files_it_is_about(browser_page, files):
    """Of a long session the answers are about images that are on the page no more."""
    load(browser_page, files)
    for count, (button, names) in enumerate(
        {
            "#ask": "dark.dcm, then bright.jpg",
            "#swapped": "bright.jpg, then dark.dcm",
            "#same": "dark.dcm, then dark.dcm",
        }.items(),
        1,
    ):
        browser_page.locator(button).click()
        answered(browser_page, count)
        assert browser_page.locator("#answers .files").first.inner_text() == names
    for count, (kind, name) in enumerate({"diagnostic": "bright.jpg", "prediction": "dark.dcm"}.items(), 4):
        browser_page.locator(f"input[value={kind}]").check()
        browser_page.locator("#ask").click()
        answered(browser_page, count)
        assert browser_page.locator("#answers .files").first.inner_text() == name


@needs_chromium
def test_a_question_of_ones_own_stays_when_the_kind_changes(browser_page):
    question = browser_page.locator("#question")
    browser_page.locator("input[value=diagnostic]").check()
    assert question.input_value() == page.QUESTIONS["diagnostic"][0]
    question.fill("is the tube in place?")
    browser_page.locator("input[value=difference]").check()
    assert question.input_value() == "is the tube in place?"


@needs_chromium
def test_half_an_answer_is_not_shown_as_a_whole_one(browser_page, files, model):
    load(browser_page, files)
    card = browser_page.locator("#answers li").first
    model.ends = "length"
    browser_page.locator("#ask").click()
    assert answered(browser_page, 1) == ANSWERS["given"]
    assert card.locator(".note").inner_text() == "Cut after 256 tokens (predict.max_new_tokens)."
    model.ends = "broken"
    browser_page.locator("#ask").click()
    expect(card.locator(".note")).to_have_text("Broken off before its end.")
    assert card.locator(".text").inner_text() == "The" and card.locator(".chips").count() == 0
    expect(browser_page.locator("#fault")).to_have_text("the model's server does not answer any more")
    for count, model.ends in enumerate(["abort", None], 3):
        browser_page.locator("#ask").click()
        expect(browser_page.locator("#answers > li")).to_have_count(count)
        expect(card.locator(".note")).to_have_text("Broken off before its end.")
        assert card.locator(".chips").count() == 0
        expect(browser_page.locator("#fault")).to_have_text("the model's server broke the answer off")
    model.held = True
    browser_page.locator("#ask").click()
    expect(card.locator(".text")).to_have_text("The")
    browser_page.locator("#stop").click()
    expect(card.locator(".note")).to_have_text("Stopped before its end.")
    model.held, model.ends = False, "stop"
    browser_page.locator("#ask").click()
    assert answered(browser_page, 2) == ANSWERS["given"] and card.locator(".note").count() == 0


@needs_chromium
@pytest.mark.parametrize("width", [320, 1280])
def test_answers_of_any_length_and_script_stay_within_the_window(browser_page, files, model, width):
    browser_page.set_viewport_size({"width": width, "height": 700})
    load(browser_page, files)
    answers = ["x" * 20_000, "word " * 3_000, "القلب طبيعي", "\N{LUNGS}\N{ZERO WIDTH JOINER}" * 500, "<b>No</b>", ""]
    for count, answer in enumerate(answers, 1):
        model.answer = answer
        browser_page.locator("#ask").click()
        expect(browser_page.locator("#answers .chips")).to_have_count(count)
    texts = browser_page.locator("#answers .text")
    assert texts.first.inner_text() == "(empty answer)" and texts.nth(1).inner_text() == "<b>No</b>"
    assert texts.nth(3).evaluate("part => getComputedStyle(part).direction") == "rtl"
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    browser_page.emulate_media(media="print", color_scheme="dark")
    assert browser_page.evaluate("getComputedStyle(document.body).color") == "rgb(24, 35, 44)", "ink on paper"
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_day_of_an_image_is_that_of_its_exposure(tmp_path):
    """Not that on which its file was edited, or on which the examination began."""
    image = Image.new("L", (8, 8))
    exif = image.getexif()
    exif[0x0132] = "2020:05:01 10:00:00"
    exif.get_ifd(0x8769)[0x9003] = "2020:03:09 10:00:00"
    image.save(tmp_path / "edited.jpg", exif=exif)
    assert acquisition_day((tmp_path / "edited.jpg").read_bytes()) == "2020-03-09"
    pixels = np.zeros((8, 8), np.uint16)
    file = dicom(tmp_path / "a.dcm", pixels, StudyDate="20200308", AcquisitionDate="20200309")
    assert acquisition_day(file.read_bytes()) == "2020-03-09"
    assert acquisition_day(dicom(tmp_path / "b.dcm", pixels, StudyDate="20200308").read_bytes()) == "2020-03-08"


@pytest.mark.parametrize("days", [10**6, -(10**6), 10**400])
def test_more_days_than_a_life_has_are_refused(days):
    question = {"kind": "prediction", "question": "what?", "images": {"reference": "data:,"}, "interval": days}
    with pytest.raises(UserError, match=r"days between the images: at most 36525, a century"):
        page.PageQuestion(**json.loads(json.dumps(question)))


@pytest.mark.parametrize("days", [True, "30", 30.0, [30]])
def test_days_of_another_type_are_refused(days):
    with pytest.raises(TypeError, match="of another type"):
        page.PageQuestion("prediction", "what?", {"reference": "data:,"}, {}, days)


def test_a_prediction_is_asked_as_in_training():
    question = {"kind": "prediction", "question": "What in {days} days?", "images": {"reference": "data:,"}}
    for days, words in ((1, "What in 1 day?"), (30, "What in 30 days?")):
        assert page.PageQuestion(**question, interval=days).content()[0]["text"].endswith(words)
    for days in (0, -3):
        with pytest.raises(UserError, match=f"about later days, and {days} are between"):
            page.PageQuestion(**question, interval=days)
