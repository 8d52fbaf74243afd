"""Odd uses of the page in a real browser: what it says, what it shows, and what it does not ask."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import expect

from lumen_hpc.errors import UserError
from lumen_hpc.serving import page
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
    given = browser_page.locator("[data-name=reference]")
    given.locator("input[type=file]").set_input_files(files / "dark.dcm")
    given.locator(".about", has_text="dark.dcm").wait_for()
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
    shown = browser_page.locator("#answers .text")
    assert shown.first.inner_text() == "(empty answer)" and shown.nth(1).inner_text() == "<b>No</b>"
    assert shown.nth(3).evaluate("part => getComputedStyle(part).direction") == "rtl"
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width
    browser_page.emulate_media(media="print", color_scheme="dark")
    assert browser_page.evaluate("getComputedStyle(document.body).color") == "rgb(24, 35, 44)", "ink on paper"
    assert browser_page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("days", [10**6, -(10**6), 10**400])
def test_more_days_than_a_life_has_are_refused(days):
    asked = {"kind": "prediction", "question": "what?", "images": {"reference": "data:,"}, "interval": days}
    with pytest.raises(UserError, match=r"days between the images: at most 36525, a century"):
        page.PageQuestion(**json.loads(json.dumps(asked)))


@pytest.mark.parametrize("days", [True, "30", 30.0, [30]])
def test_days_of_another_type_are_refused(days):
    with pytest.raises(TypeError, match="of another type"):
        page.PageQuestion("prediction", "what?", {"reference": "data:,"}, {}, days)
